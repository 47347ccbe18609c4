"""Whether the ledger's files are still those that are written to, and a new ledger where they are not.

SQLite goes on writing into a file that was deleted or replaced, and says nothing: such receipts are worth nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from s3spool.errors import LedgerError
from s3spool.ledger.database import open_for_reading, open_for_writing
from s3spool.ledger.files import SIDES

log = structlog.get_logger()
_PRIMARY = 0xFF  # the part of SQLite's code that names the kind of error
_CHECK = "PRAGMA integrity_check(1)"

KEPT = "nothing is lost or removed meanwhile; see to the disk that state.directory is on: it goes on by itself"
UNREAD = "the ledger is sound, but cannot be read at the moment: it goes on by itself"
ANEW = (
    "the broken file is kept beside it as .broken-TIME, a new ledger is made and the folder is scanned:"
    " files whose receipts were in it may be sent again"
)


class DamagedError(Exception):
    """The file is gone, is another one, or is no ledger any more; `str()` says which."""

    def __init__(self, reason: str, *, readable: bool) -> None:
        """`readable`: the connection still holds all that was in it, because its own file was not touched."""
        super().__init__(reason)
        self.readable = readable


class Trouble:
    """One line when it begins and one when it is over, however long it lasts. The ledger thread's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._complained = False
        self.lines = 0
        self.since: float | None = None  # Unix seconds; any thread may look

    def begin(self) -> None:
        self.since = self.since or time.time()

    def complain(self, error: str, hint: str) -> None:
        self.begin()
        if not self._complained:
            self._complained = True
            self.lines += 1
            log.error("ledger.failed", path=str(self._path), error=error, hint=hint)

    def over(self) -> None:
        if self.since is not None:
            duration_s = round(time.time() - self.since, 3)
            self.since = None
            self._complained = False
            log.info("ledger.recovered", path=str(self._path), duration_s=duration_s)


class _Look(NamedTuple):
    # Device and inode of each: of what has the name, and of what that leads to. A link to the very same file is a
    # change, too: SQLite looks for the log beside the file, not beside the link.
    files: tuple[tuple[tuple[int, int], ...], ...]
    size: int
    mtime_ns: int


class Guard:
    """Remembers how the files looked after our last commit. Only the ledger thread uses it, but for `doubt`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look = _look(path)
        self.doubt = ""  # what a reader complained of; any thread sets it

    @contextlib.contextmanager
    def opening(self, ours: tuple[int, int] | None) -> Iterator[None]:
        """Around the opening of a connection to `ours` (device and inode), or to the file that was there all the time.

        Raises DamagedError where another one has its place: it would be taken for ours from then on.
        """
        expected = (ours, ours) if ours else self._look.files[0]
        self._expect(expected, readable=True)
        yield
        self._look = self._expect(expected, readable=False)  # SQLite would have mixed the other file with our log

    def _expect(self, main: tuple[tuple[int, int], ...], *, readable: bool) -> _Look:
        now = _look(self._path)
        if now.files[0] != main:
            raise DamagedError(f"{self._path.name} was replaced while s3spool runs", readable=readable)
        return now

    def before(self) -> bool:
        """Before a transaction; True when somebody else has written, and all is well. Raises DamagedError, OSError."""
        now = self._same_files()
        if now == self._look and not self.doubt:
            return False
        if now.size == 0:  # whoever opens that next takes it for a new one, and throws the log away
            raise DamagedError(f"{self._path.name} was emptied while s3spool runs", readable=False)
        doubt, self.doubt = self.doubt, ""
        try:
            _verify(self._path, doubt)
        except (LedgerError, sqlite3.Error):
            self.doubt = doubt  # it cannot be looked at now (descriptors, permissions): that proves nothing
            if now != self._look:
                raise
            return False
        return True

    def after(self) -> None:
        """After a transaction, before anybody is told that it is durable. Raises DamagedError, OSError."""
        self._look = self._same_files()

    def _same_files(self) -> _Look:
        now = _look(self._path)
        for side, mine, there in zip(SIDES, self._look.files, now.files, strict=True):
            if mine != there:
                what = "was deleted" if not there else "was replaced"
                raise DamagedError(f"{self._path.name}{side} {what} while s3spool runs", readable=True)
        return now


def is_damage(exc: BaseException | None) -> bool:
    """Whether SQLite says that the file's content is wrong, as opposed to the disk being full or busy."""
    if isinstance(exc, UnicodeDecodeError):
        return True  # see `speaking_of`
    code = getattr(exc, "sqlite_errorcode", 0)
    return code & _PRIMARY in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or code == sqlite3.SQLITE_IOERR_SHORT_READ


