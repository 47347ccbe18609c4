"""What the writer says to SQLite; one batch of rows or paths a statement, as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from s3spool.ledger.rows import to_text

_IDENTITY = "dev inode size mtime_ns ctime_ns"
COLUMNS = {
    "receipts": f"path {_IDENTITY} destination key etag checksum version_id read_at uploaded_at after".split(),
    "retries": (
        f"path {_IDENTITY} attempts first_error_at last_error_at error_code error hint next_attempt state"
        " own_failures provisional claimed"
    ).split(),
    "multiparts": f"path {_IDENTITY} destination bucket key upload_id part_size algorithm started_at".split(),
    "parts": ["upload_id", "number", "size", "etag", "checksum"],
}
KEY = {"receipts": "path", "retries": "path", "multiparts": "path", "parts": "upload_id, number"}


# A whole batch in one statement: sqlite3 gives the GIL away once a batch instead of once a row.
def _insert_statement(table: str, columns: Sequence[str]) -> str:
    values = ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(columns)))
    new = ", ".join(f"{column} = excluded.{column}" for column in columns)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM json_each(?)"  # noqa: S608 - constants
        f" WHERE true ON CONFLICT ({KEY[table]}) DO UPDATE SET {new}"
    )


INSERT = {table: _insert_statement(table, columns) for table, columns in COLUMNS.items()}
_PATHS = "path IN (SELECT value FROM json_each(?))"
FORGET_RETRY = f"DELETE FROM retries WHERE {_PATHS}"  # noqa: S608 - constants
FORGET_RECEIPT = f"DELETE FROM receipts WHERE {_PATHS}"  # noqa: S608 - constants
FORGET_MULTIPART = f"DELETE FROM multiparts WHERE {_PATHS}"  # noqa: S608 - constants
FORGET_PARTS = f"DELETE FROM parts WHERE upload_id IN (SELECT upload_id FROM multiparts WHERE {_PATHS})"  # noqa: S608 - constants
NOTHING = "SELECT 1"
CLAIM = f"UPDATE retries SET claimed = 1 WHERE {_PATHS} AND next_attempt <= ?"  # noqa: S608 - constants
_WAITING = "UPDATE retries SET state = 'waiting', next_attempt = 0, provisional = 0"
RELEASE = f"{_WAITING}, claimed = 0 WHERE {_PATHS}"
RELEASE_PROVISIONAL = f"{_WAITING} WHERE provisional = 1"
HASTEN = "UPDATE retries SET next_attempt = ? WHERE next_attempt > ?"
RELEASE_ALL = f"{_WAITING} WHERE claimed = 0"

PAUSE = (
    "INSERT INTO pause (id, since, reason) VALUES (1, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET since = excluded.since, reason = excluded.reason"
)
RESUME = "DELETE FROM pause"


def storable(text: str) -> str:
    """An error's words may hold a name that is not UTF-8; that must not cost the ledger's thread its life."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def as_json(*paths: str) -> str:
    return msgspec.json.encode([to_text(path) for path in paths]).decode()
