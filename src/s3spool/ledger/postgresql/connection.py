"""Connections to the shared ledger: its errors in one line, its schema by numbered migrations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict

from s3spool.errors import LedgerError, LedgerUnavailableError

MIGRATIONS = ("0001_files.sql", "0002_nodes.sql")
VERSION = len(MIGRATIONS)
CONNECT_S = 5
_LOCK = 0x53335350  # of pg_advisory_xact_lock: one node at a time changes the schema

Connection = psycopg.Connection[tuple[object, ...]]


def shown(url: str) -> str:
    """The place without the password, for messages."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        return "postgresql"
    return f"postgresql://{parts.get('host', '')}/{parts.get('dbname', '')}"


@contextlib.contextmanager
def speaking_of(url: str) -> Iterator[None]:
    """Translates psycopg's errors into LedgerError: one line."""
    try:
        yield
    except psycopg.OperationalError as exc:
        raise LedgerUnavailableError(f"{shown(url)}: {one_line(exc)}") from exc
    except psycopg.Error as exc:
        raise LedgerError(f"{shown(url)}: {one_line(exc)}") from exc


def one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


def connect(url: str) -> Connection:
    """In autocommit, with a time limit. Raises psycopg.Error."""
    try:
        with _passfile() as passfile:
            # A connection that hangs is noticed within seconds.
            return psycopg.connect(
                url,
                passfile=passfile,
                autocommit=True,
                connect_timeout=CONNECT_S,
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=10_000,
                application_name="s3spool",
            )
    except OSError as exc:  # no descriptor is left, for example: tried again like any other failure to connect
        raise psycopg.OperationalError(f"the systemd credential pgpass cannot be used: {exc.strerror}") from exc


@contextlib.contextmanager
def _passfile() -> Iterator[str | None]:
    """Libpq reads PGPASSFILE itself; a service has its passwords as the systemd credential `pgpass`.

    libpq refuses a file that its group may read, as credentials are since systemd 257: it gets a copy in memory.
    Raises OSError.
    """
    file = Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), "pgpass")
    if not file.is_absolute() or "PGPASSFILE" in os.environ or not file.exists():
        yield None
        return
    with os.fdopen(os.memfd_create("pgpass"), "wb", buffering=0) as copy:
        os.fchmod(copy.fileno(), 0o600)
        copy.write(file.read_bytes())
        yield f"/proc/self/fd/{copy.fileno()}"


def migrate(connection: Connection, url: str) -> None:
    """Create or upgrade the schema; nodes that start at once take turns. Raises LedgerError, psycopg.Error."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute("CREATE TABLE IF NOT EXISTS s3spool_schema (version integer NOT NULL)")
        version = number(connection, "SELECT version FROM s3spool_schema")
        if version > VERSION:
            raise LedgerError(
                f"{shown(url)}: written by a newer s3spool (ledger version {version}, this program knows {VERSION});"
                " install that version here as well"
            )
        if version == VERSION:
            return
        for name in MIGRATIONS[version:]:
            connection.execute(resources.files(__package__).joinpath(name).read_text().encode())
        connection.execute("DELETE FROM s3spool_schema")
        connection.execute("INSERT INTO s3spool_schema VALUES (%s)", (VERSION,))


@contextlib.contextmanager
def schema_locked(url: str) -> Iterator[None]:
    """A daemon that starts meanwhile waits in `migrate`. Raises LedgerError."""
    with speaking_of(url):
        connection = connect(url)
    with connection, speaking_of(url):
        if not number(connection, "SELECT pg_try_advisory_lock(%s)::int", (_LOCK,)):
            raise LedgerError(f"{shown(url)}: a daemon that starts, or another copy, uses it; try again")
        yield


def destination_of(connection: Connection, name: str) -> int:
    """The number of this destination, the same for each node."""
    connection.execute("INSERT INTO destinations (name) VALUES (%s) ON CONFLICT DO NOTHING", (name,))
    return number(connection, "SELECT id FROM destinations WHERE name = %s", (name,))


def number(connection: Connection, statement: LiteralString, arguments: tuple[object, ...] = ()) -> int:
    """The first value of the first row; 0 where there is none. Raises psycopg.Error."""
    row = connection.execute(statement, arguments).fetchone()
    return int(str(row[0])) if row else 0
