"""What every ledger does, wherever its rows are; `queries` has what its readers answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from s3spool.heartbeat import Heartbeat
from s3spool.ledger.queries import Known, LedgerReader
from s3spool.ledger.rows import Multipart, NodeLoad, Part, Pause, Receipt, Retry

Committed = Callable[[], None]
Lost = Callable[[str], None]  # called with the path
CLAIMED_ROWS = 1000  # of one claim; as long as they wait for room in the queue, no other daemon can send them


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

    def give_back(self, paths: Sequence[str], committed: Committed | None = None) -> None:
        """End the claims of files that are not sent after all; without paths, nothing happens."""

    def drop_void(self) -> None:
        """Forget files of which nothing is known but the claim of a daemon that has ended."""


class Listener(Protocol):
    """What other daemons do, and the ledger's thread reports. No method may block or raise."""

    def node_gone(self) -> None:
        """Files may be free: a daemon has ended, its lease is over, or the database was away."""

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

    def record_pause(self, pause: Pause | None) -> None:
        """The pause by hand, or its end."""

    def claim(self, paths: Sequence[str], committed: Committed | None = None) -> None:
        """Workers have these files; `due` leaves them out until they fail again."""

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        """Make waiting and parked files due at once: these, or all."""

    def release_provisional(self, committed: Committed | None = None) -> None:
        """Make files due at once that were parked without proof."""

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        """Make due at `now` what is due after `latest`: the clock was set back."""

    def forget(self, path: str, committed: Committed | None = None) -> None:
        """Drop the receipt and the retry of this path."""

    def forget_retry(self, path: str, committed: Committed | None = None) -> None: ...

    def forget_multipart(self, upload_id: str) -> None: ...

    def drop_receipts(self, paths: Sequence[str]) -> None: ...
