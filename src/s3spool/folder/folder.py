"""The spool folder, touched in ways that a hostile file name, symlink or FIFO cannot turn against us."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

from s3spool.folder.hard_links import HardLinks
from s3spool.ledger.rows import Identity

OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # renameat2(2)
REMOVING = ".s3spool-removing."  # a file that is on its way out, for the microseconds that takes
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
_NAME_BYTES = 255  # the longest name that Linux knows
_NUMBERS = 10_000  # so many files may want one name
_LIBC = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437  # the number of openat2(2) on every architecture that Python's wheels are made for
_RESOLVE_NO_SYMLINKS = 0x04
_NO_OPENAT2 = {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.ENAMETOOLONG}
_renameat2 = _LIBC.renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_AS_DIRECTORY = _OpenHow(flags=DIRECTORY_FLAGS, resolve=_RESOLVE_NO_SYMLINKS)


class NotAFileError(Exception):
    """A symlink, FIFO, socket, device or directory: never ours to send."""


class SpecialBitsError(PermissionError):
    """Only the owner may take a file's set-ID and sticky bits away."""


class Lease(Enum):
    """What the lease test says of other openers (fcntl(2), F_SETLEASE)."""

    FREE = "free"  #: nobody has it open for writing
    BUSY = "busy"  #: somebody has
    UNKNOWN = "unknown"  #: not allowed or not supported here: only time tells


