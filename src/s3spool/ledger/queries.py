"""The queries to a ledger: SQLite and PostgreSQL answer the same SQL, and differ in where their rows are."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from s3spool.ledger.rows import Identity, Multipart, Node, Part, Pause, Receipt, Retry, State, to_text

LOOKUP_ROWS = 500  # rows of one query
ALL = -1  # no limit
AGES_S = (300, 3600, 86_400)  #: bounds of `LedgerReader.ages`
_DUE = "state = 'waiting' AND claimed = 0"


class Known(NamedTuple):
    """The ledger's rows of one path."""

    receipt: Receipt | None
    retry: Retry | None


class Totals(NamedTuple):
    """The figures of a ledger."""

    uploaded: int = 0
    uploaded_bytes: int = 0
    waiting: int = 0
    parked: int = 0
    claimed: int = 0  # waiting files that a worker has
    oldest_ns: int | None = None  # the oldest ctime of all that wait
    unsent_bytes: int = 0  # of waiting and parked files that no worker has; 0 if there are too many to add up


class LedgerReader(ABC):
    """One read-only connection. One thread at a time may use it. All queries raise LedgerError."""

    # Tables, or subqueries of these names.
    RECEIPTS: ClassVar[str]
    RETRIES: ClassVar[str]
    MULTIPARTS: ClassVar[str]
    PAUSES: ClassVar[str]
    # The columns of a row, as `_receipt`, `_retry` and `_multipart` take them.
    RECEIPT: ClassVar[str]
    RETRY: ClassVar[str]
    MULTIPART: ClassVar[str]
    NO_RETRY: ClassVar[str]  # the condition of a receipt whose file is not in the retry list
    SEGMENT: ClassVar[str]  # the first path segment with its slash, "" for a file in the folder itself

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def known(self, paths: Sequence[str]) -> dict[str, Known]:
        """The rows of these paths; unknown paths are left out."""

    @abstractmethod
    def news(self, found: Sequence[tuple[str, Identity]], destination: int) -> dict[str, bool]:
        """The files whose state differs from the ledger; the value: whether the ledger has a row of the path.

        Left out: this very state was sent to `destination` and stays in the folder, or is in the retry list, or another
        living daemon has claimed it.
        """

    @abstractmethod
    def totals(self) -> Totals: ...

    @abstractmethod
    def version(self) -> int:
        """Changes with each commit of another connection; 1 or more; comparable within this reader only."""

    @abstractmethod
    def receipts_before(self, time_s: float) -> Iterator[Receipt]:
        """Receipts of uploads that ended before this moment."""

    def due(self, now: float, limit: int) -> list[Retry]:
        """Waiting retries that are due and with no worker, the longest due first."""
        statement = f"SELECT {self.RETRY} FROM {self.RETRIES} WHERE {_DUE} AND next_attempt <= :now"  # noqa: S608 - constants
        statement += " ORDER BY next_attempt LIMIT :limit"
        return list(self._rows(statement, self._retry, now=self._to_ledger(now), limit=limit))

    def waiting_without_proof(self) -> int:
        """How many waiting files have not failed by their own proven fault (`Failures.own`)."""
        return int(self._value(f"SELECT count(*) FROM {self.RETRIES} WHERE state = 'waiting' AND own_failures = 0"))  # noqa: S608 - constants

    def next_due(self) -> float | None:
        """When the next waiting retry is due, in Unix seconds."""
        time_s = self._value(f"SELECT min(next_attempt) FROM {self.RETRIES} WHERE {_DUE}")  # noqa: S608 - constants
        return None if time_s is None else self._from_ledger(float(time_s))

    def last_due(self) -> float | None:
        """When the last waiting retry is due, in Unix seconds."""
        time_s = self._value(f"SELECT max(next_attempt) FROM {self.RETRIES} WHERE {_DUE}")  # noqa: S608 - constants
        return None if time_s is None else self._from_ledger(float(time_s))

    def retries(self, state: State | None = None, *, after: str = "", limit: int = ALL) -> Iterator[Retry]:
        """Streamed in the order of their paths, from behind the path `after` (as `to_text` spells it)."""
        rows = f"SELECT {self.RETRY} FROM {self.RETRIES} WHERE path > :after AND state IN (:state, :other)"  # noqa: S608 - constants
        states = [state.value] * 2 if state else [each.value for each in State]
        return self._paged(rows, self._retry, after, limit, state=states[0], other=states[1])

    def receipts(self, *, after: str = "", limit: int = ALL, unsent: bool = True) -> Iterator[Receipt]:
        """Streamed as by `retries`; `unsent` False leaves out files that are in the retry list as well."""
        rows = f"SELECT {self.RECEIPT} FROM {self.RECEIPTS} WHERE path > :after"  # noqa: S608 - constants
        return self._paged(rows + ("" if unsent else f" AND {self.NO_RETRY}"), self._receipt, after, limit)

    def random_receipts(self, count: int) -> Iterator[Receipt]:
        statement = f"SELECT {self.RECEIPT} FROM {self.RECEIPTS} ORDER BY random() LIMIT :count"  # noqa: S608 - constants
        return self._rows(statement, self._receipt, count=count)

    def multiparts(self) -> list[Multipart]:
        return list(self._rows(f"SELECT {self.MULTIPART} FROM {self.MULTIPARTS}", self._multipart))  # noqa: S608 - constants

    def multipart(self, path: str) -> Multipart | None:
        statement = f"SELECT {self.MULTIPART} FROM {self.MULTIPARTS} WHERE path = :path"  # noqa: S608 - constants
        return next(self._rows(statement, self._multipart, path=to_text(path)), None)

    def parts(self, upload_id: str) -> list[Part]:
        statement = "SELECT upload_id, number, size, etag, checksum FROM parts WHERE upload_id = :id ORDER BY number"
        return list(self._rows(statement, lambda row: Part(*row), id=upload_id))

    def counts(self) -> dict[str, int]:
        """How many rows of each kind: uploaded, waiting, parked."""
        totals = self.totals()
        return {"uploaded": totals.uploaded, "waiting": totals.waiting, "parked": totals.parked}

    def pause(self) -> Pause | None:
        """The pause by hand."""
        return next(self._rows(f"SELECT since, reason FROM {self.PAUSES}", lambda row: Pause(*row)), None)  # noqa: S608 - constants

    def errors(self, limit: int) -> list[tuple[str, str, int]]:
        """(state, error code, files) of the retry list, the most frequent first."""
        statement = f"SELECT state, error_code, count(*) FROM {self.RETRIES} GROUP BY 1, 2 ORDER BY 3 DESC LIMIT :limit"  # noqa: S608 - constants
        return list(self._rows(statement, limit=limit))

    def ages(self, now: float, limit: int) -> list[tuple[Any, ...]]:
        """(first path segment, files by age as AGES_S bounds it) of the retry list, the most files first."""
        bounds_ns = [int((now - age_s) * 1e9) for age_s in (-now, *AGES_S, now)]
        ages = ", ".join(
            f"count(CASE WHEN ctime_ns <= {low} AND ctime_ns > {high} THEN 1 END)"
            for low, high in itertools.pairwise(bounds_ns)
        )
        statement = f"SELECT {self.SEGMENT}, {ages} FROM {self.RETRIES} GROUP BY 1 ORDER BY count(*) DESC LIMIT :limit"  # noqa: S608 - constants
        return list(self._rows(statement, limit=limit))

    def last_error(self) -> Retry | None:
        statement = f"SELECT {self.RETRY} FROM {self.RETRIES} ORDER BY last_error_at DESC LIMIT 1"  # noqa: S608 - constants
        return next(self._rows(statement, self._retry), None)

    def destination(self, name: str) -> int | None:
        """The number that receipts of this destination carry."""
        number = self._value("SELECT id FROM destinations WHERE name = :name", name=name)
        return None if number is None else int(number)

    # Of other daemons that share the ledger; here there are none.

    def is_alive(self, owner: int) -> bool:  # noqa: ARG002 - for others
        """Whether the daemon with this number shares the ledger and its lease lasts."""
        return False

    def nodes(self) -> list[Node]:
        """The living daemons that share the ledger, of all destinations, in the order of their names."""
        return []

    def claimed_elsewhere(self) -> int:
        """How many files other living daemons have claimed."""
        return 0

    def elsewhere(self, *, after: str = "", limit: int = ALL) -> list[tuple[str, str]]:  # noqa: ARG002 - for others
        """(path, name of the node) of these files, in the order of their paths from behind `after`."""
        return []

    def holders(self, paths: Sequence[str]) -> dict[str, str]:  # noqa: ARG002 - for others
        """The names of the other living daemons that have claimed some of these files."""
        return {}

    # What a ledger has to say about itself.

    @abstractmethod
    def _rows(self, statement: str, make: Callable[[Sequence[Any]], Any] = tuple, **arguments: object) -> Iterator[Any]:
        """The rows of a statement, whose arguments are written `:name`."""

    @abstractmethod
    def _receipt(self, row: Sequence[Any]) -> Receipt: ...

    @abstractmethod
    def _retry(self, row: Sequence[Any]) -> Retry: ...

    @abstractmethod
    def _multipart(self, row: Sequence[Any]) -> Multipart: ...

    def _to_ledger(self, time_s: float) -> float:
        """A moment of this host's clock by that of the ledger."""
        return time_s

    def _from_ledger(self, time_s: float) -> float:
        return time_s

    def _value(self, statement: str, **arguments: object) -> Any:
        """The first value of the first row; None where there is none."""
        return next(self._rows(statement, tuple, **arguments), (None,))[0]

    def _paged(
        self, rows: str, make: Callable[[Sequence[Any]], Any], after: str, limit: int, **arguments: object
    ) -> Iterator[Any]:
        """Page by page: nobody holds a million rows, and SQLite cannot shorten its WAL while a query runs."""
        while limit:
            count = LOOKUP_ROWS if limit == ALL else min(limit, LOOKUP_ROWS)
            page = list(self._rows(f"{rows} ORDER BY path LIMIT :count", make, after=after, count=count, **arguments))
            yield from page
            if len(page) < count:
                return
            after = to_text(page[-1].path)
            limit -= 0 if limit == ALL else count
