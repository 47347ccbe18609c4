"""Directories below the root, opened and listed without following a symlink."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIBC = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # the number of openat2(2) on every architecture that Python's wheels are made for
_RESOLVE_NO_SYMLINKS = 0x04
_NO_OPENAT2 = {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.ENAMETOOLONG}


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_AS_DIRECTORY = _OpenHow(flags=DIRECTORY_FLAGS, resolve=_RESOLVE_NO_SYMLINKS)


class NotAFileError(Exception):
    """A symlink, FIFO, socket, device or directory: never sent."""


@contextlib.contextmanager
def opened_directory(root: str | bytes | Path, directory: str) -> Iterator[int]:
    """A descriptor (O_PATH) of the directory ("" or "a/b/") below `root`, at any depth.

    Only the root may be reached through symlinks. Raises NotAFileError, OSError.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with opened_below(root_fd, directory.split("/")[:-1]) as fd:
            yield fd
    finally:
        os.close(root_fd)


@contextlib.contextmanager
def listed(directory_fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of an opened directory; their `stat` works only inside the `with` block. Raises OSError."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_below(fd: int, directories: Sequence[str]) -> Iterator[int]:
    """A descriptor of the directory reached from `fd` through these names; a symlink anywhere is an error."""
    opened = _openat2(fd, "/".join(directories)) if directories else -1
    try:
        yield opened if opened >= 0 else fd
    finally:
        if opened >= 0:
            os.close(opened)


def _openat2(fd: int, path: str) -> int:
    """Raises NotAFileError, OSError."""
    # One system call at any depth: opened one by one, 500 levels take 500 times as long.
    size = ctypes.sizeof(_AS_DIRECTORY)
    opened: int = _LIBC.syscall(_OPENAT2, fd, os.fsencode(path), ctypes.byref(_AS_DIRECTORY), ctypes.c_size_t(size))
    if opened >= 0:
        return opened
    code = ctypes.get_errno()
    if code in _NO_OPENAT2:  # before Linux 5.6, or denied by an older sandbox
        return _open_by_steps(fd, path)
    raise _translated(OSError(code, os.strerror(code), path))


def _open_by_steps(fd: int, path: str) -> int:
    opened = -1
    try:
        for directory in path.split("/"):
            below = os.open(directory, DIRECTORY_FLAGS, dir_fd=fd if opened < 0 else opened)
            if opened >= 0:
                os.close(opened)
            opened = below
    except OSError as exc:
        if opened >= 0:
            os.close(opened)
        raise _translated(exc) from exc
    return opened


def _translated(error: OSError) -> Exception:
    return NotAFileError(error.filename) if error.errno in {errno.ELOOP, errno.ENOTDIR} else error


@contextlib.contextmanager
def made_below(archive: Path, target: Path) -> Iterator[int]:
    """A descriptor of the directory of `target`; missing directories are created. Raises OSError.

    Follows no symlink below `archive`: an archived symlink could lead files out of the archive.
    """
    archive.mkdir(parents=True, exist_ok=True)
    directories = target.parent.relative_to(archive).parts
    fd = os.open(archive, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, dir_fd=fd)
            below = os.open(directory, DIRECTORY_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)
