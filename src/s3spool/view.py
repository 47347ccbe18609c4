"""What is known of files, in the words of `list` and `why`: from the ledger, for daemon and command line alike."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from s3spool.ledger.reader import Known, Reader
from s3spool.ledger.rows import Identity, Receipt, Retry, State, to_text

STATES = ("queued", "uploading", "waiting", "parked", "uploaded")
LEDGER_STATES = ("waiting", "parked", "uploaded")


def rows(reader: Reader, state: str | None) -> Iterator[dict[str, Any]]:
    """Rows of `list` that the ledger knows, streamed. Paths are in the ledger's spelling (rows.to_text)."""
    if state in {None, "waiting", "parked"}:
        for retry in reader.retries(State(state) if state else None):
            yield of_retry(retry)
    if state in {None, "uploaded"}:
        for receipt in reader.receipts():
            yield of_receipt(receipt)


def of_retry(retry: Retry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": to_text(retry.path),
        "state": retry.state.value,
        "bytes": retry.identity.size,
        "attempts": retry.attempts,
        "error_code": retry.error_code,
        "error": retry.error,
        "hint": retry.hint,
        "first_error_at": iso(retry.first_error_at),
        "last_error_at": iso(retry.last_error_at),
    }
    if retry.state is State.WAITING:
        row["next_attempt"] = iso(retry.next_attempt)
    return row


def of_receipt(receipt: Receipt) -> dict[str, Any]:
    return {
        "path": to_text(receipt.path),
        "state": "uploaded",
        "bytes": receipt.identity.size,
        "key": receipt.key,
        "etag": receipt.etag,
        "checksum": receipt.checksum,
        "version_id": receipt.version_id,
        "uploaded_at": iso(receipt.uploaded_at),
    }


def why(path: str, known: Known | None, identity: Identity | None, *, live: str | None, ours: bool) -> dict[str, Any]:
    """State of one file and one sentence that explains it.

    `identity` is the file's now (None: no such file), `live` its place in a running daemon ("queued", ...),
    `ours` whether include and exclude let it through.
    """
    receipt = known.receipt if known else None
    retry = known.retry if known else None
    answer: dict[str, Any] = {"path": to_text(path)}
    if live:
        answer |= {"state": live, "why": _LIVE[live]}
    elif retry and retry.state is State.PARKED:
        answer |= of_retry(retry) | {"why": f"parked after {retry.attempts} attempts: {retry.error}"}
    elif retry:
        text = f"attempt {retry.attempts} failed: {retry.error_code}: {retry.error}; next try at {iso(retry.next_attempt)}"
        answer |= of_retry(retry) | {"why": text}
    elif receipt and (identity is None or _same(receipt.identity, identity)):
        gone = "; the local file is gone" if identity is None else ""
        answer |= of_receipt(receipt) | {"why": f"uploaded to {receipt.key} at {iso(receipt.uploaded_at)}{gone}"}
    elif identity is None:
        answer |= {"state": "unknown", "why": "no such file in the folder, and none in the ledger"}
    elif not ours:
        answer |= {"state": "excluded", "why": "watch.include and watch.exclude leave it out"}
    elif receipt:
        answer |= {"state": "changed", "why": f"changed since it was uploaded at {iso(receipt.uploaded_at)}: to be sent again"}
    else:
        answer |= {"state": "unsent", "why": "not seen yet: a running daemon finds it at its next scan (`s3spool rescan`)"}
    return answer


_LIVE = {
    "settling": "changed a moment ago, or still open for writing: sent when it is left alone",
    "queued": "complete, and waiting for a free worker",
    "uploading": "being sent, or sent and being recorded",
    "paused": "complete; the destination is paused",
}


def _same(one: Identity, other: Identity) -> bool:
    return one == other or one.differs_only_in_ctime(other)


def iso(time_s: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
