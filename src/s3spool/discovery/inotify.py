"""The inotify thread: watchdog's InotifyFD, without the events that nobody wants."""

from __future__ import annotations

import os

from watchdog.observers.inotify_c import DEFAULT_EVENT_BUFFER_SIZE, InotifyConstants, InotifyEvent, InotifyFD

from s3spool.folder.folder import REMOVING
from s3spool.heartbeat import Heartbeat

_OVERFLOW = int(InotifyConstants.IN_Q_OVERFLOW)
_FROM_OR_DIRECTORY = int(InotifyConstants.IN_MOVED_FROM | InotifyConstants.IN_ISDIR)
_FILE_MOVED_FROM = int(InotifyConstants.IN_MOVED_FROM)
_OWN_REMOVAL = os.fsencode(REMOVING)


class Inotify(InotifyFD):
    """One thread that reads events and calls back.

    Our own removal of a file renames it first (see Folder.unlink_if_same): two of the three events of a small file.
    Leaving them out before watchdog makes objects of them saves a thirtieth of all CPU time.
    """

    def __init__(self, heartbeat: Heartbeat) -> None:
        """Raises OSError."""
        super().__init__()
        self._heartbeat = heartbeat

    def read_events(self, *, event_buffer_size: int = DEFAULT_EVENT_BUFFER_SIZE) -> list[InotifyEvent]:
        """Block until there are events."""
        buffer = self._read_event_buffer(event_buffer_size)
        self._heartbeat.beat()
        return [
            InotifyEvent(wd, mask, cookie, name)
            for wd, mask, cookie, name in self._parse_event_buffer(buffer)
            if (wd != -1 or mask & _OVERFLOW)
            and mask & _FROM_OR_DIRECTORY != _FILE_MOVED_FROM
            and not name.startswith(_OWN_REMOVAL)
        ]
