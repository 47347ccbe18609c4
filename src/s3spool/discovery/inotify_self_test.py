"""An event of our own making: whether what the kernel tells still reaches us."""

from __future__ import annotations

import os

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchCallback

OPEN = int(InotifyConstants.IN_OPEN)


class InotifySelfTest:
    """A file that nobody else has, watched: opening it comes back as an event if all is well between kernel and us."""

    def __init__(self, inotify: InotifyFD, callback: WatchCallback) -> None:
        """Raises OSError."""
        self._fd = os.memfd_create("s3spool-echo")
        self._path = b"/proc/self/fd/%d" % self._fd
        try:
            self._wd = inotify.add_callback(self._path, Mask(OPEN), callback, CallbackId(0))
        except OSError:
            os.close(self._fd)
            raise
        self._heard = False

    def cause(self) -> bool:
        """False where no event may be counted on: none has ever come back."""
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
