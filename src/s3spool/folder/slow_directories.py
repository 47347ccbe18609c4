"""Slow directories: an open or read there may take long or hang, so few workers may hold their files."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from s3spool.folder.mounts import other_devices

WORKERS = 10  # this many may hold a file of a slow directory
SLOW_S = 0.2  # a small file takes microseconds, or milliseconds on a busy disk
HANGS_S = 1.0  # one such file makes the directory slow; SLOW_S, which a busy machine may cause, STRIKES files
STRIKES = 3  # within STRIKES_S
STRIKES_S = 60.0
QUICK_FILES = 20  # in succession end the slowness; twice as many after each relapse
MAX_QUICK_FILES = 10_000
MAX_DIRECTORIES = 1000  # remembered


def max_slow_files(workers: int) -> int:
    """How many of these workers may hold a slow file: never all of two or more."""
    return max(1, min(WORKERS, workers // 2))


class SlowDirectories:
    """The directories on another device than the root's, and those with slow files. Thread-safe.

    `holds` is called for each file, often under the inbox's lock: it never accesses a file system.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._strikes: OrderedDict[str, list[float]] = OrderedDict()  # directory -> when its files were slow
        self._mounts: tuple[str, ...] = ()  # "a/b/"
        self._lock = threading.Lock()
        self._remembered: OrderedDict[str, list[int]] = OrderedDict()  # quick files left, and initially
        self._slow: frozenset[str] = frozenset()  # the remembered ones that are slow now
        self.any = False  #: whether there are any: quicker than `holds`

    @property
    def mounts(self) -> tuple[str, ...]:
        """Where other devices are mounted: "a/b/"."""
        return self._mounts

    def holds(self, path: str) -> bool:
        return self.any and (path.startswith(self._mounts) or path.rpartition("/")[0] in self._slow)

    def refresh(self, root: Path) -> None:
        """Read the mounts below the root; keep the known ones if that fails (no descriptors)."""
        try:
            mounts = other_devices(root)
        except OSError:
            return
        with self._lock:
            self._mounts = mounts
            self._publish()

    def note_duration(self, path: str, duration_s: float) -> None:
        """A file has been opened and read in this time. Not needed for a quick file while `any` is false."""
        directory = path.rpartition("/")[0]
        with self._lock:
            known = self._remembered.get(directory)
            if duration_s > SLOW_S:
                if duration_s > HANGS_S or directory in self._slow or self._is_struck_out(directory):
                    self._remember(directory, known)
            elif known is not None and known[0] > 0:
                known[0] -= 1
                if known[0] == 0:
                    self._publish()

    # The callers of these hold the lock.

    def _is_struck_out(self, directory: str) -> bool:
        now = self._clock()
        strikes = [at for at in self._strikes.pop(directory, []) if at > now - STRIKES_S]
        if len(strikes) + 1 >= STRIKES:
            return True
        self._strikes[directory] = [*strikes, now]
        if len(self._strikes) > MAX_DIRECTORIES:
            self._strikes.popitem(last=False)
        return False

    def _remember(self, directory: str, known: list[int] | None) -> None:
        quick = QUICK_FILES if known is None else known[1]
        if known is not None and known[0] == 0:
            quick = min(MAX_QUICK_FILES, 2 * quick)
        self._remembered[directory] = [quick, quick]
        self._remembered.move_to_end(directory)
        if len(self._remembered) > MAX_DIRECTORIES:
            self._remembered.popitem(last=False)
        self._publish()

    def _publish(self) -> None:
        self._slow = frozenset(directory for directory, (left, _) in self._remembered.items() if left)
        self.any = bool(self._mounts or self._slow)
