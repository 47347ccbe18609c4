"""Rows of `list`, answers of `why` and nodes from the ledger, for the daemon and the command line alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from s3spool.config.schema import Config
from s3spool.control.status import Node
from s3spool.errors import Fault, S3SpoolError
from s3spool.folder.rules import FileRules
from s3spool.ledger.queries import Known, LedgerReader
from s3spool.ledger.rows import Identity, Receipt, Retry, State, from_text, to_text
from s3spool.logs.text import shown

if TYPE_CHECKING:
    from s3spool.folder.filters import FileFilter
    from s3spool.folder.folder import Folder

UNSENT_STATES = ("settling", "queued", "uploading", "waiting", "parked")
UNSENT = "unsent"  # as a filter: all states in which a file is not sent yet
STATES = (*UNSENT_STATES, "uploaded")
PAGE_ROWS = 1000


_UNKNOWN = "no regular file of this name in the folder (links and FIFOs are none), nor in the ledger"


class Live(NamedTuple):
    """Where a running daemon has a file: its state, and why it is in it."""

    state: str
    reason: str


class Cursor(NamedTuple):
    """Where a page of `list` begins."""

    section: str  #: "memory" (settling, queued, uploading), "nodes", "retries" or "receipts", in this order
    after: str = ""  #: the last path of the page before, in the ledger's spelling


def wanted(state: str, only: str | None) -> bool:
    """Whether the filter `only` lets files of this state through; None lets all."""
    return only in {None, state} or (only == UNSENT and state in UNSENT_STATES)


def rows(reader: LedgerReader, only: str | None) -> Iterator[dict[str, Any]]:
    """Rows of `list` that the ledger knows. Paths are in the ledger's spelling (rows.to_text)."""
    cursor: Cursor | None = Cursor("nodes")
    while cursor is not None:
        some, cursor = page(reader, only, cursor)
        yield from some


def page(reader: LedgerReader, only: str | None, cursor: Cursor) -> tuple[list[dict[str, Any]], Cursor | None]:
    """Some rows of the ledger in the order of their paths, and where the next page begins.

    No read transaction outlives the page: SQLite cannot shorten its WAL while one is open.
    """
    some: list[dict[str, Any]] = []
    if cursor.section == "nodes":
        if wanted("queued", only):
            some = [of_claim(*claim) for claim in reader.elsewhere(after=cursor.after, limit=PAGE_ROWS)]
        following: Cursor | None = Cursor("retries")
    elif cursor.section == "retries":
        states = [state for state in State if wanted(state.value, only)]
        if states:
            state = states[0] if len(states) == 1 else None
            some = [of_retry(retry) for retry in reader.retries(state, after=cursor.after, limit=PAGE_ROWS)]
        following = Cursor("receipts") if wanted("uploaded", only) else None
    else:
        receipts = reader.receipts(after=cursor.after, limit=PAGE_ROWS, unsent=False)
        some, following = [of_receipt(receipt) for receipt in receipts], None
    if len(some) == PAGE_ROWS:
        following = cursor._replace(after=some[-1]["path"])
    if cursor.section != "nodes" and some:
        held = reader.holders([from_text(row["path"]) for row in some])
        some = [row for row in some if from_text(row["path"]) not in held]  # one path, one row
    return some, following


def of_claim(path: str, node: str) -> dict[str, Any]:
    """A file that another node has claimed; only that node knows whether it sends the file already."""
    return {"path": to_text(path), "state": "queued", "node": node}


def on_node(node: str) -> Live:
    return Live("queued", f"claimed by {node}, which sends it")


def of_retry(retry: Retry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": to_text(retry.path),
        "state": retry.state.value,
        "bytes": retry.identity.size,
        "age_s": age_s(retry.identity.ctime_ns),
        "attempts": retry.attempts,
        "error_code": retry.error_code,
        "error": retry.error,
        "hint": retry.hint,
        "fault": (Fault.OWN if retry.own_failures else Fault.UNKNOWN).value,
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
        "age_s": age_s(int(receipt.uploaded_at * 1e9)),
        "key": receipt.key,
        "etag": receipt.etag,
        "checksum": receipt.checksum,
        "version_id": receipt.version_id,
        "uploaded_at": iso(receipt.uploaded_at),
    }


