"""This process among the nodes: keeps the lease, and tells the daemon what that brings."""

from __future__ import annotations

from s3spool.ledger.postgresql.connection import Connection
from s3spool.ledger.postgresql.lease import Lease
from s3spool.ledger.protocol import Listener
from s3spool.ledger.rows import NO_LOAD


class Membership:
    """Only the ledger's thread calls it. `listener` is None in a command, and before the daemon listens."""

    def __init__(self, lease: Lease, *, is_node: bool) -> None:
        """`is_node`: False for a command, which has no lease."""
        self._lease = lease
        self._is_node = is_node
        self.listener: Listener | None = None

    def due_in_s(self) -> float | None:
        """When the lease has to be renewed; None: never."""
        return max(0.0, self._lease.due_in_s()) if self._is_node else None

    def keep(self, db: Connection) -> None:
        """Renew the lease if that is due. Raises psycopg.Error."""
        if self.due_in_s() == 0:
            self.renew(db)

    def renew(self, db: Connection) -> None:
        """Raises psycopg.Error."""
        if not self._is_node:
            return
        self._lease.look(db, self.listener)
        if self.listener is not None and self.listener.gives_up():
            self._lease.leave(db)
        if self._lease.renew(db, self.listener.load() if self.listener else NO_LOAD):
            self._tell_may_start()

    def recovered(self) -> None:
        """The database answers again."""
        self._tell_may_start()
        if self.listener is not None:
            self.listener.node_gone()  # receipts and retries that the database lost are known to no daemon

    def _tell_may_start(self) -> None:
        if self.listener is not None:
            self.listener.may_start()
