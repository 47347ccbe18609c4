"""The writer of the shared ledger: one thread per process commits the rows of all threads, and renews the lease."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import psycopg
import structlog

from s3spool.ledger.postgresql import statements as sql
from s3spool.ledger.postgresql.claims import PostgresClaims
from s3spool.ledger.postgresql.connection import (
    Connection,
    connect,
    destination_of,
    migrate,
    one_line,
    shown,
    speaking_of,
)
from s3spool.ledger.postgresql.groups import ANNOUNCE_S, BUSY_GROUP_S, CROWD, GROUP_S, WAKE, Rows, Work, gathered
from s3spool.ledger.postgresql.lease import LEASE_S, Lease
from s3spool.ledger.postgresql.membership import Membership
from s3spool.ledger.postgresql.reader import PostgresReader, RowReader
from s3spool.ledger.postgresql.session import HOPELESS, KEPT, Session
from s3spool.ledger.protocol import Committed, LedgerBackend, Listener, Lost
from s3spool.ledger.queries import Known
from s3spool.ledger.rows import Multipart, Part, Pause, Receipt, Retry, storable, to_text

log = structlog.get_logger()


class PostgresLedger(LedgerBackend):
    """The rows of one destination in PostgreSQL, which any number of nodes share.

    A file is claimed before it is sent (`claims`). A receipt or retry of a file that another node has claimed since is
    not stored.
    """

    def __init__(
        self, url: str, *, destination: str, node: str | None, device: int = 0, lease_s: float = LEASE_S
    ) -> None:
        """Connect, and create or upgrade the schema. Raises LedgerError.

        `node`: the name of this daemon; None for a command, which claims no files. `device`: st_dev of the folder.
        """
        self._url = url
        self._device = device
        with speaking_of(url):
            connection = connect(url)
            try:
                migrate(connection, url)
                self.destination = destination_of(connection, destination)
                self.lease = Lease(self.destination, node or "", lease_s=lease_s)
                if node is not None:
                    self.lease.renew(connection)
                    self.lease.look(connection, None)
            except BaseException:
                connection.close()
                raise
        self._membership = Membership(self.lease, is_node=node is not None)
        self._session = Session(url, connection, lease_s / 3, self._reconnected, self._membership.recovered)
        self.heartbeat = self._session.heartbeat
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._claims = PostgresClaims(self.lease, self._session, self._inbox.put, self.alive, self._known)
        self.damaged = ""
        self.statements = 0
        # Only the ledger's thread uses these.
        self._crowded = False
        self._announced_at = 0.0
        self._unannounced = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def claims(self) -> PostgresClaims:
        return self._claims

    @property
    def owner(self) -> int:
        return self.lease.owner

    def listen(self, listener: Listener) -> None:
        self._membership.listener = listener
        self._claims.listen(listener)

    @property
    def name(self) -> str:
        return shown(self._url)

    @property
    def failing_since(self) -> float | None:
        return self._session.failing_since

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        self._session.closing.set()
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not (self._thread.is_alive() or self._session.gave_up)

    def flush(self, timeout_s: float) -> bool:
        done = threading.Event()
        self._put((), done.set)
        self._claims.urgent.set()
        return done.wait(timeout_s)

    def reader(self) -> PostgresReader:
        return PostgresReader(self._url, self.destination, device=self._device, lease=self.lease)

    def report_read_error(self, error: Exception, before: str = "") -> str:
        if str(error) != before and self._session.failing_since is None:
            log.error("ledger.failed", path=self.name, error=str(error), hint=KEPT)
        return str(error)

    def record_receipt(self, receipt: Receipt, committed: Committed | None = None, lost: Lost | None = None) -> None:
        row = sql.receipt_row(receipt)
        self._inbox.put(Work((sql.RECORD_RECEIPTS,), row, path=receipt.path, committed=committed, lost=lost))

    def record_retry(self, retry: Retry, committed: Committed | None = None, lost: Lost | None = None) -> None:
        row = sql.retry_row(retry._replace(next_attempt=self.lease.to_database(retry.next_attempt)))
        self._inbox.put(Work((sql.RECORD_RETRIES,), row, path=retry.path, committed=committed, lost=lost))

    def record_multipart(self, multipart: Multipart, committed: Committed | None = None) -> None:
        self._inbox.put(Work((sql.RECORD_MULTIPARTS,), sql.multipart_row(multipart), committed=committed))

    def record_part(self, part: Part) -> None:
        self._inbox.put(Work((sql.RECORD_PARTS,), part._asdict()))

    def record_pause(self, pause: Pause | None) -> None:
        if pause is None:
            self._put(sql.RESUME, None)
        else:
            self._put(sql.PAUSE, None, since=pause.since, reason=storable(pause.reason))

    def claim(self, paths: Sequence[str], committed: Committed | None = None) -> None:
        self._put(sql.CLAIM, committed, paths)

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        self._put(sql.RELEASE_ALL if paths is None else sql.RELEASE, committed, paths or ())

    def release_provisional(self, committed: Committed | None = None) -> None:
        self._put(sql.RELEASE_PROVISIONAL, committed)

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        self._put(sql.HASTEN, committed, now=self.lease.to_database(now), latest=self.lease.to_database(latest))

    def forget(self, path: str, committed: Committed | None = None) -> None:
        self._put(sql.FORGET, committed, [path])

    def forget_retry(self, path: str, committed: Committed | None = None) -> None:
        self._put(sql.FORGET_RETRY, committed, [path])

    def forget_multipart(self, upload_id: str) -> None:
        self._put(sql.FORGET_MULTIPART, None, upload_id=upload_id)

    def drop_receipts(self, paths: Sequence[str]) -> None:
        self._put(sql.DROP_RECEIPTS, None, paths)

    def _put(
        self, statements: tuple[str, ...], committed: Committed | None, paths: Sequence[str] = (), **arguments: Any
    ) -> None:
        self._inbox.put(Work(statements, paths=paths, arguments=arguments, committed=committed))

    # Below this line everything runs on the ledger's thread.

    def _run(self) -> None:
        while self._step():
            pass
        if self._session.connection is not None:
            try:
                self.lease.leave(self._session.connection)
            except psycopg.Error as exc:
                log.debug("ledger.rollback_failed", error=one_line(exc))
            self._session.disconnect()

    def _step(self) -> bool:
        """Gather one group, make it durable, call back; False when it was the last."""
        self.heartbeat.beat()
        try:
            first = self._next()
        except queue.Empty:
            self._crowded = False
            return self._commit_until_done([])
        if first is None:
            return False
        if not self._commit_claims_meanwhile(BUSY_GROUP_S if self._crowded else GROUP_S):
            return False
        group, last = gathered(self._inbox, first)
        self._crowded = sum(work.size for work in group) >= CROWD
        return self._commit_until_done(group) and not last

    def _next(self) -> Work | None:
        """Raises queue.Empty when the lease or the readers have waited long enough."""
        if not self._claims.asked.empty():
            return WAKE  # the group before had swallowed it
        wait_s = self._membership.due_in_s()
        if self._unannounced:
            wait_s = ANNOUNCE_S if wait_s is None else min(wait_s, ANNOUNCE_S)
        return self._inbox.get(timeout=self.heartbeat.capped(wait_s))

    def _commit_claims_meanwhile(self, wait_s: float) -> bool:
        """While a group gathers; False if the ledger is closed and the database is away."""
        ends_at = time.monotonic() + wait_s
        while True:
            left_s = ends_at - time.monotonic()
            urgent = left_s > 0 and not self._session.closing.is_set() and self._claims.urgent.wait(left_s)
            self._claims.urgent.clear()
            asked, _ = gathered(self._claims.asked, WAKE)
            if not self._commit_until_done(asked):
                return False
            if not (urgent and asked):
                return True

    def _commit_until_done(self, group: list[Work]) -> bool:
        """False if the ledger is closed and the database is away."""
        for _, some in groupby(group, key=lambda work: work.kind):
            run = list(some)
            try:
                done = self._session.run(self._membership.keep) and self._session.run(partial(self._commit, run))
            except HOPELESS as exc:
                done = all(self._commit_until_done([each]) for each in run) if len(run) > 1 else self._refused(run, exc)
            if not done:
                return False
        return self._session.run(self._membership.keep) and self._session.run(self._announce)

    def _refused(self, run: list[Work], exc: Exception) -> bool:
        log.error("ledger.failed", path=self.name, error=f"a row was refused: {exc}")
        for work in run:
            if work.taken:
                work.taken([])
        return True

    def _reconnected(self, db: Connection) -> None:
        """The database may be a replica without the last commits: compare lease and claims with it."""
        self._membership.renew(db)
        if free := self._claims.compare(db, self.destination):
            self._commit([Work(sql.GIVE_BACK, paths=free)], db)

    def _commit(self, run: list[Work], db: Connection) -> None:
        work = run[0]
        arguments = {"destination": self.destination, "owner": self.lease.owner, **work.arguments}
        if work.row is not None:
            latest = {each.key: {**(each.row or {}), "owner": self._claims.owner_of(each.path)} for each in run}
            arguments["rows"] = sql.as_json([*latest.values()])
        paths = [path for each in run for path in each.paths]
        arguments["paths"] = sql.paths_json(paths)
        arguments["held"] = [to_text(path) for path in paths if self._claims.owner_of(path)]
        rows: Rows = []
        for statement in work.statements:
            self.statements += 1
            cursor = db.execute(statement.encode(), arguments)
            rows = cursor.fetchall() if cursor.description else []
        self._unannounced |= bool(work.statements)
        if work.statements in sql.ENDS_CLAIMS:
            self._claims.end(paths)
        stored = {row[0] for row in rows}
        for each in run:
            if each.taken:
                each.taken(rows)
            elif each.path:
                self._recorded(each, stored=to_text(each.path) in stored)
            elif each.committed is not None:
                each.committed()

    def _recorded(self, work: Work, *, stored: bool) -> None:
        self._claims.end([work.path])
        if stored and work.committed is not None:
            work.committed()
        if not stored and work.lost is not None:
            work.lost(work.path)

    def _known(self, rows: Rows) -> dict[str, Known]:
        return dict(map(RowReader(self._device, self.lease).known_row, rows))

    def _announce(self, db: Connection) -> None:
        """A reader of any node sees that there is something new."""
        now = time.monotonic()
        if self._unannounced and not (self._crowded and now - self._announced_at < ANNOUNCE_S):
            db.execute(sql.CHANGED)
            self._announced_at, self._unannounced = now, False
