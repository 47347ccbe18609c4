"""Queries to the ledger: read-only, so any number of threads and processes may run them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from s3spool.ledger.database import open_for_reading, speaking_of
from s3spool.ledger.protocol import AGES_S, ALL, LOOKUP_ROWS, Known, LedgerReader, Totals
from s3spool.ledger.rows import Identity, Multipart, Part, Pause, Receipt, Retry, State, from_text, to_text
from s3spool.ledger.statements import COLUMNS

_RECEIPT, _MULTIPART, _PART = (", ".join(COLUMNS[table]) for table in ("receipts", "multiparts", "parts"))
_RETRY = ", ".join(column for column in COLUMNS["retries"] if column != "claimed")
SUMMED_ROWS = 100_000  # adding up more sizes would make `status` slow
_TOTALS = f"""
SELECT receipts, receipt_bytes, waiting, parked,
    (SELECT count(*) FROM retries WHERE state = 'waiting' AND claimed = 1),
    (SELECT min(ctime_ns) FROM retries WHERE state = 'waiting'),
    CASE WHEN waiting + parked > {SUMMED_ROWS} THEN 0
        ELSE (SELECT coalesce(sum(size), 0) FROM retries WHERE claimed = 0) END
FROM totals
"""  # noqa: S608 - constants


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

    def __init__(self, path: Path) -> None:
        """Raises LedgerError."""
        self._path = path
        self._db = open_for_reading(path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def made(self) -> bool:
        """False until the first daemon of this directory has created the tables."""
        return int(next(self._rows("PRAGMA user_version"))[0]) > 0

    def known(self, paths: Sequence[str]) -> dict[str, Known]:
        """The rows of these paths; unknown paths are left out."""
        found: dict[str, Known] = {}
        for start in range(0, len(paths), LOOKUP_ROWS):
            texts = [to_text(path) for path in paths[start : start + LOOKUP_ROWS]]
            texts += [""] * (LOOKUP_ROWS - len(texts) if len(texts) > 1 else 0)  # no path is empty
            marks = ",".join("?" * len(texts))
            for receipt in self._rows(f"SELECT {_RECEIPT} FROM receipts WHERE path IN ({marks})", texts, _receipt):  # noqa: S608 - constants
                found[receipt.path] = Known(receipt, None)
            for retry in self._rows(f"SELECT {_RETRY} FROM retries WHERE path IN ({marks})", texts, _retry):  # noqa: S608 - constants
                before = found.get(retry.path)
                found[retry.path] = Known(before.receipt if before else None, retry)
        return found

    def news(self, found: Sequence[tuple[str, Identity]], destination: int) -> dict[str, bool]:
        """The files whose state differs from the ledger; the value: whether the ledger has a row of the path.

        As it has them: this very state was sent to `destination` and is to stay, or this very state is in the retry
        list. SQLite compares, and does not say a word of a million files that are as they were. Ask in the order of
        the paths: in any other each look goes to another page.
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
            news.update((from_text(text), bool(known)) for text, known in self._rows(_NEWS, args) if text)
        return news

    def due(self, now: float, limit: int) -> list[Retry]:
        """Waiting retries that are due and with no worker, the longest due first."""
        rows = self._rows(
            f"SELECT {_RETRY} FROM retries WHERE state = 'waiting' AND claimed = 0 AND next_attempt <= ?"  # noqa: S608 - constants
            " ORDER BY next_attempt LIMIT ?",
            (now, limit),
            _retry,
        )
        return list(rows)

    def waiting_without_proof(self) -> int:
        """How many waiting files have not failed by their own proven fault (`Failures.own`)."""
        waiting = "SELECT count(*) FROM retries WHERE state = 'waiting'"
        return int(next(self._rows(f"{waiting} AND own_failures = 0"))[0])

    def next_due(self) -> float | None:
        """When the next waiting retry is due, in Unix seconds."""
        row = next(self._rows("SELECT min(next_attempt) FROM retries WHERE state = 'waiting' AND claimed = 0"))
        return None if row[0] is None else float(row[0])

    def last_due(self) -> float | None:
        """When the last waiting retry is due, in Unix seconds."""
        row = next(self._rows("SELECT max(next_attempt) FROM retries WHERE state = 'waiting' AND claimed = 0"))
        return None if row[0] is None else float(row[0])

    def retries(self, state: State | None = None, *, after: str = "", limit: int = ALL) -> Iterator[Retry]:
        """Streamed in the order of their paths, from behind the path `after` (as `to_text` spells it)."""
        statement = f"SELECT {_RETRY} FROM retries WHERE path > ? AND state IN (?, ?) ORDER BY path LIMIT ?"  # noqa: S608 - constants
        states = [state.value] * 2 if state else [each.value for each in State]
        yield from self._rows(statement, (after, *states, limit), _retry)

    def receipts(self, *, after: str = "", limit: int = ALL, unsent: bool = True) -> Iterator[Receipt]:
        """Likewise; `unsent` False leaves out files that are in the retry list as well."""
        where = (
            "path > ?"
            if unsent
            else "path > ? AND NOT EXISTS (SELECT 1 FROM retries WHERE retries.path = receipts.path)"
        )
        statement = f"SELECT {_RECEIPT} FROM receipts WHERE {where} ORDER BY path LIMIT ?"  # noqa: S608 - constants
        yield from self._rows(statement, (after, limit), _receipt)

    def random_receipts(self, count: int) -> Iterator[Receipt]:
        yield from self._rows(f"SELECT {_RECEIPT} FROM receipts ORDER BY random() LIMIT ?", (count,), _receipt)  # noqa: S608 - constants

    def receipts_before(self, time_s: float) -> Iterator[Receipt]:
        """Receipts of uploads that ended before this moment."""
        yield from self._rows(f"SELECT {_RECEIPT} FROM receipts WHERE uploaded_at < ?", (time_s,), _receipt)  # noqa: S608 - constants

    def multiparts(self) -> list[Multipart]:
        return list(self._rows(f"SELECT {_MULTIPART} FROM multiparts", make=_multipart))  # noqa: S608 - constants

    def multipart(self, path: str) -> Multipart | None:
        statement = f"SELECT {_MULTIPART} FROM multiparts WHERE path = ?"  # noqa: S608 - constants
        return next(self._rows(statement, (to_text(path),), _multipart), None)

    def parts(self, upload_id: str) -> list[Part]:
        rows = self._rows(
            f"SELECT {_PART} FROM parts WHERE upload_id = ? ORDER BY number",  # noqa: S608 - constants
            (upload_id,),
            lambda row: Part(*row),
        )
        return list(rows)

    def counts(self) -> dict[str, int]:
        """How many rows of each kind: uploaded, waiting, parked."""
        uploaded, waiting, parked = next(self._rows("SELECT receipts, waiting, parked FROM totals"))
        return {"uploaded": uploaded, "waiting": waiting, "parked": parked}

    def totals(self) -> Totals:
        """As `counts`, with all figures."""
        return Totals(*next(self._rows(_TOTALS)))

    def version(self) -> int:
        """Changes with each commit of another connection; 1 or more; comparable within this reader only."""
        return int(next(self._rows("PRAGMA data_version"))[0])

    def pause(self) -> Pause | None:
        """The pause by hand."""
        return next(self._rows("SELECT since, reason FROM pause", make=lambda row: Pause(*row)), None)

    def errors(self, limit: int) -> list[tuple[str, str, int]]:
        """(state, error code, files) of the retry list, the most frequent first."""
        statement = "SELECT state, error_code, count(*) FROM retries GROUP BY 1, 2 ORDER BY 3 DESC LIMIT ?"
        return list(self._rows(statement, (limit,)))

    def ages(self, now: float, limit: int) -> list[tuple[Any, ...]]:
        """(first path segment, files by age as AGES_S bounds it) of the retry list, the most files first."""
        ages = ", ".join(
            f"sum(ctime_ns <= {int((now - low) * 1e9)} AND ctime_ns > {int((now - high) * 1e9)})"
            for low, high in zip((-now, *AGES_S), (*AGES_S, now), strict=True)
        )
        rest = "substr(path, CASE WHEN path LIKE '//%' THEN 3 ELSE 1 END)"
        mark = "CASE WHEN path LIKE '//%' THEN '//' ELSE '' END"
        segment = f"CASE instr({rest}, '/') WHEN 0 THEN '' ELSE {mark} || substr({rest}, 1, instr({rest}, '/')) END"
        statement = f"SELECT {segment}, {ages} FROM retries GROUP BY 1 ORDER BY count(*) DESC LIMIT ?"  # noqa: S608 - constants
        return list(self._rows(statement, (limit,)))

    def last_error(self) -> Retry | None:
        statement = f"SELECT {_RETRY} FROM retries ORDER BY last_error_at DESC LIMIT 1"  # noqa: S608 - constants
        return next(self._rows(statement, make=_retry), None)

    def destination(self, name: str) -> int | None:
        """The number that receipts of this destination carry (`Ledger.destination`)."""
        row = next(self._rows("SELECT id FROM destinations WHERE name = ?", (name,)), None)
        return None if row is None else int(row[0])

    def _rows(
        self, statement: str, args: Sequence[object] = (), make: Callable[[Sequence[Any]], Any] = tuple
    ) -> Iterator[Any]:
        """Raises LedgerError: a file that could be opened may still turn out to be damaged."""
        with speaking_of(self._path):
            for row in self._db.execute(statement, args):
                try:
                    made = make(row)
                except (ValueError, TypeError, AttributeError) as exc:
                    # SQLite checks pages, not values.
                    raise sqlite3.DatabaseError(f"malformed row: {exc}") from exc
                yield made


def _identity(row: Sequence[Any]) -> Identity:
    return Identity(*row[1:6])


def _receipt(row: Sequence[Any]) -> Receipt:
    return Receipt(from_text(row[0]), _identity(row), *row[6:])


def _retry(row: Sequence[Any]) -> Retry:
    state, own_failures, provisional = State(row[13]), int(row[14]), bool(row[15])
    return Retry(from_text(row[0]), _identity(row), *row[6:13], state, own_failures, provisional)  # type: ignore[call-arg] # fixed width


def _multipart(row: Sequence[Any]) -> Multipart:
    return Multipart(from_text(row[0]), _identity(row), *row[6:])
