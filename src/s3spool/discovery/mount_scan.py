"""Walks other devices mounted below the root, on one thread each: a hanging mount does not stop the scan."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from s3spool.errors import LedgerError
from s3spool.folder.slow_directories import SlowDirectories

WAIT_S = 5.0  # a scan waits this long for the walks of mounts
ERROR_S = 5.0  # wait after a scan or walk that failed
log = structlog.get_logger()


class MountScans:
    """Called by the scan thread. A mount whose last walk has not ended is walked again when that one ends."""

    def __init__(self, slow: SlowDirectories, walk: Callable[[str, Callable[[], bool]], None]) -> None:
        """`walk(directory, stopped)` offers all files below the directory ("a/b/"); it may block."""
        self._slow = slow
        self._walk = walk
        self._threads: dict[str, threading.Thread] = {}
        self._began: dict[str, int] = {}  # mount -> number of the scan that its walk belongs to, while it lasts
        self._again: dict[str, int] = {}  # mount -> number of the first scan that wants another walk
        self._lock = threading.Lock()  # guards these two
        self._late: set[str] = set()  # mounts that the scan no longer waits for
        self._stopped = threading.Event()

    def start(self, number: int, *, again: bool = True) -> frozenset[str]:
        """Begin to walk the mounts for the scan of this number; returns their directories, which it has to leave out.

        `again`: what is walked already is walked once more. A periodic scan does not need that.
        """
        mounts = self._slow.mounts
        for mount in mounts:
            with self._lock:
                if mount in self._began and (it := self._threads.get(mount)) and it.is_alive():
                    if again:
                        self._again.setdefault(mount, number)
                    continue
                self._began[mount] = number
            self._late.discard(mount)
            thread = threading.Thread(target=self._run, args=(mount,), name=f"scan {mount}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread left: the next scan tries again, and this one has not ended
                continue
            self._threads[mount] = thread
        self._threads = {mount: thread for mount, thread in self._threads.items() if thread.is_alive()}
        return frozenset(mounts)

    def ended(self, number: int) -> int:
        """The last scan up to this one whose walks, of all mounts, have ended. Any thread."""
        with self._lock:
            there = self._began.keys() & {*self._slow.mounts}
            return min([number, *(self._began[mount] - 1 for mount in there)])

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Until the walks have ended, or for WAIT_S."""
        deadline = time.monotonic() + WAIT_S
        for mount, thread in self._threads.items():
            while thread.is_alive() and mount not in self._late and not self._stopped.is_set():
                thread.join(0.1)
                meanwhile()
                if time.monotonic() > deadline:
                    self._late.add(mount)

    def hanging(self) -> Iterable[str]:
        """Mounts whose walk takes longer than WAIT_S. Any thread."""
        return [mount for mount in self._late.copy() if (it := self._threads.get(mount)) and it.is_alive()]

    def close(self) -> None:
        self._stopped.set()

    def _run(self, mount: str) -> None:
        complaint = ""  # logged once
        wanted = True
        while wanted:
            try:
                self._walk(mount, self._stopped.is_set)
            except (LedgerError, OSError) as exc:
                if str(exc) != complaint:
                    log.warning("scan.failed", path=mount, error=str(exc), reason="mount")
                complaint = str(exc)
                wanted = not self._stopped.wait(ERROR_S)
            else:
                wanted = self._next(mount)

    def _next(self, mount: str) -> bool:
        """The walk of this mount has ended; True if another one is wanted."""
        with self._lock:
            del self._began[mount]
            if mount not in self._again or self._stopped.is_set():
                return False
            self._began[mount] = self._again.pop(mount)
            return True
