"""Queries to the shared ledger: any number of threads and processes may run them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from s3spool.ledger.postgresql import statements as sql
from s3spool.ledger.postgresql.connection import connect, number, speaking_of
from s3spool.ledger.postgresql.lease import Lease
from s3spool.ledger.queries import ALL, LOOKUP_ROWS, Known, LedgerReader, Totals
from s3spool.ledger.rows import Identity, Multipart, Node, NodeLoad, Receipt, Retry, State, from_text, to_text

_NAMED = re.compile(r"(?<!:):(\w+)")  # arguments as LedgerReader writes them
_HERE = "destination = %(destination)s"
_FREE = "(owner IS NULL OR NOT EXISTS (SELECT FROM nodes WHERE nodes.id = owner))"
_RETRIES = f"""
SELECT {sql.RETRY}, failed[3] AS size, failed[5] AS ctime_ns, CASE WHEN {_FREE} THEN 0 ELSE 1 END AS claimed
FROM files WHERE {_HERE} AND failed IS NOT NULL
"""  # noqa: S608 - constants
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


_RECEIPT_WIDTH = len(Receipt._fields)


class RowReader:
    """Rows as this host has them: with the number that it gives to the folder's device, and by its clock."""

    def __init__(self, device: int, lease: Lease) -> None:
        self._device = device
        self._lease = lease

    def known_row(self, row: Sequence[Any]) -> tuple[str, Known]:
        """A row with the columns of a receipt and of a retry."""
        sent, failed = row[:_RECEIPT_WIDTH], row[_RECEIPT_WIDTH:]
        known = Known(self._receipt(sent) if sent[1] else None, self._retry(failed) if failed[1] else None)
        return from_text(row[0]), known

    def _receipt(self, row: Sequence[Any]) -> Receipt:
        return Receipt(from_text(row[0]), self._identity(row), *row[2:])

    def _retry(self, row: Sequence[Any]) -> Retry:
        due = self._lease.from_database(row[8])
        return Retry(from_text(row[0]), self._identity(row), *row[2:8], due, State(row[9]), *row[10:])  # type: ignore[call-arg] # fixed width

    def _multipart(self, row: Sequence[Any]) -> Multipart:
        return Multipart(from_text(row[0]), self._identity(row), *row[2:])

    def _identity(self, row: Sequence[Any]) -> Identity:
        return Identity(self._device, *row[1][1:])


class PostgresReader(RowReader, LedgerReader):
    """The queries of one destination's rows in PostgreSQL."""

    RECEIPT, RETRY, MULTIPART = sql.RECEIPT, sql.RETRY, sql.MULTIPART
    RECEIPTS = f"(SELECT {sql.RECEIPT}, failed FROM files WHERE {_HERE} AND sent IS NOT NULL) AS receipts"  # noqa: S608 - constants
    RETRIES = f"({_RETRIES}) AS retries"
    MULTIPARTS = f"(SELECT {sql.MULTIPART} FROM multiparts WHERE {_HERE}) AS multiparts"  # noqa: S608 - constants
    PAUSES = f"(SELECT since, reason FROM pause WHERE {_HERE}) AS pauses"  # noqa: S608 - constants
    NO_RETRY = "failed IS NULL"
    SEGMENT = "coalesce(substring(path FROM '^((//)?[^/]*/)'), '')"

    def __init__(self, url: str, destination: int, *, device: int, lease: Lease | None = None) -> None:
        """`device`: st_dev of the folder on this host; `lease`: that of this daemon. Raises LedgerError."""
        super().__init__(device, lease or Lease(destination, ""))
        self._url = url
        self._destination = destination
        with speaking_of(url):
            self._db = connect(url)

    def close(self) -> None:
        self._db.close()

    def known(self, paths: Sequence[str]) -> dict[str, Known]:
        found: dict[str, Known] = {}
        statement = f"SELECT {sql.RECEIPT}, {sql.RETRY} FROM files WHERE {_HERE} AND path = ANY(%(paths)s)"  # noqa: S608 - constants
        statement += " AND (sent IS NOT NULL OR failed IS NOT NULL)"
        for start in range(0, len(paths), LOOKUP_ROWS):
            texts = [to_text(path) for path in paths[start : start + LOOKUP_ROWS]]
            found.update(self._rows(statement, self.known_row, paths=texts))
        return found

    def news(self, found: Sequence[tuple[str, Identity]], destination: int) -> dict[str, bool]:
        rows = [{"path": to_text(path), "identity": sql.shared(identity)} for path, identity in found]
        pairs = self._rows(_NEWS, found=sql.as_json(rows), number=destination, owner=self._lease.owner)
        return {from_text(text): bool(is_known) for text, is_known in pairs}

    def receipts_before(self, time_s: float) -> Iterator[Receipt]:
        rows = f"SELECT {self.RECEIPT} FROM {self.RECEIPTS} WHERE path > :after AND uploaded_at < :time"  # noqa: S608 - constants
        return self._paged(rows, self._receipt, "", ALL, time=time_s)

    def totals(self) -> Totals:
        return Totals(*next(self._rows(_TOTALS)))

    def version(self) -> int:
        return int(next(self._rows("SELECT last_value + is_called::int FROM changes"))[0])

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

    def _rows(self, statement: str, make: Callable[[Sequence[Any]], Any] = tuple, **arguments: object) -> Iterator[Any]:
        """Raises LedgerError."""
        text = _NAMED.sub(r"%(\1)s", statement)
        with speaking_of(self._url):
            rows = self._db.execute(text.encode(), {"destination": self._destination, **arguments}).fetchall()
        return map(make, rows)

    def _to_ledger(self, time_s: float) -> float:
        return self._lease.to_database(time_s)

    def _from_ledger(self, time_s: float) -> float:
        return self._lease.from_database(time_s)


def opened(url: str, destination: str, *, device: int) -> PostgresReader | None:
    """A reader of the destination of this name; None where no daemon has made the tables. Raises LedgerError."""
    with speaking_of(url), connect(url) as connection:
        made = number(connection, "SELECT (to_regclass('destinations') IS NOT NULL)::int")
        if not made:
            return None
        known = number(connection, "SELECT id FROM destinations WHERE name = %s", (destination,))
    return PostgresReader(url, known, device=device)


def _node(row: Sequence[Any]) -> Node:
    return Node(*row[:7], NodeLoad(*row[7:]))  # type: ignore[call-arg] # fixed width
