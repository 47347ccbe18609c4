"""The spool folder, touched in ways that a hostile file name, symlink or FIFO cannot turn against us."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from s3spool.ledger.rows import Identity

OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # renameat2(2)
_libc = ctypes.CDLL(None, use_errno=True)


class NotAFileError(Exception):
    """A symlink, FIFO, socket, device or directory: never ours to send."""


class Lease(Enum):
    """What the lease test says of other openers (fcntl(2), F_SETLEASE)."""

    FREE = "free"  #: nobody has it open for writing
    BUSY = "busy"  #: somebody has
    UNKNOWN = "unknown"  #: not allowed or not supported here: only time tells


class Folder:
    """One directory tree. Thread-safe: it holds no state but the root's descriptor."""

    def __init__(self, root: Path) -> None:
        """Raises OSError when the root cannot be opened."""
        self.root = Path(os.path.realpath(root))
        self._fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.identity = self._identity_of(os.fstat(self._fd))

    def close(self) -> None:
        os.close(self._fd)

    def still_there(self) -> bool:
        """False when the path no longer leads to the directory that was opened: deleted, renamed, mounted over."""
        try:
            return self._identity_of(os.stat(self.root)) == self.identity
        except OSError:
            return False

    def reopen(self) -> bool:
        """Follow the path to the directory that stands there now; False if there is none."""
        try:
            fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        # dup2: other threads may be using the number at this moment.
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self.identity = self._identity_of(os.fstat(self._fd))
        return True

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """Open a regular file below the root for reading, following no symlink anywhere on the way.

        Raises NotAFileError, or OSError (FileNotFoundError where it is gone).
        """
        with self._parent(path) as (parent_fd, name):
            # Looked at first: opening alone lets a FIFO's writer through, and has effects of its own on devices.
            if not stat.S_ISREG(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
                raise NotAFileError(path)
            try:
                fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
            except OSError as exc:
                # ELOOP: a symlink; ENXIO: a socket, or a device without driver (open(2)).
                if exc.errno in {errno.ELOOP, errno.ENXIO}:
                    raise NotAFileError(path) from exc
                raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotAFileError(path)
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def identity_of(self, path: str) -> Identity | None:
        """The file's identity now, or None when there is no regular file of this name. Raises OSError."""
        try:
            with self._parent(path) as (parent_fd, name):
                status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, NotAFileError):
            return None
        return Identity.of(status) if stat.S_ISREG(status.st_mode) else None

    def unlink_if_same(self, path: str, identity: Identity) -> bool:
        """Remove the file if it is still the one that was sent; False and untouched otherwise. Raises OSError."""
        with self._parent(path) as (parent_fd, name):
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if Identity.of(status) != identity:
                return False
            os.unlink(name, dir_fd=parent_fd)
        return True

    def move_if_same(self, path: str, identity: Identity, archive: Path) -> Path | None:
        """Rename the file to the same relative path below `archive`, replacing nothing.

        A taken name gets `.1`, `.2`, ... appended. None and untouched if the file is no longer the one that was
        sent. Raises OSError.
        """
        target = archive / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._parent(path) as (parent_fd, name):
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if Identity.of(status) != identity:
                return None
            for number in range(10_000):
                candidate = target if number == 0 else target.with_name(f"{target.name}.{number}")
                try:
                    _rename_noreplace(parent_fd, name, candidate)
                except FileExistsError:
                    continue
                return candidate
        raise FileExistsError(errno.EEXIST, "10,000 archived files of this name", str(target))

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The directory that holds `path`, opened component by component without following symlinks."""
        *directories, name = path.split("/")
        fd = self._fd
        opened = -1
        try:
            for directory in directories:
                try:
                    fd = os.open(directory, DIRECTORY_FLAGS, dir_fd=fd)
                except OSError as exc:
                    if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                        raise NotAFileError(path) from exc
                    raise
                if opened >= 0:
                    os.close(opened)
                opened = fd
            yield fd, name
        finally:
            if opened >= 0:
                os.close(opened)

    @staticmethod
    def _identity_of(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino


def lease(fd: int) -> Lease:
    """Ask the kernel whether anybody has the file open for writing, by taking a read lease.

    On FREE the lease is held: call `release` soon, a writer's open(2) blocks until then.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as exc:
        return Lease.BUSY if exc.errno == errno.EAGAIN else Lease.UNKNOWN
    return Lease.FREE


def release(fd: int) -> None:
    """Give the lease back."""
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _rename_noreplace(parent_fd: int, name: str, target: Path) -> None:
    result = _libc.renameat2(parent_fd, os.fsencode(name), -100, os.fsencode(target), ctypes.c_uint(_RENAME_NOREPLACE))
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), name, None, str(target))
    # A file system without RENAME_NOREPLACE: look first; the archive is ours, so nobody races us there.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(name, target, src_dir_fd=parent_fd)
