"""The state directory's files: regular files that belong to the directory's owner.

The owner can plant a link between any check and SQLite's open. So root becomes the owner first: then a link leads to
nothing that the owner could not write to without root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3spool.errors import LedgerError, S3SpoolError

SIDES = ("", "-wal", "-shm")  # the ledger's three files
_NO_GROUP = 65_534  # for a user without a name whose directory belongs to root's group
_MOVE = "move it away or set state.directory"

_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h
_KEPT = 1 << 2 | 1 << 28  # CAP_DAC_READ_SEARCH, CAP_LEASE


def become_owner(directory: Path) -> str:
    """As root, become the owner of `directory` for good. Returns one line about it, "" where nothing changes.

    Root may go on reading what it could read (this program may be below /root), but writes as the owner only. Call it
    before a thread is started and before anything in the directory is opened. Raises S3SpoolError.
    """
    if os.geteuid() != 0:
        return ""
    nearest = next(place for place in (directory, *directory.parents) if os.path.lexists(place))
    try:
        owner = os.stat(nearest)  # where there is no directory yet, the owner of its parent creates it
    except OSError:
        return ""  # opening it reports the error
    _refuse_foreign_links(directory, owner.st_uid)
    if owner.st_uid == 0:
        return ""
    name, group, groups = _account(owner)
    directory_of = f"state.directory = {directory}"
    try:
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups(groups)
        os.setresgid(group, group, group)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    except OSError as exc:
        raise S3SpoolError(
            f"{directory_of}: belongs to {name}, whom this process cannot become ({exc.strerror}); run it as that user"
        ) from exc
    _keep_reading()
    try:
        for module in (__file__, os.__file__):  # later imports read files beside these
            os.close(os.open(module, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        raise S3SpoolError(
            f"{directory_of}: belongs to {name}, who cannot read {exc.filename} ({exc.strerror});"
            " install s3spool where every user can read it, for instance in /opt, or run it as that user"
        ) from exc
    return f"becoming {name}, whom {directory_of} belongs to"


class _Capabilities(ctypes.Structure):
    """Two times 32 capabilities, as capset(2) takes them."""

    _fields_ = [
        (f"{kind}{half}", ctypes.c_uint32) for half in (0, 1) for kind in ("effective", "permitted", "inheritable")
    ]


_libc = ctypes.CDLL(None)


def _keep_reading() -> None:
    """Of root's capabilities keep two, as far as they are there: read all files, and take leases on them."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    found = _Capabilities()
    _libc.capget(header, ctypes.byref(found))
    kept = found.permitted0 & _KEPT
    _libc.capset(header, ctypes.byref(_Capabilities(effective0=kept, permitted0=kept)))


def _account(owner: os.stat_result) -> tuple[str, int, Sequence[int]]:
    """Name, primary group and all groups of the owner."""
    try:
        account = pwd.getpwuid(owner.st_uid)
    except KeyError:
        group = owner.st_gid or _NO_GROUP
        return f"uid {owner.st_uid}", group, [group]
    return account.pw_name, account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid)


def _refuse_foreign_links(directory: Path, owner: int) -> None:
    """Another user's link on the way would let that user choose whom root becomes, or that it stays root."""
    for place in (directory, *directory.parents):
        with contextlib.suppress(OSError):
            link = os.lstat(place)
            if stat.S_ISLNK(link.st_mode) and link.st_uid not in {0, owner}:
                raise LedgerError(
                    f"state.directory = {directory}: {place} is a symbolic link of uid {link.st_uid},"
                    " who does not own what it leads to; name the directory itself"
                )


def require_regular(path: Path) -> None:
    """Before SQLite opens the ledger by its path, which follows a link and waits for a FIFO's writer.

    Looks, and opens none of the three files: to close one would drop the locks that SQLite holds in this process.
    Raises LedgerError. A missing file is no error.
    """
    with contextlib.suppress(OSError), _opened(path.parent) as (directory_fd, owners):
        for side in SIDES:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path.name + side, dir_fd=directory_fd, follow_symlinks=False)
                _require(path.with_name(path.name + side), status, owners)


def make_private(path: Path) -> None:
    """Create an empty file with mode 0600 where there is none; SQLite gives its journals the same mode."""
    with contextlib.suppress(OSError), _opened(path.parent) as (directory_fd, _):  # SQLite reports the error
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(os.open(path.name, flags, 0o600, dir_fd=directory_fd))
        except FileExistsError:
            _make_empty_private(path.name, directory_fd)


def _make_empty_private(name: str, directory_fd: int) -> None:
    """Correct the mode of an empty file, which a process leaves that dies while it creates the ledger."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)  # drops no locks when closed
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            Path(f"/proc/self/fd/{fd}").chmod(0o600)
    finally:
        os.close(fd)


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a file in the state directory. Raises LedgerError for what is no such file, and OSError.

    Never for the ledger where SQLite has it open in this process, see `require_regular`.
    """
    with _opened(path.parent) as (directory_fd, owners):
        try:
            fd = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            _require(path, os.stat(path.name, dir_fd=directory_fd, follow_symlinks=False), owners)
            raise
    try:
        _require(path, os.fstat(fd), owners)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[tuple[int, set[int]]]:
    """A descriptor of the state directory, and whose files may be in it: the directory's owner's, and our own."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd, {os.fstat(fd).st_uid, os.geteuid()}
    finally:
        os.close(fd)


def _require(path: Path, status: os.stat_result, owners: set[int]) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise LedgerError(f"{path}: is a symbolic link; {_MOVE}")
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"{path}: is no file; {_MOVE}")
    if status.st_uid not in owners:
        raise LedgerError(f"{path}: belongs to uid {status.st_uid}, who does not own the directory; {_MOVE}")
