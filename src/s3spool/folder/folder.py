"""The watched folder: files opened and removed so that no name, symlink, FIFO or race can do harm."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from s3spool.folder import rename
from s3spool.folder.directories import NotAFileError, made_below, opened_below
from s3spool.folder.hard_links import HardLinks
from s3spool.ledger.rows import Identity

OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
REMOVING = ".s3spool-removing."  # prefix of the name that a file has for the microseconds of its removal
REMOVING_SHARED = ".s3spool-removing-[0-9]*.*"  # the same, with the number of one of several daemons
_ASIDE = re.compile(r"\.s3spool-removing(?:-([0-9]+))?\.")
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


class SpecialBitsError(PermissionError):
    """Only the owner may clear a file's set-ID and sticky bits."""


class Folder:
    """One directory tree. Thread-safe, but no two threads may remove the same file at once."""

    def __init__(self, root: Path, owner: Callable[[], int] = lambda: 0) -> None:
        """`owner`: the number of this daemon, where several remove files. Raises OSError if `root` cannot be opened."""
        self._owner = owner
        self.root = Path(os.path.realpath(root))
        self._fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.identity = self._identity_of(os.fstat(self._fd))
        self._removing: set[str] = set()  # paths that a thread of this process is removing
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
        """Open the directory that the path leads to now; False if there is none."""
        try:
            fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        # dup2: other threads may be using the descriptor at this moment.
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self.identity = self._identity_of(os.fstat(self._fd))
        return True

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """Open a regular file below the root for reading, following no symlink anywhere on the way.

        Raises NotAFileError, or OSError (FileNotFoundError where it is gone).
        """
        if "/" not in path:  # most files; a context manager takes a microsecond
            return _opened(self._fd, path)
        with self._deep_parent(path) as (parent_fd, name):
            return _opened(parent_fd, name)

    def identity_of(self, path: str) -> Identity | None:
        """The file's identity now, or None when there is no regular file of this name. Raises OSError."""
        try:
            with self._parent(path) as (parent_fd, name):
                status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, NotAFileError):
            return None
        return Identity.of(status) if stat.S_ISREG(status.st_mode) else None

    def is_same(self, sent: Identity, found: Identity) -> bool:
        """Whether a file is unchanged; our own removal of its other hard links does not count."""
        return self._hard_links.same(sent, found)

    def unlink_if_same(self, path: str, identity: Identity) -> bool:
        """Remove the file if it is still the one that was sent; False and untouched otherwise. Raises OSError."""
        if "/" not in path:
            return self._unlink_in(self._fd, path, path, identity)
        with self._deep_parent(path) as (parent_fd, name):
            return self._unlink_in(parent_fd, name, path, identity)

    def _unlink_in(self, parent_fd: int, name: str, path: str, identity: Identity) -> bool:
        found = _identity(parent_fd, name)
        if not self.is_same(identity, found):
            return False
        # Rename before unlink: a writer may replace the file between the check and the unlink (10 us).
        owner = self._owner()
        aside = rename.cut(f"{REMOVING[:-1]}-{owner}.{name}" if owner else REMOVING + name)
        removing = f"{path[: len(path) - len(name)]}{aside}"
        self._removing.add(removing)
        try:
            if not rename.unless_taken(parent_fd, name, aside, parent_fd):
                # Left by a process that died, and not restored by a scan yet: it may never have been sent.
                rename.numbered(parent_fd, aside, name, parent_fd)
                rename.noreplace(parent_fd, name, aside, parent_fd)
            try:
                if self._unlink(parent_fd, aside, found):
                    return True
            except OSError:
                with contextlib.suppress(OSError):
                    rename.numbered(parent_fd, aside, name, parent_fd)
                raise
            rename.numbered(parent_fd, aside, name, parent_fd)
        finally:
            self._removing.discard(removing)
        return False

    def _unlink(self, parent_fd: int, aside: str, found: Identity) -> bool:
        """Unlink the renamed file if it is still the one `found` before the rename; else return False."""
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
        """Rename back a file whose removal a process that died had begun. Raises OSError.

        If another file has the name by now, a file that is `sent` (S3 has confirmed it) is removed. Any other one gets
        `.1`, `.2`, ... appended, and is sent under that name.
        """
        if path in self._removing:
            return
        with self._parent(path) as (parent_fd, aside):
            name = original(aside)
            if rename.unless_taken(parent_fd, aside, name, parent_fd):
                return
            if sent is not None and _identity(parent_fd, aside)[:4] == sent[:4]:
                os.unlink(aside, dir_fd=parent_fd)
                return
            rename.numbered(parent_fd, aside, name, parent_fd)

    def move_if_same(self, path: str, identity: Identity, archive: Path) -> Path | None:
        """Rename the file to the same relative path below `archive`, replacing nothing.

        A taken name gets `.1`, `.2`, ... appended. None and untouched if the file is no longer the one that was sent.
        Raises OSError.
        """
        target = archive / path
        with self._parent(path) as (parent_fd, name), made_below(archive, target) as archive_fd:
            found = _identity(parent_fd, name)
            if not self.is_same(identity, found):
                return None
            _drop_special_bits(parent_fd, name)
            archived = rename.numbered(parent_fd, name, name, archive_fd)
            status = os.stat(archived, dir_fd=archive_fd, follow_symlinks=False)
            if Identity.of(status)[:4] != found[:4]:
                # Another file took the name between the check and the move, and has not been sent.
                self._move_back(archive_fd, archived, parent_fd, name)
                return None
            if status.st_nlink > 1:
                self._hard_links.note(found, status)
            return target.with_name(archived)

    def _move_back(self, archive_fd: int, archived: str, parent_fd: int, name: str) -> None:
        try:
            rename.numbered(archive_fd, archived, name, parent_fd)
        except FileNotFoundError:  # its directory was empty for a moment, and was removed
            rename.numbered(archive_fd, archived, name, self._fd)

    def _parent(self, path: str) -> contextlib.AbstractContextManager[tuple[int, str]]:
        """The opened directory that holds `path`, and the name in it; follows no symlink."""
        if "/" not in path:
            return contextlib.nullcontext((self._fd, path))
        return self._deep_parent(path)

    @contextlib.contextmanager
    def _deep_parent(self, path: str) -> Iterator[tuple[int, str]]:
        *directories, name = path.split("/")
        with opened_below(self._fd, directories) as fd:
            yield fd, name

    @staticmethod
    def _identity_of(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino


def close_quietly(fd: int) -> None:
    """Close a descriptor that was only read: an error (of FUSE, for example) says nothing about the content."""
    with contextlib.suppress(OSError):
        os.close(fd)


def original(aside: str) -> str:
    """The name or path that a file had before its removal began."""
    directory, slash, name = aside.rpartition("/")
    return directory + slash + _ASIDE.sub("", name, count=1)


def removed_by(name: str) -> int | None:
    """The number of the daemon that was removing the file of this name (0: it had none); None for other names."""
    found = _ASIDE.match(name)
    return int(found[1] or 0) if found else None


def _identity(parent_fd: int, name: str) -> Identity:
    """Raises OSError."""
    return Identity.of(os.stat(name, dir_fd=parent_fd, follow_symlinks=False))


def _drop_special_bits(parent_fd: int, name: str) -> None:
    """An archived set-ID program would work longer than its owner has the right to drop files here."""
    if not os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode & _SPECIAL_BITS:
        return
    fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
    try:
        os.fchmod(fd, os.fstat(fd).st_mode & 0o777)
    except PermissionError as exc:
        raise SpecialBitsError(exc.errno, "has a set-ID or sticky bit that only its owner may remove", name) from exc
    finally:
        os.close(fd)


def _opened(parent_fd: int, name: str) -> tuple[int, os.stat_result]:
    """As `Folder.open`, with the directory opened already."""
    # Check before opening: an open unblocks the writer of a FIFO, and can have effects on a device.
    if not stat.S_ISREG(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
        raise NotAFileError(name)
    try:
        fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
    except OSError as exc:
        # ELOOP: a symlink; ENXIO: a socket, or a device without driver (open(2)).
        if exc.errno in {errno.ELOOP, errno.ENXIO}:
            raise NotAFileError(name) from exc
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFileError(name)
    except BaseException:
        os.close(fd)
        raise
    return fd, status
