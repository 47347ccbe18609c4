"""The lease of this process: while it lasts, no other node takes the files that this process has claimed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from s3spool import __version__
from s3spool.ledger.postgresql.connection import Connection
from s3spool.ledger.protocol import Listener
from s3spool.ledger.rows import NO_LOAD, NodeLoad, Pause

LEASE_S = 15.0
RENEW_S = LEASE_S / 3

_JOIN = (
    "INSERT INTO nodes (destination, name, host, version, alive_until)"
    " VALUES (%s, %s, %s, %s, clock_timestamp() + make_interval(secs => %s)) RETURNING id, started_at"
)
# A lease that is over stays over, even if nobody has noticed yet. A replica without the last commits may have given the
# number to another node.
_RENEW = (
    "UPDATE nodes SET alive_until = clock_timestamp() + make_interval(secs => %s),"
    " in_flight = %s, files_per_minute = %s, marker = %s"
    " WHERE id = %s AND started_at = %s AND alive_until > clock_timestamp()"
)
_LOOK = (
    "SELECT ARRAY(SELECT id FROM nodes WHERE nodes.destination = %(destination)s), pause.since, pause.reason,"
    " extract(epoch FROM clock_timestamp())"
    " FROM (VALUES (1)) AS one LEFT JOIN pause ON pause.destination = %(destination)s"
)
_EXPIRE = "DELETE FROM nodes WHERE alive_until <= clock_timestamp()"
_LEAVE = "DELETE FROM nodes WHERE id = %s AND started_at = %s"


class Lease:
    """One thread calls `renew` and `leave`; any thread reads `owner` and calls `holds`.

    A process counts its lease from the moment before it asked, by its own steady clock: it ends no later than the
    database says. A lease that is over is never renewed; the process gets a new number, and its claims are void.
    """

    def __init__(
        self, destination: int, name: str, *, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._destination = destination
        self._name = name
        self._lease_s = lease_s
        self._clock = clock
        self.owner = 0  #: nodes.id; 0: none yet
        self.renewed = 0.0  #: when the last renewal that succeeded began
        self.ahead_s = 0.0  #: the database's clock minus that of this host, in whole seconds
        self._started_at: object = None  # by the database's clock
        self._until = 0.0
        self._nodes: set[int] = set()  # all that live, this one included

    def holds(self) -> bool:
        """Whether this process may start uploads of files that it has claimed."""
        return self._clock() < self._until

    def renew(self, connection: Connection, load: NodeLoad = NO_LOAD) -> bool:
        """Renew or begin the lease, report the load, and end the leases that are over.

        True if there was none for a moment: somebody may have asked `holds` then. Raises psycopg.Error.
        """
        asked = self._clock()
        connection.execute(_EXPIRE)
        this = (self.owner, self._started_at)
        if not (self.owner and connection.execute(_RENEW, (self._lease_s, *load, *this)).rowcount):
            node = (self._destination, self._name, os.uname().nodename, __version__, self._lease_s)
            rows: list[tuple[Any, ...]] = connection.execute(_JOIN, node).fetchall()
            self.owner, self._started_at = rows[0]
        before = self._until
        self.renewed, self._until = asked, asked + self._lease_s
        return self._clock() >= before  # looked at last: the statements may have taken longer than the lease

    def to_database(self, time_s: float) -> float:
        """A moment of this host's clock by that of the database, which all hosts share; 0 is 0."""
        return time_s + self.ahead_s if time_s else 0.0

    def from_database(self, time_s: float) -> float:
        return time_s - self.ahead_s if time_s else 0.0

    def due_in_s(self) -> float:
        """When the next renewal is due."""
        return self.renewed + self._lease_s / 3 - self._clock()

    def look(self, connection: Connection, listener: Listener | None) -> None:
        """Compare the clocks, and report what other nodes have done. Raises psycopg.Error."""
        rows: list[tuple[Any, ...]] = connection.execute(_LOOK, {"destination": self._destination}).fetchall()
        nodes, since, reason, now = rows[0]
        self.ahead_s = float(round(float(now) - time.time()))
        before, self._nodes = self._nodes, set(nodes)
        if listener is not None:
            if before - self._nodes:
                listener.node_gone()
            listener.paused(None if since is None else Pause(since, reason))

    def leave(self, connection: Connection) -> None:
        """Hand all claims over at once. Raises psycopg.Error."""
        self._until = 0.0
        connection.execute(_LEAVE, (self.owner, self._started_at))
