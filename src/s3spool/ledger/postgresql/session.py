"""The writer's connection to the database: while it is away, what there is to do is tried again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import structlog

from s3spool.heartbeat import Heartbeat
from s3spool.ledger.postgresql.connection import Connection, connect, one_line, shown

DRAIN_S = 5.0  # how long a closing ledger tries to reach the database
KEPT = "nothing is lost or removed meanwhile; uploads resume by themselves when the database is back"

# Errors of a row, not of the database: the same row fails again.
HOPELESS = (psycopg.DataError, psycopg.IntegrityError, ValueError, TypeError)

log = structlog.get_logger()


class Session:
    """Only the ledger's thread calls `run` and `disconnect`; any thread reads."""

    def __init__(
        self,
        url: str,
        connection: Connection,
        longest_wait_s: float,
        reconnected: Callable[[Connection], None],
        recovered: Callable[[], None],
    ) -> None:
        """`reconnected` is called with each later connection, `recovered` when the database answers again."""
        self._url = url
        self._reconnected = reconnected
        self._recovered = recovered
        self._longest_wait_s = longest_wait_s
        self.connection: Connection | None = connection
        self.failing_since: float | None = None  #: Unix seconds; None while the database answers
        self.heartbeat = Heartbeat()
        self.closing = threading.Event()
        self.gave_up = False

    def run(self, act: Callable[[Connection], None]) -> bool:
        """Repeat until it succeeds; False if the ledger is closed and the database is away. Raises HOPELESS."""
        delay_s, deadline = 0.25, 0.0
        while True:
            self.heartbeat.beat()
            try:
                if self.connection is None:
                    self.connection = connect(self._url)
                    self._reconnected(self.connection)
                act(self.connection)
            except HOPELESS:
                raise
            except psycopg.Error as exc:
                if self.failing_since is None:
                    self.failing_since = time.time()
                    log.error("ledger.failed", path=shown(self._url), error=one_line(exc), hint=KEPT)
                self.disconnect()
                deadline = deadline or time.monotonic() + DRAIN_S
                if self.closing.wait(delay_s):
                    if time.monotonic() > deadline:
                        self.gave_up = True
                        return False
                    time.sleep(delay_s)
                delay_s = min(delay_s * 2, self._longest_wait_s)
            else:
                if self.failing_since is not None:
                    since, self.failing_since = self.failing_since, None
                    log.info("ledger.recovered", path=shown(self._url), duration_s=round(time.time() - since, 3))
                    self._recovered()
                return True

    def disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
