"""Lists new directories on a separate thread, so that the thread that reads events never waits for a disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import structlog

LIMIT = 10_000  # waiting directories; a scan lists any others
log = structlog.get_logger()


class Lister:
    """A queue of directories, and the thread that lists them. `add` may be called from any thread, never blocks."""

    def __init__(self, name: str, list_directory: Callable[[str], None], rescan: Callable[[str], None]) -> None:
        """`rescan(reason)` is called where a directory could not be listed, or there are too many."""
        self._name = name
        self._list_directory = list_directory
        self._rescan = rescan
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()  # the waiting ones
        self._wake = threading.Condition()
        self._listing = False
        self._closed = False
        self._thread: threading.Thread | None = None  # started by the first directory

    def add(self, directory: str) -> None:
        with self._wake:
            if self._closed or directory in self._known:
                return
            full = len(self._waiting) >= LIMIT
            if not full:
                self._waiting.append(directory)
                self._known.add(directory)
                self._start()
                self._wake.notify()
        if full:
            self._rescan("full")

    def idle(self) -> bool:
        """Whether all added directories have been listed."""
        with self._wake:
            return not self._waiting and not self._listing

    def close(self) -> None:
        """The thread ends after the directory that it lists now; this does not wait for it."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread left: the next directory tries again, and so does the scan
                self._thread = None
                self._rescan("error")

    def _run(self) -> None:
        while (directory := self._next()) is not None:
            try:
                self._list_directory(directory)
            except Exception:
                log.exception("library.warning", message="a new directory could not be listed; rescanning")
                self._rescan("error")

    def _next(self) -> str | None:
        with self._wake:
            self._listing = False
            while not self._waiting and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
            directory = self._waiting.popleft()
            self._known.discard(directory)
            self._listing = True
            return directory
