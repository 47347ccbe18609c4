"""Checks that the ledger's files are still the opened ones and undamaged; puts damaged ones aside.

SQLite goes on writing into a file that was deleted or replaced, and reports nothing: such receipts are worth nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

import structlog

from s3spool.errors import LedgerDamagedError, LedgerError
from s3spool.ledger.database import open_for_destination, open_for_reading, speaking_of
from s3spool.ledger.files import SIDES

log = structlog.get_logger()
_PRIMARY = 0xFF  # the primary part of SQLite's error code

KEPT = "nothing is lost or removed meanwhile; check the disk that state.directory is on: uploads resume by themselves"
UNREAD = "the ledger is sound, but cannot be read at the moment: reads are tried again"
ENDING = (
    "the daemon ends; the file is kept as .broken-TIME, and the next start makes a new ledger and scans the folder:"
    " files whose receipts were in it may be sent again"
)
BEGUN_ANEW = "the file is kept as .broken-TIME, and a new ledger begins: what is in the folder may be sent again"


class Trouble:
    """A full or broken disk: one line when it begins, one when it ends. Used by the ledger's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.since: float | None = None  # Unix seconds; any thread may read it

    def complain(self, error: str) -> None:
        if self.since is None:
            self.since = time.time()
            log.error("ledger.failed", path=str(self._path), error=error, hint=KEPT)

    def over(self) -> None:
        if self.since is not None:
            duration_s = round(time.time() - self.since, 3)
            self.since = None
            log.info("ledger.recovered", path=str(self._path), duration_s=duration_s)


class _Look(NamedTuple):
    files: tuple[tuple[int, int] | None, ...]  # device and inode of each of the three
    size: int
    mtime_ns: int


class Guard:
    """Remembers the files' state after the last commit. Used by the ledger's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look = _look(path)

    def before(self, *, thoroughly: bool = False) -> bool:
        """Call it before a transaction; True when another program has written and the file is undamaged.

        Raises LedgerDamagedError, and OSError or LedgerError where the file cannot be checked now.
        """
        now = self._same_files()
        if now == self._look and not thoroughly:
            return False
        if now.size == 0:
            raise LedgerDamagedError(f"{self._path.name} was emptied while s3spool runs")
        _verify(self._path)
        self._look = now
        return True

    def after(self) -> None:
        """Call it after a transaction, before the callbacks. Raises LedgerDamagedError, OSError."""
        self._look = self._same_files()

    def _same_files(self) -> _Look:
        now = _look(self._path)
        for side, mine, there in zip(SIDES, self._look.files, now.files, strict=True):
            if mine != there:
                event = "was replaced" if there else "was deleted"
                raise LedgerDamagedError(f"{self._path.name}{side} {event} while s3spool runs")
        return now


def open_or_begin_anew(path: Path, destination: str) -> tuple[sqlite3.Connection, int]:
    """As `open_for_destination`; a damaged file is put aside, and a new one created. Raises LedgerError."""
    try:
        return open_for_destination(path, destination)
    except LedgerDamagedError as exc:
        log.error("ledger.failed", path=str(path), error=str(exc), hint=BEGUN_ANEW)
        try:
            put_aside(path)
        except OSError as error:
            raise LedgerError(f"{path}: is damaged, and cannot be renamed: {error.strerror}") from exc
    return open_for_destination(path, destination)


def is_damage(exc: BaseException | None) -> bool:
    """Whether the error is about the file's content, not about a full or busy disk."""
    if isinstance(exc, (LedgerDamagedError, UnicodeDecodeError)):  # the latter: see `speaking_of`
        return True
    code = getattr(exc, "sqlite_errorcode", 0)
    return code & _PRIMARY in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB} or code == sqlite3.SQLITE_IOERR_SHORT_READ


def put_aside(path: Path) -> None:
    """Rename the ledger's files to a free name: the next start makes a new ledger. Raises OSError."""
    base = f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    aside = next(
        name
        for number in range(10_000)
        if not os.path.lexists(name := path.with_name(base + (f".{number}" if number else "")))
    )
    # The WAL first: after a crash in between, SQLite must not apply it to another file.
    for side in reversed(SIDES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(f"{aside}{side}")


def _verify(path: Path) -> None:
    """Raises LedgerDamagedError, and LedgerError where the file cannot be checked now."""
    try:
        with speaking_of(path), contextlib.closing(open_for_reading(path)) as db:
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except LedgerError as exc:
        if exc.__cause__ is None or is_damage(exc.__cause__):  # another file is in its place, or its content is damaged
            raise LedgerDamagedError(str(exc)) from exc
        raise
    if found != "ok":
        raise LedgerDamagedError(f"its content is damaged: {found}")


def _look(path: Path) -> _Look:
    found = [_status(f"{path}{side}") for side in SIDES]
    main = found[0]
    files = tuple(one and (one.st_dev, one.st_ino) for one in found)
    return _Look(files, main.st_size if main else 0, main.st_mtime_ns if main else 0)


def _status(path: str) -> os.stat_result | None:
    """Of a link itself: the opened files are none (see `require_regular`). None if the file is missing."""
    try:
        return os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
