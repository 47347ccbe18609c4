"""What an open file says of itself besides its content: owner, mode, extended attributes."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Collection
from functools import lru_cache

_NONE = {errno.ENODATA, errno.ENOTSUP}


def read_attributes(fd: int, wanted: Collection[str]) -> dict[str, str]:
    """`owner`, `mode` and `xattr:user.NAME`, as far as wanted; "" for one that is not there. Raises OSError."""
    status = os.fstat(fd)
    found: dict[str, str] = {}
    for name in wanted:
        if name == "owner":
            found[name] = _owner(status.st_uid)
        elif name == "mode":
            found[name] = f"{stat.S_IMODE(status.st_mode):04o}"
        else:
            found[name] = _xattr(fd, name.removeprefix("xattr:"))
    return found


@lru_cache(maxsize=1000)
def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _xattr(fd: int, name: str) -> str:
    try:
        return os.fsdecode(os.getxattr(fd, name))
    except OSError as exc:
        if exc.errno in _NONE:
            return ""
        raise
