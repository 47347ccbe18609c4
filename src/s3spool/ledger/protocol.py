"""What every ledger does, wherever its rows are: `LedgerBackend` writes, `LedgerReader` answers queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

from s3spool.heartbeat import Heartbeat
from s3spool.ledger.rows import Identity, Multipart, Node, NodeLoad, Part, Pause, Receipt, Retry, State

Committed = Callable[[], None]
Lost = Callable[[str], None]  # called with the path
LOOKUP_ROWS = 500  # rows of one query
ALL = -1  # no limit
AGES_S = (300, 3600, 86_400)  #: bounds of `LedgerReader.ages`


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


class LedgerReader(Protocol):
    """One read-only connection. Not thread-safe: each thread opens its own. All queries raise LedgerError."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def known(self, paths: Sequence[str]) -> dict[str, Known]:
        """The rows of these paths; unknown paths are left out."""

    def news(self, found: Sequence[tuple[str, Identity]], destination: int) -> dict[str, bool]:
        """The files whose state differs from the ledger; the value: whether the ledger has a row of the path.

        Left out: this very state was sent to `destination` and stays in the folder, or is in the retry list, or another
        living daemon has claimed it.
        """

    def due(self, now: float, limit: int) -> list[Retry]:
        """Waiting retries that are due and with no worker, the longest due first."""

    def waiting_without_proof(self) -> int:
        """How many waiting files have not failed by their own proven fault (`Failures.own`)."""

    def next_due(self) -> float | None:
        """When the next waiting retry is due, in Unix seconds."""

    def last_due(self) -> float | None:
        """When the last waiting retry is due, in Unix seconds."""

    def retries(self, state: State | None = None, *, after: str = "", limit: int = ALL) -> Iterator[Retry]:
        """Streamed in the order of their paths, from behind the path `after` (as `to_text` spells it)."""

    def receipts(self, *, after: str = "", limit: int = ALL, unsent: bool = True) -> Iterator[Receipt]:
        """Streamed as by `retries`; `unsent` False leaves out files that are in the retry list as well."""

    def random_receipts(self, count: int) -> Iterator[Receipt]: ...

    def receipts_before(self, time_s: float) -> Iterator[Receipt]:
        """Receipts of uploads that ended before this moment."""

    def multiparts(self) -> list[Multipart]: ...

    def multipart(self, path: str) -> Multipart | None: ...

    def parts(self, upload_id: str) -> list[Part]: ...

    def counts(self) -> dict[str, int]:
        """How many rows of each kind: uploaded, waiting, parked."""

    def totals(self) -> Totals:
        """As `counts`, with all figures."""

    def version(self) -> int:
        """Changes with each commit of another connection; 1 or more; comparable within this reader only."""

    def pause(self) -> Pause | None:
        """The pause by hand."""

    def errors(self, limit: int) -> list[tuple[str, str, int]]:
        """(state, error code, files) of the retry list, the most frequent first."""

    def ages(self, now: float, limit: int) -> list[tuple[Any, ...]]:
        """(first path segment, files by age as AGES_S bounds it) of the retry list, the most files first."""

    def last_error(self) -> Retry | None: ...

    def destination(self, name: str) -> int | None:
        """The number that receipts of this destination carry."""

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


class Claims(Protocol):
    """The files that this daemon has claimed in a ledger that it shares with others. Any thread.

    A claim ends with the receipt or retry of the file, with `forget_retry`, or with the lease of the daemon.
    """

    def may_start(self) -> bool:
        """Whether uploads may start: the lease of this daemon lasts, and the database is not known to be away."""

    def holds(self, path: str) -> bool:
        """Whether the path is claimed under the present lease."""

    def take(self, paths: Sequence[str], meanwhile: Callable[[], None] = lambda: None) -> dict[str, Known]:
        """Claim these paths; returns the new claims, with the ledger's rows of each.

        Left out: paths of other living daemons, paths that are claimed already, and those for which the listener has no
        room. Blocks until the ledger answers, and calls `meanwhile` each second.
        Raises LedgerUnavailableError where the ledger is closed.
        """

    def give_back(self, paths: Sequence[str]) -> None:
        """End the claims of files that are not sent after all."""