def why(
    path: str,
    known: Known | None,
    identity: Identity | None,
    *,
    live: Live | None,
    left_out: str,
    destination: int | None,
) -> dict[str, Any]:
    """State of one file and one sentence that explains it; the state is the one of `list`.

    `identity` is the file's now (None: no such file), `live` its place in a running daemon, `left_out` the reason why
    the configuration excludes it. Only receipts of this `destination` count.
    """
    receipt = known.receipt if known and known.receipt and known.receipt.destination == destination else None
    retry = known.retry if known else None
    answer: dict[str, Any] = {"path": to_text(path)}
    if identity is not None:
        answer |= {"bytes": identity.size, "age_s": age_s(identity.ctime_ns)}
    if live:
        return answer | {"state": live.state, "why": live.reason}
    if retry and _is(retry.identity, identity):
        return answer | of_retry(retry) | {"why": _why_retried(retry)}
    if receipt and _is(receipt.identity, identity):
        gone = "; the local file is gone" if identity is None else ""
        text = f"uploaded to {receipt.key} at {iso(receipt.uploaded_at)}{gone}"
        return answer | of_receipt(receipt) | {"why": text}
    if identity is None:
        return answer | {"state": "unknown", "why": _UNKNOWN}
    if left_out:
        return answer | {"state": "excluded", "why": left_out}
    text = "not seen yet: a running daemon finds it at its next scan (`s3spool rescan`)"
    if retry or receipt:
        event = f"failed at {iso(retry.last_error_at)}" if retry else ""
        event = event or (f"was uploaded at {iso(receipt.uploaded_at)}" if receipt else "")
        text = f"changed since it {event}: it will be sent again"
    return answer | {"state": UNSENT, "why": text}


def _why_retried(retry: Retry) -> str:
    fault = (Fault.OWN if retry.own_failures else Fault.UNKNOWN).value
    if retry.state is State.PARKED:
        text = f"parked after {retry.attempts} attempt{'' if retry.attempts == 1 else 's'}: {retry.error}"
        return f"{text}{'; tried once more when another file succeeds' if retry.provisional else ''}; {fault}"
    text = f"attempt {retry.attempts} failed: {retry.error_code}: {retry.error}"
    return f"{text}; next try at {iso(retry.next_attempt)}; {fault}"


def left_out(path: str, names: FileFilter, *, recursive: bool) -> str:
    """Why the configuration does not let it through, or ""."""
    if pattern := names.excluded_by(path):
        return f"left out by {pattern} in watch.exclude"
    if not names.accepts_file(path):
        return "left out: no pattern of watch.include takes it"
    if not recursive and "/" in path:
        return "left out: it is in a subdirectory, and watch.recursive is false"
    directory = path.rpartition("/")[0]
    return "too deep: every key below its directory would be too long" if names.too_deep(directory) else ""


def with_rule(answer: dict[str, Any], rules: FileRules, path: str) -> dict[str, Any]:
    """An answer of `why` that names the rule: its number (from 1), None where none applies."""
    if len(rules.destinations) == 1:
        return answer  # there are no rules
    name = rules.name(path)
    return answer | {"rule": rules.number(path), "why": f"{answer['why']}; {name or 'no rule'} applies"}


def prefix_of(config: Config, path: str) -> dict[str, str]:
    """The prefix of a file's key, and the rule that has a say: `rule 2 (*.html)`, or ""."""
    rules = FileRules(config)
    return {"prefix": rules.destination(path).prefix, "rule": rules.name(path)}


def living(reader: LedgerReader, destination: str, owner: int = 0) -> list[Node]:
    """The nodes of the destination with this name; `owner`: the number of the daemon that answers."""
    return [
        Node(
            name=node.name,
            host=node.host,
            version=node.version,
            started=iso(node.started_at),
            lease_left_s=round(node.lease_left_s, 1),
            in_flight=node.load.in_flight,
            files_per_minute=node.load.files_per_minute,
            this=node.owner == owner,
        )
        for node in reader.nodes()
        if node.destination == destination
    ]


def releasable(reader: LedgerReader | None, paths: Sequence[str] | None) -> int:
    """How many files `retry` will release: these, or all. Raises S3SpoolError if one of them is not in the list."""
    if paths is None:
        return sum(count for state, count in reader.counts().items() if state != "uploaded") if reader else 0
    known = reader.known(paths) if reader else {}
    for path in paths:
        if path not in known or known[path].retry is None:
            raise S3SpoolError(f"{shown(path)}: is neither waiting nor parked; see `s3spool why`")
    return len(set(paths))


def identity_of(folder: Folder, path: str, known: Known | None = None) -> Identity | None:
    """Like Folder.identity_of, but raises S3SpoolError; the record of a file that cannot be read stands in for it."""
    try:
        return folder.identity_of(path)
    except OSError as exc:
        if record := known and (known.retry or known.receipt):
            return record.identity
        raise S3SpoolError(f"{shown(path)}: cannot be looked at: {exc.strerror}") from exc


def _is(recorded: Identity, identity: Identity | None) -> bool:
    """Whether the record speaks of the file as it is now, or as it was when it went away."""
    return identity is None or recorded == identity or recorded.may_hold_the_same(identity)


def age_s(since_ns: int | None) -> float:
    """Seconds from then (Unix nanoseconds) until now; 0 where there is no such moment."""
    return 0.0 if since_ns is None else round(max(0.0, time.time() - since_ns / 1e9), 1)


def iso(time_s: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
