"""The SQL of the shared ledger; the writer's statements take a batch of rows or paths as JSON.

Each statement is a transaction, and locks the rows of its batch in the order of their paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from s3spool.ledger.rows import Identity, Multipart, Receipt, Retry, storable, to_text

RECEIPT = "path, sent, destination, key, etag, checksum, version_id, read_at, uploaded_at, after"
RETRY = (
    "path, failed, attempts, first_error_at, last_error_at, error_code, error, hint, next_attempt, state,"
    " own_failures, provisional"
)
PART = "upload_id, number, size, etag, checksum"
MULTIPART = "path, identity, destination, bucket, key, upload_id, part_size, algorithm, started_at"
_TYPES = {
    **dict.fromkeys(("sent", "failed", "identity"), "bigint[]"),
    **dict.fromkeys(("read_at", "uploaded_at", "first_error_at", "last_error_at", "next_attempt"), "double precision"),
    **dict.fromkeys(("started_at",), "double precision"),
    **dict.fromkeys(("attempts", "own_failures", "number", "destination"), "integer"),
    **dict.fromkeys(("size", "part_size", "owner"), "bigint"),
    "provisional": "boolean",
}


def _from_json(columns: Sequence[str]) -> str:
    typed = ", ".join(f"{column} {_TYPES.get(column, 'text')}" for column in columns)
    return f"json_to_recordset(%(rows)s) AS new ({typed})"


def _set(columns: Sequence[str], source: str) -> str:
    return ", ".join(f"{column} = {source}.{column}" for column in columns)


_NO_RECEIPT = "sent = NULL, uploaded_at = NULL"
_NO_RETRY = "failed = NULL, state = NULL, next_attempt = NULL, provisional = NULL"
_FREE = "(files.owner IS NULL OR NOT EXISTS (SELECT FROM nodes WHERE nodes.id = files.owner))"
_MINE_OR_FREE = f"(files.owner = %(owner)s OR {_FREE})"
_UNLESS_HELD = "owner = CASE WHEN files.path = ANY(%(held)s) THEN owner ELSE nullif(owner, %(owner)s) END"
_NOT_MINE = "owner = nullif(owner, %(owner)s)"
_HERE = "files.destination = %(destination)s"
_PATHS = "SELECT json_array_elements_text(%(paths)s)"
# Two nodes that lock in the same order cannot wait for each other.
_LOCKED = f"SELECT path FROM files WHERE {_HERE} AND path IN ({_PATHS}) ORDER BY path FOR UPDATE"  # noqa: S608 - constants
_THESE = f"{_HERE} AND files.path IN (WITH locked AS MATERIALIZED ({_LOCKED}) SELECT path FROM locked)"  # noqa: S608 - constants

# A row that is locked is judged by its latest version: no node overlooks the claim or the receipt of another.
TAKE = f"""
INSERT INTO files (destination, path, owner)
SELECT %(destination)s, given.path, %(owner)s FROM json_array_elements_text(%(paths)s) AS given (path)
WHERE NOT EXISTS (
    SELECT FROM files JOIN nodes ON nodes.id = files.owner
    WHERE {_HERE} AND files.path = given.path AND files.owner <> %(owner)s
) ORDER BY given.path COLLATE "C"
ON CONFLICT (destination, path) DO UPDATE SET owner = excluded.owner WHERE {_MINE_OR_FREE}
RETURNING {RECEIPT}, {RETRY}
"""  # noqa: S608 - constants


def _locked(columns: str) -> str:
    new = _from_json(columns.split(", "))
    return f"(SELECT new.* FROM {new} JOIN files USING (path) WHERE {_HERE} ORDER BY path FOR UPDATE OF files) AS new"  # noqa: S608 - constants


_receipt = [column for column in RECEIPT.split(", ") if column not in {"path", "destination"}]
_retry = RETRY.split(", ")[1:]
# The fence: only while the claim is still the one that the upload began with. If the first answer was lost, the second
# try finds its own row; so does a receipt that is recorded again with another ctime.
RECORD_RECEIPTS = f"""
UPDATE files SET owner = NULL, {_NO_RETRY}, {_set(_receipt, "new")} FROM {_locked(RECEIPT + ", owner")}
WHERE files.destination = new.destination AND files.path = new.path AND (files.owner = new.owner
    OR (files.owner IS NULL AND files.uploaded_at = new.uploaded_at)) RETURNING files.path
"""  # noqa: S608 - constants
RECORD_RETRIES = f"""
UPDATE files SET owner = NULL, {_set(_retry, "new")} FROM {_locked(RETRY + ", owner")}
WHERE {_HERE} AND files.path = new.path AND (files.owner = new.owner
    OR (files.owner IS NULL AND files.failed = new.failed AND files.last_error_at = new.last_error_at))