class Listener(Protocol):
    """What other daemons do, and the ledger's thread reports. No method may block or raise."""

    def node_gone(self) -> None:
        """A daemon has ended, or its lease is over: its files are free."""

    def may_start(self) -> None:
        """Uploads may start again."""

    def gives_up(self) -> bool:
        """Whether others should send what this daemon has claimed and not started. Asked with each renewal."""

    def room(self) -> int | None:
        """How many more files this daemon should claim now; None: any number. Any thread asks."""

    def load(self) -> NodeLoad:
        """What this daemon reports of itself; called with each renewal of the lease."""

    def paused(self, pause: Pause | None) -> None:
        """The pause by hand as it is now; called with each renewal of the lease."""


class LedgerBackend(Protocol):
    """Takes rows from any thread, makes them durable in groups, and calls back.

    Writing methods return at once and may be called from any thread. `committed` runs on the ledger's thread, after
    the row is durable and in the order of the calls; it must neither block nor raise. Rows that cannot be stored now
    are kept and tried again.
    """

    destination: int
    damaged: str
    heartbeat: Heartbeat

    @property
    def claims(self) -> Claims | None:
        """None: no other daemon uses this ledger."""
        return None

    @property
    def owner(self) -> int:
        """The number of this process among the daemons that share the ledger; 0: there are no others."""
        return 0

    def listen(self, listener: Listener) -> None:  # noqa: ARG002 - for others
        """Tell this listener of other daemons, if there are any."""
        return

    @property
    def name(self) -> str:
        """Where the rows are, for messages."""

    @property
    def failing_since(self) -> float | None:
        """Unix seconds; None while commits succeed."""

    def start(self) -> None: ...

    def alive(self) -> bool: ...

    def close(self, timeout_s: float) -> bool:
        """Commit all rows and close; False if that failed or took longer."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until all earlier rows are durable."""

    def reader(self) -> LedgerReader:
        """A connection of its own for the calling thread. Raises LedgerError."""

    def report_read_error(self, error: Exception, before: str = "") -> str:
        """A reader failed: log it, unless it equals `before`. Returns the error, as `before` of the next call."""

    def record_receipt(self, receipt: Receipt, committed: Committed | None = None, lost: Lost | None = None, /) -> None:
        """S3 has the file: the path leaves the retry list in the same transaction.

        `lost` is called in place of `committed` where another daemon has claimed the path: the row is not stored.
        """

    def record_retry(self, retry: Retry, committed: Committed | None = None, lost: Lost | None = None, /) -> None:
        """`lost`: as for `record_receipt`."""

    def record_multipart(self, multipart: Multipart, committed: Committed | None = None) -> None: ...

    def record_part(self, part: Part) -> None: ...

    def record_pause(self, pause: Pause | None, committed: Committed | None = None) -> None:
        """The pause by hand, or its end."""

    def claim(self, paths: Sequence[str], now: float, committed: Committed | None = None) -> None:
        """Workers have these files, which were due at `now`; `due` leaves them out until they fail again.

        A file that failed again in the meantime has a new row, due later; that row stays unclaimed.
        """

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        """Make waiting and parked files due at once: these, or all."""

    def release_provisional(self, committed: Committed | None = None) -> None:
        """Make files due at once that were parked without proof."""

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        """Make due at `now` what is due after `latest`: the clock was set back."""

    def forget(self, path: str, committed: Committed | None = None) -> None:
        """Drop the receipt and the retry of this path."""

    def forget_retry(self, path: str, committed: Committed | None = None) -> None: ...

    def forget_multipart(self, upload_id: str, committed: Committed | None = None) -> None: ...

    def drop_receipts(self, paths: Sequence[str]) -> None: ...
