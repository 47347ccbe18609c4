"""Queries to the ledger's SQLite file: read-only, so any number of threads and processes may run them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from s3spool.ledger.database import open_for_reading, speaking_of
from s3spool.ledger.queries import LOOKUP_ROWS, Known, LedgerReader, Totals
from s3spool.ledger.rows import Identity, Multipart, Receipt, Retry, State, from_text, to_text
from s3spool.ledger.statements import COLUMNS

SUMMED_ROWS = 100_000  # adding up more sizes would make `status` slow
_TOTALS = f"""
SELECT receipts, receipt_bytes, waiting, parked,
    (SELECT count(*) FROM retries WHERE state = 'waiting' AND claimed = 1),
    (SELECT min(ctime_ns) FROM retries WHERE state = 'waiting'),
    CASE WHEN waiting + parked > {SUMMED_ROWS} THEN 0
        ELSE (SELECT coalesce(sum(size), 0) FROM retries WHERE claimed = 0) END
FROM totals
"""  # noqa: S608 - constants
# The mark of a name that is not UTF-8 stays before its first segment.
_MARK = "CASE WHEN path LIKE '//%' THEN '//' ELSE '' END"
_REST = "substr(path, CASE WHEN path LIKE '//%' THEN 3 ELSE 1 END)"


def _is_as_found(table: str) -> str:
    return " AND ".join(f"{table}.{column} IS found.{column}" for column in Identity._fields)


_NEWS = f"""
WITH found (path, {", ".join(Identity._fields)}) AS (VALUES {", ".join(["(?, ?, ?, ?, ?, ?)"] * LOOKUP_ROWS)})
SELECT found.path, retries.path IS NOT NULL OR receipts.path IS NOT NULL
FROM found LEFT JOIN retries ON retries.path = found.path LEFT JOIN receipts ON receipts.path = found.path
WHERE NOT CASE
    WHEN retries.path IS NOT NULL THEN {_is_as_found("retries")}
    ELSE {_is_as_found("receipts")} AND receipts.destination IS ? AND receipts.after IS 'keep'
END
"""  # noqa: S608 - constants


class Reader(LedgerReader):
    """The queries of the SQLite file."""

    RECEIPTS, RETRIES, MULTIPARTS, PAUSES = "receipts", "retries", "multiparts", "pause"
    RECEIPT, MULTIPART = ", ".join(COLUMNS["receipts"]), ", ".join(COLUMNS["multiparts"])
    RETRY = ", ".join(column for column in COLUMNS["retries"] if column != "claimed")
    NO_RETRY = "NOT EXISTS (SELECT 1 FROM retries WHERE retries.path = receipts.path)"
    SEGMENT = f"CASE instr({_REST}, '/') WHEN 0 THEN '' ELSE {_MARK} || substr({_REST}, 1, instr({_REST}, '/')) END"

    def __init__(self, path: Path) -> None:
        """Raises LedgerError."""
        self._path = path
        self._db = open_for_reading(path)

    def close(self) -> None:
        self._db.close()

    def made(self) -> bool:
        """False until the first daemon of this directory has created the tables."""
        return int(self._value("PRAGMA user_version")) > 0

    def known(self, paths: Sequence[str]) -> dict[str, Known]:
        found: dict[str, Known] = {}
        for start in range(0, len(paths), LOOKUP_ROWS):
            texts = [to_text(path) for path in paths[start : start + LOOKUP_ROWS]]
            texts += [""] * (LOOKUP_ROWS - len(texts) if len(texts) > 1 else 0)  # no path is empty
            where = f"path IN ({','.join('?' * len(texts))})"
            for receipt in self._run(f"SELECT {self.RECEIPT} FROM receipts WHERE {where}", texts, self._receipt):  # noqa: S608 - constants
                found[receipt.path] = Known(receipt, None)
            for retry in self._run(f"SELECT {self.RETRY} FROM retries WHERE {where}", texts, self._retry):  # noqa: S608 - constants
                before = found.get(retry.path)
                found[retry.path] = Known(before.receipt if before else None, retry)
        return found

    def news(self, found: Sequence[tuple[str, Identity]], destination: int) -> dict[str, bool]:
        """As LedgerReader says. SQLite compares, and does not say a word of a million files that are as they were.

        Ask in the order of the paths: in any other each look goes to another page.
        """
        news: dict[str, bool] = {}
        for start in range(0, len(found), LOOKUP_ROWS):
            some = found[start : start + LOOKUP_ROWS]
            args: list[object] = []
            for path, identity in some:
                args.append(to_text(path))
                args += identity
            args += ("", 0, 0, 0, 0, 0) * (LOOKUP_ROWS - len(some))  # no path is empty
            args.append(destination)
            news.update((from_text(text), bool(known)) for text, known in self._run(_NEWS, args) if text)
        return news

    def totals(self) -> Totals:
        return Totals(*next(self._rows(_TOTALS)))

    def version(self) -> int:
        return int(self._value("PRAGMA data_version"))

    def receipts_before(self, time_s: float) -> Iterator[Receipt]:
        return self._rows(f"SELECT {self.RECEIPT} FROM receipts WHERE uploaded_at < :time", self._receipt, time=time_s)  # noqa: S608 - constants

    def _rows(self, statement: str, make: Callable[[Sequence[Any]], Any] = tuple, **arguments: object) -> Iterator[Any]:
        return self._run(statement, arguments, make)

    def _run(
        self,
        statement: str,
        arguments: Sequence[object] | dict[str, object],
        make: Callable[[Sequence[Any]], Any] = tuple,
    ) -> Iterator[Any]:
        """Raises LedgerError: a file that could be opened may still turn out to be damaged."""
        with speaking_of(self._path):
            for row in self._db.execute(statement, arguments):
                try:
                    made = make(row)
                except (ValueError, TypeError, AttributeError) as exc:
                    # SQLite checks pages, not values.
                    raise sqlite3.DatabaseError(f"malformed row: {exc}") from exc
                yield made

    def _receipt(self, row: Sequence[Any]) -> Receipt:
        return Receipt(from_text(row[0]), _identity(row), *row[6:])

    def _retry(self, row: Sequence[Any]) -> Retry:
        state, own_failures, provisional = State(row[13]), int(row[14]), bool(row[15])
        return Retry(from_text(row[0]), _identity(row), *row[6:13], state, own_failures, provisional)  # type: ignore[call-arg] # fixed width

    def _multipart(self, row: Sequence[Any]) -> Multipart:
        return Multipart(from_text(row[0]), _identity(row), *row[6:])


def _identity(row: Sequence[Any]) -> Identity:
    return Identity(*row[1:6])
