"""Opening the ledger file: schema, version, and the lock that keeps a second daemon out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from s3spool.errors import AlreadyRunningError, LedgerDamagedError, LedgerError, LedgerUnavailableError
from s3spool.ledger.files import make_private, open_regular, require_regular

VERSION = 4
APPLICATION_ID = 0x53335350  # "S3SP": by this file(1) and s3spool recognise a ledger
#: From version n to n + 1, each in one transaction with the new version number. Versions before 4 were never released.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], object]] = {}


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open or create the ledger.

    Raises LedgerError with one line that says what to do. A file of another program stays unchanged.
    The connection may be handed to another thread, but only one may use it at a time.
    """
    require_regular(path)
    make_private(path)
    fresh = not path.exists() or path.stat().st_size == 0
    with speaking_of(path), contextlib.ExitStack() as stack:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        stack.callback(connection.close)
        if not fresh:
            _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a committed receipt survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -2048")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        _migrate(connection, fresh=fresh)
        stack.pop_all()
    return connection


def open_for_destination(path: Path, name: str) -> tuple[sqlite3.Connection, int]:
    """`open_for_writing`, and the row id of the destination. No worker has a file yet: all claims end."""
    connection = open_for_writing(path)
    with speaking_of(path), contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        connection.execute("UPDATE retries SET claimed = 0 WHERE claimed = 1")
        connection.execute("INSERT OR IGNORE INTO destinations (name) VALUES (?)", (name,))
        row = connection.execute("SELECT id FROM destinations WHERE name = ?", (name,)).fetchone()
        stack.pop_all()
    return connection, int(row[0])


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the ledger read-only; works beside a running daemon and without one.

    Raises LedgerError. Threads may share the connection, but only one may use it at a time.
    """
    require_regular(path)
    with speaking_of(path), contextlib.ExitStack() as stack:
        uri = f"file:{_uri_quoted(path)}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
        stack.callback(connection.close)
        connection.execute("PRAGMA cache_size = -2048")
        _check(connection, path)
        stack.pop_all()
    return connection


@contextlib.contextmanager
def speaking_of(path: Path) -> Iterator[None]:
    """Translates SQLite's errors into LedgerError: one line that says what to do."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _translated(str(exc), path) from exc
    except UnicodeDecodeError as exc:
        # SQLite's message quotes a damaged schema, which is not UTF-8.
        raise _translated("malformed database schema", path) from exc


class DirectoryLock:
    """Held while a daemon uses a state directory; the kernel releases it when the process dies."""

    def __init__(self, directory: Path) -> None:
        """Raises AlreadyRunningError, which names the process that holds the directory; LedgerError."""
        self.path = directory / "daemon.lock"
        try:
            self._fd = open_regular(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as exc:
            raise LedgerError(
                f"{self.path}: cannot be opened: {exc.strerror}; it must belong to the user that s3spool runs as"
            ) from exc
        if os.fstat(self._fd).st_nlink > 1:  # truncating it would empty the other file
            os.close(self._fd)
            raise LedgerError(f"{self.path}: is another file's name as well; remove it")
        if not _locked(self._fd):
            pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise AlreadyRunningError(
                f"state.directory = {directory}: another s3spool (pid {pid}) uses it; stop that one,"
                " or give this one a state directory of its own"
            )
        os.ftruncate(self._fd, 0)
        try:
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as exc:
            os.close(self._fd)
            raise LedgerUnavailableError(f"{self.path}: cannot be written: {exc.strerror}") from exc

    def release(self) -> None:
        os.close(self._fd)


def _locked(fd: int) -> bool:
    while not _flocked(fd, fcntl.LOCK_EX):
        if not _flocked(fd, fcntl.LOCK_SH):
            return False
        # No daemon has it: a process in `holder` held it for a moment.
        fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _flocked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def holder(directory: Path) -> int | None:
    """The pid of the daemon that uses this state directory, or None."""
    try:
        fd = open_regular(directory / "daemon.lock", os.O_RDONLY)
    except (OSError, LedgerError):
        return None
    try:
        if _flocked(fd, fcntl.LOCK_SH):
            return None
        text = os.pread(fd, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(fd)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application_id != APPLICATION_ID and (tables or application_id):
        raise LedgerError(
            f"{path}: is a SQLite database, but not a ledger of s3spool; move it away or set state.directory"
        )
    if version > VERSION:
        raise LedgerError(
            f"{path}: written by a newer s3spool (ledger version {version}, this program knows {VERSION});"
            " install that version again, or move the file away or set state.directory to start afresh"
        )
    if 0 < version < min(MIGRATIONS, default=VERSION):
        raise LedgerError(
            f"{path}: written before the first release of s3spool (ledger version {version});"
            " move the file away or set state.directory to start afresh"
        )


def _migrate(connection: sqlite3.Connection, *, fresh: bool) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if fresh or version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_schema()};"
            f" PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
        )
        return
    for step in range(version, VERSION):
        connection.execute("BEGIN IMMEDIATE")
        MIGRATIONS[step](connection)
        connection.execute(f"PRAGMA user_version = {step + 1}")
        connection.execute("COMMIT")


def _schema() -> str:
    """Without comments: SQLite stores them, and a schema that fits into the first page is read in one piece."""
    lines = resources.files(__package__).joinpath("schema.sql").read_text().splitlines()
    return "\n".join(" ".join(line.partition("--")[0].split()) for line in lines)


def _translated(text: str, path: Path) -> LedgerError:
    if "not a database" in text or "malformed" in text:
        return LedgerDamagedError(
            f"{path}: is not a usable database ({text}); the next start keeps it as {path.name}.broken-TIME and begins"
            " a new one: what is in the folder may be sent again"
        )
    if "readonly" in text or "unable to open" in text:
        return LedgerError(f"{path}: cannot be opened ({text}); check state.directory and its owner")
    if "disk" in text:
        return LedgerUnavailableError(f"{path}: {text}; make room on the disk that state.directory is on, or see to it")
    if "locked" in text:
        return LedgerUnavailableError(f"{path}: {text}; another program uses it")
    return LedgerError(f"{path}: {text}")


def _uri_quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
