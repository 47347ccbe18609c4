"""One inotify instance with one callback.

It is watchdog's InotifyFD without its table of watches, which takes half a KiB per watch, and without the events that
nobody wants.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

from watchdog.observers import inotify_c
from watchdog.observers.inotify_c import (
    DEFAULT_EVENT_BUFFER_SIZE,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

from s3spool.folder.folder import REMOVING
from s3spool.heartbeat import Heartbeat

_OVERFLOW = int(InotifyConstants.IN_Q_OVERFLOW)
_ONLY_OF_DIRECTORIES = int(InotifyConstants.IN_MOVED_FROM | InotifyConstants.IN_ATTRIB)
_ISDIR = int(InotifyConstants.IN_ISDIR)
_OWN_REMOVAL = os.fsencode(REMOVING)

REMOVALS_S = 0.005  # how long removals gather: waking for each takes a tenth of the CPU time of a small file


class Inotify(InotifyFD):
    """Watchdog's thread that reads events; thread-safe. After `stop` no watch is added or removed."""

    def __init__(self, callback: WatchCallback, heartbeat: Heartbeat) -> None:
        """The thread beats while it waits for events. Raises OSError."""
        super().__init__()
        self.name = "watch"
        self._callback = callback
        self._heartbeat = heartbeat

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

    def read_events(self, *, event_buffer_size: int = DEFAULT_EVENT_BUFFER_SIZE) -> list[InotifyEvent]:
        """Block until there are events.

        Left out, before watchdog makes objects of them: files that leave or get other attributes, and our own removals,
        which rename the file first. These are two of the three events of a small file.
        """
        buffer = self._read_event_buffer(event_buffer_size)
        events = [
            InotifyEvent(wd, mask, cookie, name)
            for wd, mask, cookie, name in self._parse_event_buffer(buffer)
            if (wd != -1 or mask & _OVERFLOW)
            and (mask & _ISDIR or not mask & _ONLY_OF_DIRECTORIES)
            and not name.startswith(_OWN_REMOVAL)
        ]
        if not events:
            time.sleep(REMOVALS_S)  # nothing but removals: more of them follow
        return events

    def _check_inotify_fd(self) -> bool:
        """Wait for events; watchdog's own wait has no end, and no heartbeat."""
        if self._poller is None:
            return super()._check_inotify_fd()
        ready: list[tuple[int, int]] = []
        while not ready:
            self._heartbeat.beat()
            ready = self._poller.poll(self._heartbeat.capped(None) * 1000)
        return any(fd == self._inotify_fd for fd, _ in ready)

    def handle_event(self, event: InotifyEvent) -> None:
        if event.is_queue_overflow:
            self._callback.on_queue_overflow()
        elif event.is_ignored:
            self._callback.on_watch_deleted(event.wd)
        else:
            self._callback.on_event(event)
