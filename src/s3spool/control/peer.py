"""The user at the other end of a Unix socket, as the kernel reports it."""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import NamedTuple, Self

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_GROUPS_BYTES = 1024  # the most that getsockopt() of Python takes: 256 groups
_CREDENTIALS = struct.Struct("iII")


class Peer(NamedTuple):
    """The credentials of the other process at its connect(2), which it cannot forge."""

    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """Raises OSError."""
        _, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
        except OSError:  # more groups than that, or a kernel without the option: the first group counts alone
            raw = b""
        return cls(uid, frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))

    def may(self, right: int, status: os.stat_result, *, has_acl: bool = False) -> bool:
        """Whether the mode grants `right` (4 read, 1 search). The owner may always: chmod is the owner's.

        An access control list may deny what the mode grants, so with one only the owner is granted anything.
        """
        if self.uid in {0, status.st_uid}:
            return True
        if has_acl:
            return False
        mode = stat.S_IMODE(status.st_mode)
        return bool((mode >> 3 if status.st_gid in self.groups else mode) & right)
