"""The writer's SQL statements; each takes a batch of rows or paths as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from s3spool.ledger.rows import Identity, Multipart, Part, Pause, Receipt, Retry, storable, to_text


def _columns(fields: Sequence[str]) -> list[str]:
    return [column for field in fields for column in (Identity._fields if field == "identity" else (field,))]


COLUMNS = {
    "receipts": _columns(Receipt._fields),
    "retries": [*_columns(Retry._fields), "claimed"],
    "multiparts": _columns(Multipart._fields),
    "parts": _columns(Part._fields),
}
KEY = {"receipts": "path", "retries": "path", "multiparts": "path", "parts": "upload_id, number"}


# sqlite3 releases the GIL once per statement: one statement per batch, not per row.
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
FORGET_MULTIPART = "DELETE FROM multiparts WHERE upload_id = ?"
FORGET_PARTS = "DELETE FROM parts WHERE upload_id = ?"
NOTHING = "SELECT 1"
CLAIM = f"UPDATE retries SET claimed = 1 WHERE {_PATHS}"  # noqa: S608 - constants
_WAITING = "UPDATE retries SET state = 'waiting', next_attempt = 0, provisional = 0"
RELEASE = f"{_WAITING}, claimed = 0 WHERE {_PATHS}"
RELEASE_PROVISIONAL = f"{_WAITING} WHERE provisional = 1"
HASTEN = "UPDATE retries SET next_attempt = ? WHERE next_attempt > ?"
RELEASE_ALL = f"{_WAITING} WHERE claimed = 0"

_PAUSE = (
    "INSERT INTO pause (id, since, reason) VALUES (1, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET since = excluded.since, reason = excluded.reason"
)
RESUME = "DELETE FROM pause"


def as_json(*paths: str) -> str:
    return msgspec.json.encode([to_text(path) for path in paths]).decode()


def path_row(row: Receipt | Multipart) -> tuple[Any, ...]:
    return (to_text(row.path), *row.identity, *row[2:])


def retry_row(retry: Retry) -> tuple[Any, ...]:
    error, hint = storable(retry.error), storable(retry.hint)
    row = (to_text(retry.path), *retry.identity, *retry[2:6], error, hint, retry.next_attempt, retry.state.value)
    return (*row, retry.own_failures, int(retry.provisional), 0)


def pause(row: Pause) -> tuple[str, tuple[Any, ...]]:
    return _PAUSE, (row.since, storable(row.reason))
