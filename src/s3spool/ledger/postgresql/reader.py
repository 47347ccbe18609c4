"""Queries to the shared ledger: any number of threads and processes may run them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from s3spool.ledger.postgresql import statements as sql
from s3spool.ledger.postgresql.connection import connect, number, speaking_of
from s3spool.ledger.postgresql.lease import Lease
from s3spool.ledger.protocol import AGES_S, ALL, LOOKUP_ROWS, Known, LedgerReader, Totals
from s3spool.ledger.rows import (
    Identity,
    Multipart,
    Node,
    NodeLoad,
    Part,
    Pause,
    Receipt,
    Retry,
    State,
    from_text,
    to_text,
)

_HERE = "destination = %(destination)s"
_FREE = "(owner IS NULL OR NOT EXISTS (SELECT FROM nodes WHERE nodes.id = owner))"
_WAITING = f"{_HERE} AND state = 'waiting' AND {_FREE}"
_TOTALS = f"""
SELECT count(sent), coalesce(sum(sent[3]), 0)::bigint, count(*) FILTER (WHERE state = 'waiting'),
    count(*) FILTER (WHERE state = 'parked'), count(*) FILTER (WHERE state = 'waiting' AND NOT {_FREE}),
    min(failed[5]) FILTER (WHERE state = 'waiting'), coalesce(sum(failed[3]) FILTER (WHERE {_FREE}), 0)::bigint
FROM files WHERE {_HERE}
"""  # noqa: S608 - constants
_NEWS = """
SELECT found.path, files.sent IS NOT NULL OR files.failed IS NOT NULL
FROM json_to_recordset(%(found)s) AS found (path text, identity bigint[])
    LEFT JOIN files ON files.destination = %(number)s AND files.path = found.path
WHERE CASE WHEN files.failed IS NOT NULL THEN files.failed IS DISTINCT FROM found.identity
    ELSE files.sent IS DISTINCT FROM found.identity OR files.after IS DISTINCT FROM 'keep' END
    AND NOT EXISTS (SELECT FROM nodes WHERE nodes.id = files.owner AND nodes.id <> %(owner)s)
"""

_NODES = """
SELECT nodes.id, destinations.name, nodes.name, host, version, extract(epoch FROM started_at)::float8,
    extract(epoch FROM alive_until - clock_timestamp())::float8, in_flight, files_per_minute, marker
