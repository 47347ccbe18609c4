"""The files that this process has claimed: it alone may send them while its lease lasts."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence

from s3spool.errors import LedgerUnavailableError
from s3spool.ledger.postgresql import statements as sql
from s3spool.ledger.postgresql.connection import Connection
from s3spool.ledger.postgresql.groups import WAKE, Rows, Work
from s3spool.ledger.postgresql.lease import Lease
from s3spool.ledger.postgresql.session import Session
from s3spool.ledger.protocol import Claims, Committed, Listener
from s3spool.ledger.queries import Known
from s3spool.ledger.rows import from_text

BATCH = 100  # so many paths are worth a statement of their own
PACE_S = 0.25  # of smaller batches: in a crowd they wait for each other
BEAT_S = 1.0


class PostgresClaims(Claims):
    """Claims as of the last statement that was answered. Only the ledger's thread changes them."""

    def __init__(
        self,
        lease: Lease,
        session: Session,
        put: Callable[[Work], None],
        alive: Callable[[], bool],
        made: Callable[[Rows], dict[str, Known]],
    ) -> None:
        """`put` hands work to the ledger's thread, `made` reads the rows that came back."""
        self._lease = lease
        self._session = session
        self._put = put
        self._alive = alive
        self._made = made
        self._owners: dict[str, int] = {}  # the number that this process had when it claimed the path
        self._asked_at = 0.0
        self._listener: Listener | None = None
        self.asked: queue.SimpleQueue[Work | None] = queue.SimpleQueue()  # claims do not wait behind other rows
        self.urgent = threading.Event()  # what is asked, or a group that is gathered, should not wait for more

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def may_start(self) -> bool:
        return self._lease.holds() and self._session.failing_since is None

    def holds(self, path: str) -> bool:
        return self._owners.get(path) == self._lease.owner

    def take(self, paths: Sequence[str], meanwhile: Callable[[], None] = lambda: None) -> dict[str, Known]:
        unclaimed = dict.fromkeys(path for path in paths if not self.holds(path))
        wanted = set(itertools.islice(unclaimed, self._listener.room() if self._listener else None))
        if not wanted:
            return {}
        new: dict[str, Known] = {}
        done = threading.Event()

        def taken(rows: Rows) -> None:
            for path, known in self._made(rows).items():
                if path in wanted and not self.holds(path):
                    self._owners[path] = self._lease.owner
                    new[path] = known
            done.set()

        now = time.monotonic()
        urgent, self._asked_at = len(wanted) >= BATCH or now - self._asked_at > PACE_S, now
        self.asked.put(Work((sql.TAKE,), paths=[*wanted], taken=taken))
        self._put(WAKE)
        if urgent:
            self.urgent.set()
        while not done.wait(BEAT_S):
            meanwhile()
            if not self._alive():
                raise LedgerUnavailableError("the ledger is closed")
        return new

    def give_back(self, paths: Sequence[str], committed: Committed | None = None) -> None:
        if paths:
            self._put(Work(sql.GIVE_BACK, paths=paths, committed=committed))

    def drop_void(self) -> None:
        self._put(Work(sql.DROP_VOID))

    # The ledger's thread calls these.

    def compare(self, db: Connection, destination: int) -> list[str]:
        """End the claims that the database does not know; returns the paths that only the database calls claimed."""
        owners = [*{self._lease.owner, *self._owners.values()}]
        rows: Rows = db.execute(sql.CLAIMED.encode(), {"destination": destination, "owners": owners}).fetchall()
        known = {from_text(path): owner for path, owner in rows}
        self.end([path for path, owner in self._owners.items() if known.get(path) != owner])
        return [path for path, owner in known.items() if owner == self._lease.owner and not self.holds(path)]

    def owner_of(self, path: str) -> int:
        return self._owners.get(path, 0)

    def end(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._owners.pop(path, None)
