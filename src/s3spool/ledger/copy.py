"""Copies the rows of one destination from one ledger to another, and compares them: page by page, in any direction."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from s3spool.errors import LedgerError
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LOOKUP_ROWS, LedgerReader
from s3spool.ledger.rows import Identity, Multipart, Part, Pause, Receipt, Retry, storable, to_text

FLUSH_S = 120.0
DIGITS = 6  # of times: SQLite and PostgreSQL read the last bit of a decimal fraction differently


class Upload(NamedTuple):
    """An upload in parts with the parts that S3 has confirmed."""

    path: str
    multipart: Multipart
    parts: list[Part]


class HandPause(NamedTuple):
    """The pause by hand, which has no path."""

    path: str
    pause: Pause


Row = Receipt | Retry | Upload | HandPause
Pair = tuple[Row | None, Row | None]
KINDS = ("receipts", "failed files", "uploads in parts", "pauses")


class LedgerCopy:
    """One destination's rows. Receipts of other destinations stay where they are."""

    def __init__(self, source: LedgerReader, target: LedgerBackend, destination: str) -> None:
        """`destination`: its name, as both ledgers have it."""
        self._source = source
        self._target = target
        self._number = source.destination(destination)
        self._lost: list[str] = []

    def compare(self) -> tuple[Counter[str], list[Pair]]:
        """How many equal rows there are of each kind; some pairs in which the target's row is missing or differs."""
        equal, some = Counter[str](), list[Pair]()
        for kind in KINDS:
            for pair in self._pairs(kind):
                if _same(*pair):
                    equal[kind] += 1
                elif len(some) < LOOKUP_ROWS:
                    some.append(pair)
        return equal, some

    def first_in_the_way(self) -> Row | None:
        """A row of the target that the source lacks, or has otherwise."""
        pairs = itertools.chain.from_iterable(map(self._pairs, KINDS))
        return next((target for source, target in pairs if target and not _same(source, target)), None)

    def write(self) -> None:
        """Make the target's rows equal to the source's."""
        for kind in KINDS:  # a receipt ends the path's retry, so receipts come first
            differing = (pair for pair in self._pairs(kind) if not _same(*pair))
            while page := [*itertools.islice(differing, LOOKUP_ROWS)]:
                self._write(page)

    def _write(self, page: Sequence[Pair]) -> None:
        target = self._target
        claimed = [new.path for new, _ in page if isinstance(new, Receipt | Retry)]
        if target.claims and claimed:
            target.claims.take(claimed)
        for new, old in page:
            if isinstance(old, Upload) or (old and not new):
                self._drop(old)
            if new:
                self._record(new)
        if not target.flush(FLUSH_S) or self._lost:
            raise LedgerError(f"{target.name}: the rows could not be written; the same command goes on from there")

    def _drop(self, old: Row) -> None:
        match old:
            case Receipt():
                self._target.drop_receipts([old.path])
            case Retry():
                self._target.forget_retry(old.path)
            case Upload():
                self._target.forget_multipart(old.multipart.upload_id)
            case HandPause():
                self._target.record_pause(None)

    def _record(self, new: Row) -> None:
        target = self._target
        match new:
            case Receipt():
                target.record_receipt(new._replace(destination=target.destination), None, self._lost.append)
            case Retry():
                target.record_retry(new, None, self._lost.append)
            case Upload():
                for part in new.parts:  # before the upload: it is there with all parts, or not at all
                    target.record_part(part)
                target.record_multipart(new.multipart._replace(destination=target.destination))
            case HandPause():
                target.record_pause(new.pause)

    def _pairs(self, kind: str) -> Iterator[Pair]:
        """Each row of the source beside the target's row of the same path; None where there is none."""
        with self._target.reader() as reader:
            left, right = _rows(kind, self._source, self._number), _rows(kind, reader, self._target.destination)
            source, target = next(left, None), next(right, None)
            while source or target:
                first = min(to_text(row.path) for row in (source, target) if row)
                new = source if source and to_text(source.path) == first else None
                old = target if target and to_text(target.path) == first else None
                yield new, old
                source = next(left, None) if new else source
                target = next(right, None) if old else target


def _rows(kind: str, reader: LedgerReader, destination: int | None) -> Iterator[Row]:
    """In the order of their paths."""
    if kind == "receipts":
        return (row for row in reader.receipts() if row.destination == destination)
    if kind == "failed files":
        return reader.retries()
    if kind == "uploads in parts":
        rows = [row for row in reader.multiparts() if row.destination == destination]
        rows.sort(key=lambda row: to_text(row.path))
        return (Upload(row.path, row, reader.parts(row.upload_id)) for row in rows)
    pause = reader.pause()
    return iter([HandPause("", pause)] if pause else [])


def _same(source: Row | None, target: Row | None) -> bool:
    return source is not None and target is not None and _comparable(source) == _comparable(target)


def _comparable(row: Any) -> Any:
    """Without the numbers that each host or ledger gives itself."""
    if isinstance(row, float):
        return round(row, DIGITS)
    if isinstance(row, str):
        return storable(row)
    if isinstance(row, Identity):
        return row[1:]
    if isinstance(row, Receipt | Multipart):
        row = row._replace(destination=0)
    return [_comparable(value) for value in row] if isinstance(row, tuple | list) else row
