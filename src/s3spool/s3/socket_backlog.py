"""What libcurl has handed to the kernel and the other side has not acknowledged: a thin line takes a minute for it."""

from __future__ import annotations

import fcntl
import os
import struct
import termios


class Unsent:
    """Of the connection of one handle."""

    def __init__(self) -> None:
        self._sockets: list[tuple[int, int]] = []  # descriptor and inode: IPv6 and IPv4 may be tried side by side

    def note(self, descriptor: int, _purpose: int) -> int:
        """Libcurl's callback for a socket that it has made (CURLOPT_SOCKOPTFUNCTION(3))."""
        self._sockets = [*self._sockets[-3:], (descriptor, os.fstat(descriptor).st_ino)]
        return 0

    def count(self) -> int:
        """Bytes of the latest of its sockets that is open; 0 where there is none (tcp(7), SIOCOUTQ)."""
        left = bytearray(4)
        for descriptor, inode in reversed(self._sockets):
            try:
                if os.fstat(descriptor).st_ino == inode:  # else it is closed, and its number another file's
                    fcntl.ioctl(descriptor, termios.TIOCOUTQ, left)
                    return int(struct.unpack("i", left)[0])
            except OSError:
                continue
        return 0
