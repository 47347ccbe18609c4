"""Limits the lines per cause: beyond LINES per minute they are counted, and one line tells the count."""

from __future__ import annotations

import threading
from collections import Counter
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
        self._began = 0.0  # the period that `_lines` counts
        self._lines: Counter[Cause] = Counter()

    def admits(self, event: str, fields: dict[str, Any], now: float) -> bool:
        """Whether to write this line; if not, it is counted."""
        if event not in LIMITED:
            return True
        cause = (event, str(fields.get("error_code", "")))
        with self._lock:
            if now - self._began >= PERIOD_S and not self._exceeded():
                self._began = now
                self._lines.clear()
            if cause not in self._lines and len(self._lines) >= CAUSES:
                cause = (event, "other")
            self._lines[cause] += 1
            return self._lines[cause] <= LINES

    def summaries(self, now: float) -> list[dict[str, Any]]:
        """The fields of one summary line per cause with too many lines, once the period has ended."""
        with self._lock:
            if now - self._began < PERIOD_S:
                return []
            exceeded = self._exceeded()
            self._lines.clear()
        return [{"summarized": event, "error_code": code, "lines": lines} for (event, code), lines in exceeded.items()]

    def next_s(self, now: float) -> float | None:
        """Seconds until the next summary; None: there is none to come."""
        with self._lock:
            return max(0.0, self._began + PERIOD_S - now) if self._exceeded() else None

    def _exceeded(self) -> dict[Cause, int]:
        """The lines that were not written. The caller holds the lock."""
        return {cause: lines - LINES for cause, lines in self._lines.items() if lines > LINES}
