"""Renames that replace nothing: relative to directory descriptors, with `.1`, `.2`, ... where a name is taken."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

_RENAME_NOREPLACE = 1  # renameat2(2)
_NAME_BYTES = 255  # the longest name that Linux allows
_NUMBERS = 10_000  # this many files may want one name
_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def noreplace(parent_fd: int, name: str, target: str, target_fd: int) -> None:
    """Raises OSError: FileExistsError where the target name is taken."""
    result = _renameat2(parent_fd, os.fsencode(name), target_fd, os.fsencode(target), _RENAME_NOREPLACE)
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), name, None, target)
    # A file system without RENAME_NOREPLACE: check first, which is all that can be done there.
    with contextlib.suppress(FileNotFoundError):
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(name, target, src_dir_fd=parent_fd, dst_dir_fd=target_fd)


def unless_taken(parent_fd: int, name: str, target: str, target_fd: int) -> bool:
    """False where the target name is taken. Raises OSError."""
    try:
        noreplace(parent_fd, name, target, target_fd)
    except FileExistsError:
        return False
    return True


def numbered(parent_fd: int, name: str, target: str, target_fd: int) -> str:
    """Append `.1`, `.2`, ... where the target name is taken; returns the name that was free. Raises OSError."""
    for number in range(_NUMBERS):
        candidate = cut(target, f".{number}" if number else "")
        if unless_taken(parent_fd, name, candidate, target_fd):
            return candidate
    raise FileExistsError(errno.EEXIST, "10,000 files of this name", target)


def cut(name: str, suffix: str = "") -> str:
    """The name and the suffix, with the name cut between characters to fit."""
    while len(os.fsencode(name)) + len(suffix) > _NAME_BYTES:
        name = name[:-1]
    return name + suffix
