"""The inotify self-test: an event that the daemon causes has to arrive."""

from __future__ import annotations

import os

from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent

from s3spool.discovery.inotify import Inotify

OPEN = int(InotifyConstants.IN_OPEN)


class InotifySelfTest:
    """Watches a private memory file; each open of it has to arrive as an event."""

    def __init__(self, inotify: Inotify) -> None:
        """Raises OSError."""
        self._fd = os.memfd_create("s3spool-echo")
        self._path = b"/proc/self/fd/%d" % self._fd
        try:
            self._wd = inotify.add(self._path, OPEN)
        except OSError:
            os.close(self._fd)
            raise
        self._heard = False

    def cause(self) -> bool:
        """Cause an event; False if it may not arrive, because none has arrived yet."""
        try:
            os.close(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:  # no descriptor left
            return False
        return self._heard

    def is_it(self, event: InotifyEvent) -> bool:
        if event.wd != self._wd:
            return False
        self._heard = True
        return True

    def close(self) -> None:
        os.close(self._fd)
