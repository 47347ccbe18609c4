"""Limits the lines per cause: beyond LINES per minute they are counted, and one line tells the count."""

from __future__ import annotations

import threading
from typing import Any

LINES = 100
PERIOD_S = 60.0
LIMITED = {"file.failed"}  # never events of uploaded or parked files: each of their lines is evidence
CAUSES = 1000  # error codes come from servers too

Cause = tuple[str, str]  # event, error code


class LineLimit:
    """Times are monotonic seconds. Thread-safe; quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._periods: dict[Cause, tuple[float, int]] = {}  # when it began, lines since then

    def admits(self, event: str, fields: dict[str, Any], now: float) -> bool:
        """Whether to write this line; if not, it is counted."""
        if event not in LIMITED:
            return True
        cause = (event, str(fields.get("error_code", "")))
        with self._lock:
            began, lines = self._periods.get(cause, (now, 0))
            if now - began >= PERIOD_S and lines <= LINES:
                began, lines = now, 0
            if cause not in self._periods and len(self._periods) >= CAUSES:
                self._forget(now)
            self._periods[cause] = (began, lines + 1)
            return lines < LINES

    def summaries(self, now: float) -> list[dict[str, Any]]:
        """The fields of one summary line per cause with too many lines in a period that has ended."""
        found = []
        with self._lock:
            for cause, (began, lines) in list(self._periods.items()):
                if now - began >= PERIOD_S and lines > LINES:
                    found.append({"summarized": cause[0], "error_code": cause[1], "lines": lines - LINES})
                    self._periods[cause] = (now, 0)
        return found

    def next_s(self, now: float) -> float | None:
        """Seconds until the next summary; None: there is none to come."""
        with self._lock:
            ends = [began + PERIOD_S for began, lines in self._periods.values() if lines > LINES]
        return max(0.0, min(ends) - now) if ends else None

    def _forget(self, now: float) -> None:
        """The caller holds the lock. Where all are recent, one of them begins anew, which only writes more."""
        old = [cause for cause, (began, lines) in self._periods.items() if now - began >= PERIOD_S and lines <= LINES]
        for cause in old or [next(iter(self._periods))]:
            del self._periods[cause]