RETURNING files.path
"""  # noqa: S608 - constants


def _insert(table: str, columns: str, key: str) -> str:
    names = columns.split(", ")
    return (
        f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {_from_json(names)}"  # noqa: S608 - constants
        f" ON CONFLICT ({key}) DO UPDATE SET {_set(names, 'excluded')}"
    )


RECORD_MULTIPARTS = _insert("multiparts", MULTIPART, "destination, path")
RECORD_PARTS = _insert("parts", PART, "upload_id, number")
_DROP_EMPTY = f"DELETE FROM files WHERE {_THESE} AND sent IS NULL AND failed IS NULL AND {_FREE}"  # noqa: S608 - constants
_WAITING = "UPDATE files SET state = 'waiting', next_attempt = 0, provisional = false"

CLAIM = (f"UPDATE files SET owner = %(owner)s WHERE {_THESE} AND {_MINE_OR_FREE}",)  # noqa: S608 - constants
CLAIMED = f"SELECT path, owner FROM files WHERE {_HERE} AND owner = ANY(%(owners)s)"  # noqa: S608 - constants
# A row that another node locks is no longer void, or is deleted by that node.
_VOID = f"{_HERE} AND owner IS NOT NULL AND {_FREE} AND sent IS NULL AND failed IS NULL"
_UNLOCKED = f"SELECT path FROM files WHERE {_VOID} FOR UPDATE SKIP LOCKED"  # noqa: S608 - constants
DROP_VOID = (f"DELETE FROM files WHERE {_HERE} AND path IN ({_UNLOCKED})",)  # noqa: S608 - constants
GIVE_BACK = (
    f"""
WITH locked AS MATERIALIZED ({_LOCKED}), dropped AS (
    DELETE FROM files WHERE {_HERE} AND path IN (SELECT path FROM locked)
        AND sent IS NULL AND failed IS NULL AND {_MINE_OR_FREE} RETURNING path
)
UPDATE files SET {_NOT_MINE} WHERE {_HERE} AND path IN (SELECT path FROM locked EXCEPT SELECT path FROM dropped)
""",  # noqa: S608 - constants
)
RELEASE = (f"{_WAITING}, {_UNLESS_HELD} WHERE {_THESE} AND failed IS NOT NULL",)
RELEASE_ALL = (f"{_WAITING} WHERE {_HERE} AND failed IS NOT NULL AND {_FREE}",)
RELEASE_PROVISIONAL = (f"{_WAITING} WHERE {_HERE} AND provisional",)
HASTEN = (f"UPDATE files SET next_attempt = %(now)s WHERE {_HERE} AND next_attempt > %(latest)s",)  # noqa: S608 - constants
FORGET = (f"UPDATE files SET {_NO_RECEIPT}, {_NO_RETRY}, {_UNLESS_HELD} WHERE {_THESE}", _DROP_EMPTY)  # noqa: S608 - constants
FORGET_RETRY = (f"UPDATE files SET {_NO_RETRY}, {_NOT_MINE} WHERE {_THESE} AND {_MINE_OR_FREE}", _DROP_EMPTY)  # noqa: S608 - constants
DROP_RECEIPTS = (f"UPDATE files SET {_NO_RECEIPT} WHERE {_THESE}", _DROP_EMPTY)  # noqa: S608 - constants
FORGET_MULTIPART = (
    "DELETE FROM parts WHERE upload_id = %(upload_id)s",
    "DELETE FROM multiparts WHERE upload_id = %(upload_id)s",
)
ENDS_CLAIMS = {GIVE_BACK, FORGET_RETRY}  # of the paths that they are given
PAUSE = (
    "INSERT INTO pause VALUES (%(destination)s, %(since)s, %(reason)s)"  # noqa: ISC004 - one statement
    " ON CONFLICT (destination) DO UPDATE SET since = excluded.since, reason = excluded.reason",
)
RESUME = ("DELETE FROM pause WHERE destination = %(destination)s",)
CHANGED = "SELECT nextval('changes')"


def as_json(rows: Sequence[Any]) -> str:
    return msgspec.json.encode(rows).decode()


def paths_json(paths: Sequence[str]) -> str:
    return as_json([*dict.fromkeys(map(to_text, paths))])  # a statement takes each row once


def receipt_row(receipt: Receipt) -> dict[str, Any]:
    return {**receipt._asdict(), "path": to_text(receipt.path), "sent": shared(receipt.identity)}


def retry_row(retry: Retry) -> dict[str, Any]:
    row = {**retry._asdict(), "path": to_text(retry.path), "failed": shared(retry.identity), "state": retry.state.value}
    return {**row, "error": storable(retry.error), "hint": storable(retry.hint)}


def multipart_row(multipart: Multipart) -> dict[str, Any]:
    return {**multipart._asdict(), "path": to_text(multipart.path), "identity": shared(multipart.identity)}


def shared(identity: Identity) -> Identity:
    """Each host numbers its devices itself."""
    return identity._replace(dev=0)
