"""Walks other devices mounted below the root, on one thread each: a hanging mount does not stop the scan."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from s3spool.errors import LedgerError
from s3spool.folder.slow_directories import SlowDirectories

WAIT_S = 5.0  # a scan waits this long for the walks of mounts
log = structlog.get_logger()


class MountScans:
    """Called by the scan thread. A mount whose last walk has not ended is not walked again."""

    def __init__(self, slow: SlowDirectories, walk: Callable[[str, Callable[[], bool]], None]) -> None:
        """`walk(directory, stopped)` offers all files below the directory ("a/b/"); it may block."""
        self._slow = slow
        self._walk = walk
        self._threads: dict[str, threading.Thread] = {}
        self._late: set[str] = set()  # mounts that the scan no longer waits for
        self._stopped = threading.Event()

    def start(self) -> frozenset[str]:
        """Begin to walk the mounts; returns their directories, which the scan itself has to leave out."""
        mounts = self._slow.mounts
        for mount in mounts:
            if mount not in self._threads or not self._threads[mount].is_alive():
                self._late.discard(mount)
                thread = threading.Thread(target=self._run, args=(mount,), name=f"scan {mount}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread left: the next scan tries again
                    continue
                self._threads[mount] = thread
        self._threads = {mount: thread for mount, thread in self._threads.items() if thread.is_alive()}
        return frozenset(mounts)

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
        try:
            self._walk(mount, self._stopped.is_set)
        except (LedgerError, OSError) as exc:
            log.warning("scan.failed", path=mount, error=str(exc), reason="mount")
