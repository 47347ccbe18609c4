"""Permissions at the control socket: which users may control the daemon, and ask about which file."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from s3spool.control.peer import Peer
from s3spool.control.protocol import DeniedError
from s3spool.control.server import Handler
from s3spool.errors import ConfigError
from s3spool.logs.text import shown

_ACL = "system.posix_acl_access"
_READ, _SEARCH = 4, 1
_DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Sight(Enum):
    """The part of the answer about a file that a user may read."""

    ALL = "all"  #: the file is the user's own, or the user may read it or controls the daemon
    STATE = "state"  #: the file is gone, and the user may list the directory where it was
    NOTHING = "nothing"  #: else


class Access:
    """Rules for the control socket. Thread-safe."""

    def __init__(self, control_group: str, root: Path) -> None:
        """Raises ConfigError where the group does not exist."""
        self._control_group = control_group
        self._root = root
        self._gid: int | None = None
        if control_group:
            try:
                self._gid = grp.getgrnam(control_group).gr_gid
            except KeyError as exc:
                raise ConfigError("service.control_group", control_group, "there is no such group") from exc

    def controls(self, peer: Peer) -> bool:
        return peer.uid in {0, os.geteuid()} or self._gid in peer.groups

    def controllers_only(self, command: str, handler: Handler) -> Handler:
        def checked(request: Mapping[str, Any], peer: Peer) -> Any:
            if not self.controls(peer):
                raise DeniedError(f"{command}: permission denied: only {self._controllers()} may; use sudo")
            return handler(request, peer)

        return checked

    def checked(self, peer: Peer, path: str) -> Sight:
        """Raises DeniedError rather than return NOTHING. The error does not tell whether the file exists."""
        sight = self.sight(peer, path)
        if sight is Sight.NOTHING:
            raise DeniedError(
                f"{shown(path)}: permission denied: only those who own or may read it, and {self._controllers()},"
                " may ask; use sudo"
            )
        return sight

    def sight(self, peer: Peer, path: str) -> Sight:
        if self.controls(peer):
            return Sight.ALL
        *directories, name = path.split("/")
        try:
            reachable = all(
                peer.may(_SEARCH, os.stat(place), has_acl=_has_acl(place))
                for place in (self._root, *self._root.parents)
            )
            fd = os.open(self._root, _DIRECTORY_FLAGS)
        except OSError:
            return Sight.NOTHING
        try:
            for directory in directories:
                below = os.open(directory, _DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
                reachable &= _may(peer, _SEARCH, fd)
            return self._sight(peer, fd, name, reachable=reachable)
        except OSError:
            return Sight.NOTHING
        finally:
            os.close(fd)

    @staticmethod
    def _sight(peer: Peer, directory_fd: int, name: str, *, reachable: bool) -> Sight:
        """Raises OSError."""
        try:
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        except FileNotFoundError:
            return Sight.STATE if reachable and _may(peer, _READ, directory_fd) else Sight.NOTHING
        if status.st_uid == peer.uid:
            return Sight.ALL
        has_acl = _has_acl(f"/proc/self/fd/{directory_fd}/{name}")
        return Sight.ALL if reachable and peer.may(_READ, status, has_acl=has_acl) else Sight.NOTHING

    def _controllers(self) -> str:
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            user = str(os.geteuid())
        group = f" and members of group {self._control_group}" if self._control_group else ""
        return "root" + ("" if user == "root" else f", the daemon's user ({user})") + group


def _may(peer: Peer, right: int, directory_fd: int) -> bool:
    return peer.may(right, os.fstat(directory_fd), has_acl=_has_acl(f"/proc/self/fd/{directory_fd}/."))


def _has_acl(place: str | Path) -> bool:
    """Raises OSError."""
    try:
        os.getxattr(place, _ACL, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in {errno.ENODATA, errno.ENOTSUP}:
            return False
        raise
    return True
