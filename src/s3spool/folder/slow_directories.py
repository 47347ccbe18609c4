"""Directories whose files are opened and read apart from all others: an open there may take long, or hang."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from s3spool.folder.mounts import other_devices

WORKERS = 10  # so many may have a file of a slow directory
SLOW_S = 0.2  # to open and read a small file takes microseconds, and milliseconds on a busy disk
HANGS_S = 1.0  # once is enough; SLOW_S may be a busy machine's doing, and has to happen STRIKES times
STRIKES = 3  # within STRIKES_S
STRIKES_S = 60.0
QUICK_FILES = 20  # in succession: then a slow directory is taken for quick again; twice as many after each relapse
MAX_QUICK_FILES = 10_000
MAX_DIRECTORIES = 1000  # that are remembered


def limit(workers: int) -> int:
    """How many of so many workers may have a slow file: never all, if there are two."""
    return max(1, min(WORKERS, workers // 2))


class SlowDirectories:
    """Which directories are slow: those on another device than the root's, and those that have been slow. Thread-safe.

    `holds` is asked for each file, often under a lock that all workers need: it never asks a file system.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._strikes: OrderedDict[str, list[float]] = OrderedDict()  # when files of a directory were slow
        self._mounts: tuple[str, ...] = ()  # "a/b/"
        self._lock = threading.Lock()
        self._remembered: OrderedDict[str, list[int]] = OrderedDict()  # quick files that are left to see, and at first
        self._slow: frozenset[str] = frozenset()  # of these, those that are slow at the moment
        self.any = False  #: whether there are any: quicker than to ask `holds` for each file

    @property
    def mounts(self) -> tuple[str, ...]:
        """Where other devices are mounted: "a/b/"."""
        return self._mounts

    def holds(self, path: str) -> bool:
        return self.any and (path.startswith(self._mounts) or path.rpartition("/")[0] in self._slow)

    def refresh(self, root: Path) -> None:
        """Look what is mounted below the root now; what is known stays where that cannot be read (no descriptors)."""
        try:
            mounts = other_devices(root)
        except OSError:
            return
        with self._lock:
            self._mounts = mounts
            self._publish()

    def took(self, path: str, duration_s: float) -> None:
        """A file has been opened and read. Quick ones need not be told of where `holds` is false."""
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