def made_anew(path: Path, old: sqlite3.Connection, *, readable: bool, destination: tuple[int, str]) -> tuple[int, int]:
    """Put the broken files aside and a new ledger in their place, with all that `old` still knows if `readable`.

    Returns device and inode of the new one. `destination` keeps its number: receipts that are under way carry it.
    Raises sqlite3.Error, LedgerError, OSError, and may then be called again.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    _remove(new)
    try:
        if not (readable and _copied(old, new)):
            _remove(new)
            with contextlib.closing(open_for_writing(new)) as db:
                db.execute("INSERT INTO destinations (id, name) VALUES (?, ?)", destination)
                _complete(db)
        status = new.stat()
        _put_aside(path)
        new.rename(path)
    except BaseException:
        _remove(new)
        raise
    _sync(path.parent)
    return status.st_dev, status.st_ino


def _copied(old: sqlite3.Connection, new: Path) -> bool:
    """Copy all rows; False where what came out is no sound ledger."""
    try:
        with contextlib.closing(open_for_writing(new)) as db:
            old.backup(db)
            sound = bool(db.execute(_CHECK).fetchone() == ("ok",))
            _complete(db)
            return sound
    except sqlite3.DatabaseError as exc:
        if is_damage(exc):
            return False
        raise


def _complete(db: sqlite3.Connection) -> None:
    """Bring all of it into the one file, so that it can be renamed. Raises sqlite3.Error where there is no room."""
    db.execute("PRAGMA journal_mode = DELETE")


def _verify(path: Path, doubt: str) -> None:
    """Raises DamagedError; LedgerError where it cannot be told."""
    if "malformed row" in doubt:  # in order as a database; only we know that it is no row of ours
        raise DamagedError(doubt, readable=False)
    try:
        with contextlib.closing(open_for_reading(path)) as db:
            (found,) = db.execute(_CHECK).fetchone()
    except sqlite3.Error as exc:
        if is_damage(exc):
            raise DamagedError(str(exc), readable=False) from exc
        raise
    except LedgerError as exc:
        if exc.__cause__ is None or is_damage(exc.__cause__):
            raise DamagedError(str(exc), readable=False) from exc
        raise
    if found != "ok":
        raise DamagedError(f"its content is damaged: {found}", readable=False)


def _look(path: Path) -> _Look:
    files: list[tuple[tuple[int, int], ...]] = []
    size = mtime_ns = 0
    for side in SIDES:
        name = file = _status(f"{path}{side}", follow_symlinks=False)
        if name is not None and stat.S_ISLNK(name.st_mode):
            file = _status(f"{path}{side}", follow_symlinks=True)
        files.append(tuple((one.st_dev, one.st_ino) for one in (name, file) if one is not None))
        if not side and file is not None:
            size, mtime_ns = file.st_size, file.st_mtime_ns
    return _Look(tuple(files), size, mtime_ns)


def _status(path: str, *, follow_symlinks: bool) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return None
        raise


def _put_aside(path: Path) -> None:
    """Under a free name; nothing of what somebody may want to look at is removed."""
    base = f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside = next(
        name
        for number in range(10_000)
        if not (name := path.with_name(base + (f".{number}" if number else ""))).exists()
    )
    # The log first: if we die in between, a new start must not find the log of another file beside the new one.
    for side in reversed(SIDES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(f"{aside}{side}")


def _remove(path: Path) -> None:
    for side in SIDES:
        path.with_name(path.name + side).unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