FROM nodes JOIN destinations ON destinations.id = nodes.destination
WHERE alive_until > clock_timestamp() ORDER BY nodes.name, nodes.id
"""
_CLAIMS = f"""
FROM files JOIN nodes ON nodes.id = files.owner AND nodes.id <> %(owner)s AND nodes.alive_until > clock_timestamp()
WHERE files.{_HERE}
"""


class PostgresReader(LedgerReader):
    """The queries of one destination's rows in PostgreSQL."""

    def __init__(self, url: str, destination: int, *, device: int, lease: Lease | None = None) -> None:
        """`device`: st_dev of the folder on this host; `lease`: that of this daemon. Raises LedgerError."""
        self._lease = lease or Lease(destination, "")
        self._url = url
        self._destination = destination
        self._made = RowReader(device, self._lease)
        with speaking_of(url):
            self._db = connect(url)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self, paths: Sequence[str]) -> dict[str, Known]:
        found: dict[str, Known] = {}
        statement = f"SELECT {sql.RECEIPT}, {sql.RETRY} FROM files WHERE {_HERE} AND path = ANY(%(paths)s)"  # noqa: S608 - constants
        statement += " AND (sent IS NOT NULL OR failed IS NOT NULL)"
        for start in range(0, len(paths), LOOKUP_ROWS):
            texts = [to_text(path) for path in paths[start : start + LOOKUP_ROWS]]
            found.update(self._rows(statement, self._made.known, paths=texts))
        return found

    def news(self, found: Sequence[tuple[str, Identity]], destination: int) -> dict[str, bool]:
        news: dict[str, bool] = {}
        for start in range(0, len(found), LOOKUP_ROWS):
            some = found[start : start + LOOKUP_ROWS]
            rows = [{"path": to_text(path), "identity": sql.shared(identity)} for path, identity in some]
            pairs = self._rows(_NEWS, found=sql.as_json(rows), number=destination, owner=self._lease.owner)
            news.update((from_text(text), bool(is_known)) for text, is_known in pairs)
        return news

    def due(self, now: float, limit: int) -> list[Retry]:
        statement = f"SELECT {sql.RETRY} FROM files WHERE {_WAITING} AND next_attempt <= %(now)s"  # noqa: S608 - constants
        statement += " ORDER BY next_attempt LIMIT %(limit)s"
        return list(self._rows(statement, self._made.retry, now=self._lease.to_database(now), limit=limit))

    def waiting_without_proof(self) -> int:
        waiting = f"{_HERE} AND state = 'waiting' AND own_failures = 0"
        return int(next(self._rows(f"SELECT count(*) FROM files WHERE {waiting}"))[0])  # noqa: S608 - constants

    def next_due(self) -> float | None:
        return self._value(f"SELECT min(next_attempt) FROM files WHERE {_WAITING}")  # noqa: S608 - constants

    def last_due(self) -> float | None:
        return self._value(f"SELECT max(next_attempt) FROM files WHERE {_WAITING}")  # noqa: S608 - constants

    def retries(self, state: State | None = None, *, after: str = "", limit: int = ALL) -> Iterator[Retry]:
        states = [state.value] if state else [each.value for each in State]
        where = f"{_HERE} AND path > %(after)s AND state = ANY(%(states)s)"
        yield from self._paged(sql.RETRY, where, self._made.retry, after, limit, states=states)

    def receipts(self, *, after: str = "", limit: int = ALL, unsent: bool = True) -> Iterator[Receipt]:
        where = f"{_HERE} AND path > %(after)s AND sent IS NOT NULL"
        where += "" if unsent else " AND failed IS NULL"
        yield from self._paged(sql.RECEIPT, where, self._made.receipt, after, limit)

    def random_receipts(self, count: int) -> Iterator[Receipt]:
        statement = f"SELECT {sql.RECEIPT} FROM files WHERE {_HERE} AND sent IS NOT NULL ORDER BY random()"  # noqa: S608 - constants
        yield from self._rows(f"{statement} LIMIT %(count)s", self._made.receipt, count=count)

    def receipts_before(self, time_s: float) -> Iterator[Receipt]:
        where = f"{_HERE} AND path > %(after)s AND sent IS NOT NULL AND uploaded_at < %(time_s)s"
        yield from self._paged(sql.RECEIPT, where, self._made.receipt, "", ALL, time_s=time_s)

    def multiparts(self) -> list[Multipart]:
        return list(self._rows(f"SELECT {sql.MULTIPART} FROM multiparts WHERE {_HERE}", self._made.multipart))  # noqa: S608 - constants

    def multipart(self, path: str) -> Multipart | None:
        statement = f"SELECT {sql.MULTIPART} FROM multiparts WHERE {_HERE} AND path = %(path)s"  # noqa: S608 - constants
        return next(self._rows(statement, self._made.multipart, path=to_text(path)), None)

    def parts(self, upload_id: str) -> list[Part]:
        statement = f"SELECT {sql.PART} FROM parts WHERE upload_id = %(upload_id)s ORDER BY number"  # noqa: S608 - constants
        return list(self._rows(statement, lambda row: Part(*row), upload_id=upload_id))

    def counts(self) -> dict[str, int]:
        totals = self.totals()
        return {"uploaded": totals.uploaded, "waiting": totals.waiting, "parked": totals.parked}

    def totals(self) -> Totals:
        return Totals(*next(self._rows(_TOTALS)))

    def version(self) -> int:
        return int(next(self._rows("SELECT last_value + is_called::int FROM changes"))[0])

    def pause(self) -> Pause | None:
        return next(self._rows(f"SELECT since, reason FROM pause WHERE {_HERE}", lambda row: Pause(*row)), None)  # noqa: S608 - constants

    def errors(self, limit: int) -> list[tuple[str, str, int]]:
        statement = f"SELECT state, error_code, count(*) FROM files WHERE {_HERE} AND failed IS NOT NULL"  # noqa: S608 - constants
        return list(self._rows(f"{statement} GROUP BY 1, 2 ORDER BY 3 DESC LIMIT %(limit)s", limit=limit))

    def ages(self, now: float, limit: int) -> list[tuple[Any, ...]]:
        bounds_ns = [int((now - age_s) * 1e9) for age_s in (-now, *AGES_S, now)]
        ages = ", ".join(
            f"count(*) FILTER (WHERE failed[5] <= {low} AND failed[5] > {high})"
            for low, high in itertools.pairwise(bounds_ns)
        )
        # As in SQLite: the first directory; the mark of a name that is not UTF-8 stays before it.
        segment = "coalesce(substring(path FROM '^((//)?[^/]*/)'), '')"
        statement = f"SELECT {segment}, {ages} FROM files WHERE {_HERE} AND failed IS NOT NULL"  # noqa: S608 - constants
        return list(self._rows(f"{statement} GROUP BY 1 ORDER BY count(*) DESC LIMIT %(limit)s", limit=limit))

    def last_error(self) -> Retry | None:
        statement = f"SELECT {sql.RETRY} FROM files WHERE {_HERE} AND failed IS NOT NULL"  # noqa: S608 - constants
        return next(self._rows(f"{statement} ORDER BY last_error_at DESC LIMIT 1", self._made.retry), None)

    def destination(self, name: str) -> int | None:
        row = next(self._rows("SELECT id FROM destinations WHERE name = %(name)s", name=name), None)
        return None if row is None else int(row[0])

    def _paged(
        self, columns: str, where: str, make: Callable[[Sequence[Any]], Any], after: str, limit: int, **arguments: Any
    ) -> Iterator[Any]:
        """Page by page: neither the server nor this process holds a million rows."""
        statement = f"SELECT {columns} FROM files WHERE {where} ORDER BY path LIMIT %(page)s"  # noqa: S608 - constants
        while limit:
            page = LOOKUP_ROWS if limit == ALL else min(limit, LOOKUP_ROWS)
            rows = list(self._rows(statement, make, after=after, page=page, **arguments))
            yield from rows
            if len(rows) < page:
                return
            after = to_text(rows[-1].path)
            limit -= 0 if limit == ALL else page

    def _value(self, statement: str) -> float | None:
        value = next(self._rows(statement))[0]
        return None if value is None else self._lease.from_database(float(value))

    def is_alive(self, owner: int) -> bool:
        return bool(next(self._rows("SELECT EXISTS (SELECT FROM nodes WHERE id = %(owner)s)", owner=owner))[0])

    def nodes(self) -> list[Node]:
        return list(self._rows(_NODES, _node))

    def claimed_elsewhere(self) -> int:
        return int(next(self._rows(f"SELECT count(*) {_CLAIMS}", owner=self._lease.owner))[0])

    def elsewhere(self, *, after: str = "", limit: int = ALL) -> list[tuple[str, str]]:
        statement = f"SELECT path, nodes.name {_CLAIMS} AND path > %(after)s ORDER BY path LIMIT %(limit)s"
        most = None if limit == ALL else limit
        rows = self._rows(statement, owner=self._lease.owner, after=after, limit=most)
        return [(from_text(text), node) for text, node in rows]

    def holders(self, paths: Sequence[str]) -> dict[str, str]:
        statement = f"SELECT path, nodes.name {_CLAIMS} AND path = ANY(%(paths)s)"
        rows = self._rows(statement, owner=self._lease.owner, paths=[*map(to_text, paths)])
        return {from_text(text): node for text, node in rows}

    def _rows(self, statement: str, make: Callable[[Sequence[Any]], Any] = tuple, **arguments: Any) -> Iterator[Any]:
        """Raises LedgerError."""
        with speaking_of(self._url):
            rows = self._db.execute(statement.encode(), {"destination": self._destination, **arguments}).fetchall()
        return map(make, rows)


