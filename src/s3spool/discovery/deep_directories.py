"""Directories so deep that every key in them would be too long: logged once, and not listed."""

from __future__ import annotations

import threading

import structlog

LIMIT = 100  # this many are kept and logged
log = structlog.get_logger()


class DeepDirectories:
    """Those that the last scan or an event has found. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._met: dict[str, int] = {}  # path -> the last scan that found it
        self._scan = 0

    def note(self, path: str) -> None:
        with self._lock:
            new = path not in self._met
            if new and len(self._met) >= LIMIT:
                return
            self._met[path] = self._scan
        if new:
            log.warning("directory.too_deep", path=path)

    def end_scan(self) -> None:
        """Forget those that this scan has not found: they are gone."""
        with self._lock:
            self._met = {path: scan for path, scan in self._met.items() if scan >= self._scan}
            self._scan += 1

    def paths(self) -> list[str]:
        """LIMIT of them at most."""
        with self._lock:
            return list(self._met)
