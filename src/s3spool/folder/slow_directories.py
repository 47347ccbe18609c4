"""Slow directories: an open or read there may take long or hang, so few workers may hold their files."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from s3spool.folder.mounts import other_devices

WORKERS = 10  # this many may hold a file of a slow directory
SLOW_S = 0.2  # a small file takes microseconds, or milliseconds on a busy disk
HANGS_S = 1.0  # such a file counts as STRIKES slow ones, which a busy machine may cause
STRIKES = 3
STRIKES_S = 60.0
MAX_DIRECTORIES = 1000  # remembered


def max_slow_files(workers: int) -> int:
    """How many of these workers may hold a slow file: never all of two or more."""
    return max(1, min(WORKERS, workers // 2))


class SlowDirectories:
    """The directories on another device than the root's, and those with STRIKES slow files in STRIKES_S. Thread-safe.

    `holds` is called for each file, often under the inbox's lock: it never accesses a file system.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._strikes: dict[str, list[float]] = {}  # directory -> when its latest slow files were read
        self._reading: set[str] = set()  # slow files that workers open and read now
        self._mounts: tuple[str, ...] = ()  # "a/b/"
        self._lock = threading.Lock()
        self._slow: frozenset[str] = frozenset()  # those with so many strikes
        self.any = False  #: whether there are any: quicker than `holds`
        self.refreshes = 0  #: how often old strikes were forgotten

    @property
    def mounts(self) -> tuple[str, ...]:
        """Where other devices are mounted: "a/b/"."""
        return self._mounts

    def holds(self, path: str) -> bool:
        return self.any and (path.startswith(self._mounts) or path.rpartition("/")[0] in self._slow)

    def refresh(self, root: Path) -> None:
        """Forget old strikes; read the mounts below the root, or keep the known ones if that fails (no descriptors)."""
        mounts = self._mounts
        with contextlib.suppress(OSError):
            mounts = other_devices(root)
        with self._lock:
            self._mounts = mounts
            self._publish()
            self.refreshes += 1

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """A worker opens and reads this slow file, which may hang: until it has, the directory stays slow."""
        with self._lock:
            self._reading.add(path)
        try:
            yield
        finally:
            with self._lock:
                self._reading.discard(path)

    def note_slow_file(self, path: str, duration_s: float) -> None:
        """It took more than SLOW_S to open and read this file."""
        directory = path.rpartition("/")[0]
        with self._lock:
            strikes = self._strikes.pop(directory, []) + [self._clock()] * (STRIKES if duration_s > HANGS_S else 1)
            self._strikes[directory] = strikes[-STRIKES:]
            if len(self._strikes) > MAX_DIRECTORIES:
                del self._strikes[next(iter(self._strikes))]
            self._publish()

    def _publish(self) -> None:
        """The caller holds the lock."""
        since = self._clock() - STRIKES_S
        self._strikes = {directory: strikes for directory, strikes in self._strikes.items() if strikes[-1] > since}
        self._slow = frozenset(
            directory for directory, strikes in self._strikes.items() if len(strikes) == STRIKES and strikes[0] > since
        ) | {path.rpartition("/")[0] for path in self._reading}
        self.any = bool(self._mounts or self._slow)