def opened(url: str, destination: str, *, device: int) -> PostgresReader | None:
    """A reader of the destination of this name; None where no daemon has made the tables. Raises LedgerError."""
    with speaking_of(url), connect(url) as connection:
        made = number(connection, "SELECT (to_regclass('destinations') IS NOT NULL)::int")
        if not made:
            return None
        known = number(connection, "SELECT id FROM destinations WHERE name = %s", (destination,))
    return PostgresReader(url, known, device=device)


_RECEIPT_WIDTH = len(Receipt._fields)


class RowReader(NamedTuple):
    """Rows as this host has them: with the number that it gives to the folder's device, and by its clock."""

    device: int
    lease: Lease

    def known(self, row: Sequence[Any]) -> tuple[str, Known]:
        """A row with the columns of a receipt and of a retry."""
        sent, failed = row[:_RECEIPT_WIDTH], row[_RECEIPT_WIDTH:]
        known = Known(self.receipt(sent) if sent[1] else None, self.retry(failed) if failed[1] else None)
        return from_text(row[0]), known

    def receipt(self, row: Sequence[Any]) -> Receipt:
        return Receipt(from_text(row[0]), self._identity(row), *row[2:])

    def retry(self, row: Sequence[Any]) -> Retry:
        due = self.lease.from_database(row[8])
        return Retry(from_text(row[0]), self._identity(row), *row[2:8], due, State(row[9]), *row[10:])  # type: ignore[call-arg] # fixed width

    def multipart(self, row: Sequence[Any]) -> Multipart:
        return Multipart(from_text(row[0]), self._identity(row), *row[2:])

    def _identity(self, row: Sequence[Any]) -> Identity:
        return Identity(self.device, *row[1][1:])


def _node(row: Sequence[Any]) -> Node:
    return Node(*row[:7], NodeLoad(*row[7:]))  # type: ignore[call-arg] # fixed width