class Folder:
    """One directory tree. Thread-safe; no two threads may remove the same file at a time."""

    def __init__(self, root: Path) -> None:
        """Raises OSError when the root cannot be opened."""
        self.root = Path(os.path.realpath(root))
        self._fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.identity = self._identity_of(os.fstat(self._fd))
        self._removing: set[str] = set()  # by the threads that remove
        self._hard_links = HardLinks()

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

    def is_same(self, sent: Identity, found: Identity) -> bool:
        """Whether a file is as it was, but for the removal of other names of it, by us."""
        return self._hard_links.same(sent, found)

    def unlink_if_same(self, path: str, identity: Identity) -> bool:
        """Remove the file if it is still the one that was sent; False and untouched otherwise. Raises OSError."""
        with self._parent(path) as (parent_fd, name):
            found = _identity(parent_fd, name)
            if not self.is_same(identity, found):
                return False
            # Not by its name: another file may be renamed over it between the look and the removal, and a writer
            # that replaces one file again and again hits that moment (10 us) sooner or later.
            aside = _cut(REMOVING + name)
            removing = f"{path[: len(path) - len(name)]}{aside}"
            self._removing.add(removing)
            try:
                if not _put_back(parent_fd, name, parent_fd, aside):
                    # Left by a process that died, and no scan has come to it: it may never have been sent.
                    _give_back(parent_fd, aside, parent_fd, name)
                    _rename_noreplace(parent_fd, name, aside, parent_fd)
                try:
                    if self._unlink(parent_fd, aside, found):
                        return True
                except OSError:
                    with contextlib.suppress(OSError):
                        _give_back(parent_fd, aside, parent_fd, name)
                    raise
                _give_back(parent_fd, aside, parent_fd, name)
            finally:
                self._removing.discard(removing)
        return False

    def _unlink(self, parent_fd: int, aside: str, found: Identity) -> bool:
        """False and untouched if it is not what was `found` under its own name."""
        status = os.stat(aside, dir_fd=parent_fd, follow_symlinks=False)
        if Identity.of(status)[:4] != found[:4]:  # a rename changes ctime
            return False
        fd = -1
        if status.st_nlink > 1:
            with contextlib.suppress(OSError):
                fd = os.open(aside, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            os.unlink(aside, dir_fd=parent_fd)
            if fd >= 0:
                self._hard_links.note(found, os.fstat(fd))
        finally:
            if fd >= 0:
                os.close(fd)
        return True

    def restore(self, path: str, sent: Identity | None) -> None:
        """Give a file its name back that a process which died was about to remove. Raises OSError.

        Where another file has the name by now: removed if it is `sent`, the content that S3 has confirmed under this
        name; else `.1`, `.2`, ... is appended, and it is sent as that.
        """
        if path in self._removing:
            return
        with self._parent(path) as (parent_fd, aside):
            name = original(aside)
            if _put_back(parent_fd, aside, parent_fd, name):
                return
            status = os.stat(aside, dir_fd=parent_fd, follow_symlinks=False)
            if sent is not None and stat.S_ISREG(status.st_mode) and Identity.of(status)[:4] == sent[:4]:
                os.unlink(aside, dir_fd=parent_fd)
                return
            _give_back(parent_fd, aside, parent_fd, name)

    def move_if_same(self, path: str, identity: Identity, archive: Path) -> Path | None:
        """Rename the file to the same relative path below `archive`, replacing nothing.

        A taken name gets `.1`, `.2`, ... appended, and is cut where it would be too long with it. None and untouched
        if the file is no longer the one that was sent. Raises OSError.
        """
        target = archive / path
        with self._parent(path) as (parent_fd, name), _made_below(archive, target) as archive_fd:
            found = _identity(parent_fd, name)
            if not self.is_same(identity, found):
                return None
            _drop_special_bits(parent_fd, name)
            for number in range(_NUMBERS):
                candidate = _cut(name, f".{number}" if number else "")
                try:
                    _rename_noreplace(parent_fd, name, candidate, archive_fd)
                except FileExistsError:
                    continue
                status = os.stat(candidate, dir_fd=archive_fd, follow_symlinks=False)
                if Identity.of(status)[:4] != found[:4]:
                    # Something took the name between the look and the move, and has not been sent.
                    self._take_back(archive_fd, candidate, parent_fd, name)
                    return None
                if status.st_nlink > 1:
                    self._hard_links.note(found, status)
                return target.with_name(candidate)
        raise FileExistsError(errno.EEXIST, "10,000 archived files of this name", str(target))

    def _take_back(self, archive_fd: int, moved: str, parent_fd: int, name: str) -> None:
        try:
            _give_back(archive_fd, moved, parent_fd, name)
        except FileNotFoundError:  # its directory was empty for a moment, and was removed
            _give_back(archive_fd, moved, self._fd, name)

    def _parent(self, path: str) -> contextlib.AbstractContextManager[tuple[int, str]]:
        """The directory that holds `path`, opened component by component without following symlinks."""
        if "/" not in path:
            return contextlib.nullcontext((self._fd, path))
        return self._deep_parent(path)

    @contextlib.contextmanager
    def _deep_parent(self, path: str) -> Iterator[tuple[int, str]]:
        *directories, name = path.split("/")
        with _below(self._fd, directories) as fd:
            yield fd, name

    @staticmethod
    def _identity_of(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino


def original(aside: str) -> str:
    """The name, or path, that a file on its way out had."""
    directory, slash, name = aside.rpartition("/")
    return directory + slash + name.removeprefix(REMOVING)


@contextlib.contextmanager
def opened_directory(root: str | bytes | Path, directory: str) -> Iterator[int]:
    """A descriptor (O_PATH) of the directory ("" or "a/b/") that `root` leads to now, whatever its depth.

    Only the root may be reached through symlinks. Raises NotAFileError, OSError.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _below(root_fd, directory.split("/")[:-1]) as fd:
            yield fd
    finally:
        os.close(root_fd)


@contextlib.contextmanager
def listed(directory_fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of an opened directory; they may be asked for their stat as long as this lasts. Raises OSError."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


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


@contextlib.contextmanager
def _below(fd: int, directories: Sequence[str]) -> Iterator[int]:
    """The directory that lies so many names below `fd`: a symlink anywhere is an error."""
    opened = _opened_below(fd, "/".join(directories)) if directories else -1
    try:
        yield opened if opened >= 0 else fd
    finally:
        if opened >= 0:
            os.close(opened)


def _opened_below(fd: int, path: str) -> int:
    """Raises NotAFileError, OSError."""
    # One system call however deep the path is: name by name, 500 levels take 500 times as long.
    size = ctypes.sizeof(_AS_DIRECTORY)
    opened: int = _LIBC.syscall(_OPENAT2, fd, os.fsencode(path), ctypes.byref(_AS_DIRECTORY), ctypes.c_size_t(size))
    if opened >= 0:
        return opened
    code = ctypes.get_errno()
    if code in _NO_OPENAT2:  # before Linux 5.6, or forbidden by a sandbox that does not know it
        return _opened_by_steps(fd, path)
    raise _translated(OSError(code, os.strerror(code), path))


def _opened_by_steps(fd: int, path: str) -> int:
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
def _made_below(archive: Path, target: Path) -> Iterator[int]:
    """The directory of `target`, made where it is missing. Raises OSError.

    No symlink below `archive` is followed: one that was moved there under a file's name would lead files anywhere.
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


def _identity(parent_fd: int, name: str) -> Identity:
    """Raises OSError."""
    return Identity.of(os.stat(name, dir_fd=parent_fd, follow_symlinks=False))


def _give_back(moved_fd: int, moved: str, parent_fd: int, name: str) -> None:
    """What was moved has not been sent: its name again, or `.1`, `.2`, ... where that is taken. Raises OSError."""
    for number in range(_NUMBERS):
        if _put_back(moved_fd, moved, parent_fd, _cut(name, f".{number}" if number else "")):
            return


def _put_back(moved_fd: int, moved: str, parent_fd: int, name: str) -> bool:
    """False where the name is taken. Raises OSError."""
    try:
        _rename_noreplace(moved_fd, moved, name, parent_fd)
    except FileExistsError:
        return False
    return True


def _drop_special_bits(parent_fd: int, name: str) -> None:
    """Before a file is archived: set-user-ID and set-group-ID would outlive there the right to drop files here."""
    if not os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode & _SPECIAL_BITS:
        return
    fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
    try:
        os.fchmod(fd, os.fstat(fd).st_mode & 0o777)
    except PermissionError as exc:
        raise SpecialBitsError(exc.errno, "has a set-ID or sticky bit that only its owner may remove", name) from exc
    finally:
        os.close(fd)


def _cut(name: str, suffix: str = "") -> str:
    """As much of a name as there is room for, not ending in half a character."""
    while len(os.fsencode(name)) + len(suffix) > _NAME_BYTES:
        name = name[:-1]
    return name + suffix


def _rename_noreplace(parent_fd: int, name: str, target: str, target_fd: int) -> None:
    result = _renameat2(parent_fd, os.fsencode(name), target_fd, os.fsencode(target), _RENAME_NOREPLACE)
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(code, os.strerror(code), name, None, target)
    # A file system without RENAME_NOREPLACE: look first, which is all that can be done there.
    with contextlib.suppress(FileNotFoundError):
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(name, target, src_dir_fd=parent_fd, dst_dir_fd=target_fd)
