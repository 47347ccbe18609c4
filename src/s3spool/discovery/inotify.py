"""One inotify instance with one callback: watchdog's own table of watches takes half a KiB per watch."""

from __future__ import annotations

import ctypes
import errno
import os

from watchdog.observers import inotify_c
from watchdog.observers.inotify_c import InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor


class Inotify(InotifyFD):
    """Watchdog's thread that reads events; thread-safe. After `stop` no watch is added or removed."""

    def __init__(self, callback: WatchCallback) -> None:
        """Raises OSError."""
        super().__init__()
        self.name = "watch"
        self._callback = callback

    def add(self, path: bytes, mask: int) -> WatchDescriptor:
        """Watch this path; a watched inode keeps its descriptor. Raises OSError."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            wd = inotify_c.inotify_add_watch(self._inotify_fd, path, Mask(mask))
        if wd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return wd

    def remove(self, wds: list[WatchDescriptor]) -> None:
        """Remove these watches; a watch that the kernel has removed already is no error."""
        with self._lock:
            for wd in wds:
                if not self._closed:
                    inotify_c.inotify_rm_watch(self._inotify_fd, wd)

    def handle_event(self, event: InotifyEvent) -> None:
        if event.is_queue_overflow:
            self._callback.on_queue_overflow()
        elif event.is_ignored:
            self._callback.on_watch_deleted(event.wd)
        else:
            self._callback.on_event(event)
