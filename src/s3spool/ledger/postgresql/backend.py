"""The writer of the shared ledger: one thread per process commits the rows of all threads, and renews the lease."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import psycopg
import structlog

from s3spool.errors import LedgerUnavailableError
from s3spool.heartbeat import Heartbeat
from s3spool.ledger.postgresql import statements as sql
from s3spool.ledger.postgresql.connection import (
    Connection,
    connect,
    destination_of,
    migrate,
    one_line,
    shown,
    speaking_of,
)
from s3spool.ledger.postgresql.groups import Work, gathered
from s3spool.ledger.postgresql.lease import LEASE_S, Lease
from s3spool.ledger.postgresql.reader import PostgresReader, known
from s3spool.ledger.protocol import Committed, Known, LedgerBackend
from s3spool.ledger.rows import Multipart, Part, Pause, Receipt, Retry

GROUP_S = 0.005  # the first row of a group waits for more rows, so that one statement serves them all
LONGEST_WAIT_S = 10.0
DRAIN_S = 5.0  # how long a closing ledger tries to reach the database
KEPT = "nothing is lost or removed meanwhile; uploads resume by themselves when the database is back"

# Errors of a row, not of the database: the same row fails again.
_HOPELESS = (psycopg.DataError, psycopg.IntegrityError, ValueError, TypeError)

log = structlog.get_logger()


class PostgresLedger(LedgerBackend):
    """The rows of one destination in PostgreSQL, which any number of nodes share.

    A file is taken before it is sent (`take`). A receipt or retry of a file that another node has taken since is not
    stored: `lost` is called in place of `committed`.
    """

    def __init__(
        self,
        url: str,
        *,
        destination: str,
        node: str,
        lost: Callable[[str], None] = lambda _: None,
        lease_s: float = LEASE_S,
    ) -> None:
        """Connect, and create or upgrade the schema. Raises LedgerError."""
        self._url = url
        with speaking_of(url):
            self._db: Connection | None = connect(url)
            try:
                migrate(self._db, url)
                self.destination = destination_of(self._db, destination)
                self.lease = Lease(self.destination, node, lease_s=lease_s)
                self.lease.renew(self._db)
            except BaseException:
                self._db.close()
                raise
        self._renew_s = lease_s / 3
        self._lost = lost
        self.damaged = ""
        self._failing_since: float | None = None
        self.heartbeat = Heartbeat()
        self.statements = 0
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._gave_up = False
        self._renewed = time.monotonic()  # only the ledger's thread uses it
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def name(self) -> str:
        return shown(self._url)

    @property
    def failing_since(self) -> float | None:
        return self._failing_since

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        self._closing.set()
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not (self._thread.is_alive() or self._gave_up)

    def flush(self, timeout_s: float) -> bool:
        done = threading.Event()
        self._put((), done.set)
        return done.wait(timeout_s)

    def reader(self) -> PostgresReader:
        return PostgresReader(self._url, self.destination)

    def report_read_error(self, error: Exception, before: str = "") -> str:
        if str(error) != before and self._failing_since is None:
            log.error("ledger.failed", path=self.name, error=str(error), hint=KEPT)
        return str(error)

    def take(self, paths: Sequence[str], timeout_s: float = LONGEST_WAIT_S) -> dict[str, Known]:
        """Claim these files for this process, and what the ledger knows of each; a file of another node is left out.

        Waits for the database. Raises LedgerUnavailableError after `timeout_s`: the claims may stand all the same.
        """
        found: dict[str, Known] = {}
        done = threading.Event()

        def taken(rows: list[tuple[Any, ...]]) -> None:
            found.update(map(known, rows))
            done.set()

        arguments = {"paths": sql.paths_json(paths)}
        self._inbox.put(Work((sql.TAKE,), None, arguments, taken=taken))
        if not done.wait(timeout_s):
            raise LedgerUnavailableError(f"{self.name}: no answer within {timeout_s:.0f} s")
        return found

    def give_back(self, paths: Sequence[str]) -> None:
        """End the claims of files that this process does not send after all."""
        self._put(sql.GIVE_BACK, None, paths)

    def record_receipt(self, receipt: Receipt, committed: Committed | None = None) -> None:
        self._inbox.put(Work((sql.RECORD_RECEIPTS,), sql.receipt_row(receipt), {}, receipt.path, committed))

    def record_retry(self, retry: Retry, committed: Committed | None = None) -> None:
        self._inbox.put(Work((sql.RECORD_RETRIES,), sql.retry_row(retry), {}, retry.path, committed))

    def record_multipart(self, multipart: Multipart, committed: Committed | None = None) -> None:
        self._inbox.put(Work((sql.RECORD_MULTIPARTS,), sql.multipart_row(multipart), {}, committed=committed))

    def record_part(self, part: Part) -> None:
        self._inbox.put(Work((sql.RECORD_PARTS,), part._asdict(), {}))

    def record_pause(self, pause: Pause | None, committed: Committed | None = None) -> None:
        if pause is None:
            self._put(sql.RESUME, committed)
        else:
            self._put(sql.PAUSE, committed, since=pause.since, reason=sql.storable(pause.reason))

    def claim(self, paths: Sequence[str], now: float, committed: Committed | None = None) -> None:
        self._put(sql.CLAIM, committed, paths, now=now)

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        self._put(sql.RELEASE_ALL if paths is None else sql.RELEASE, committed, paths or ())

    def release_provisional(self, committed: Committed | None = None) -> None:
        self._put(sql.RELEASE_PROVISIONAL, committed)

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        self._put(sql.HASTEN, committed, now=now, latest=latest)

    def forget(self, path: str, committed: Committed | None = None) -> None:
        self._put(sql.FORGET, committed, [path])

    def forget_retry(self, path: str, committed: Committed | None = None) -> None:
        self._put(sql.FORGET_RETRY, committed, [path])

    def forget_multipart(self, path: str, committed: Committed | None = None) -> None:
        self._put(sql.FORGET_MULTIPART, committed, [path])

    def drop_receipts(self, paths: Sequence[str]) -> None:
        self._put(sql.DROP_RECEIPTS, None, paths)

    def _put(
        self, statements: tuple[str, ...], committed: Committed | None, paths: Sequence[str] = (), **arguments: Any
    ) -> None:
        self._inbox.put(Work(statements, None, {"paths": sql.paths_json(paths), **arguments}, committed=committed))

    # Below this line everything runs on the ledger's thread.

    def _run(self) -> None:
        while self._step():
            pass
        if self._db is not None:
            try:
                self.lease.leave(self._db)
            except psycopg.Error as exc:
                log.debug("ledger.rollback_failed", error=one_line(exc))
            self._db.close()

    def _step(self) -> bool:
        """Gather one group, make it durable, call back; False when it was the last."""
        self.heartbeat.beat()
        wait_s = self._renewed + self._renew_s - time.monotonic()
        try:
            first = self._inbox.get(timeout=self.heartbeat.capped(max(0.0, wait_s)))
        except queue.Empty:
            return self._commit_until_done([])
        if first is None:
            return False
        if not self._closing.is_set():
            time.sleep(GROUP_S)
        group, last = gathered(self._inbox, first)
        return self._commit_until_done(group) and not last

    def _commit_until_done(self, group: list[Work]) -> bool:
        """Runs of rows for one table go as one statement; False if the ledger is closed and the database is away."""
        if not self._tried(self._keep_lease):
            return False
        for _, some in groupby(group, key=lambda work: work.kind):
            run = list(some)
            try:
                done = self._tried(partial(self._commit, run))
            except _HOPELESS as exc:
                done = all(self._commit_until_done([each]) for each in run) if len(run) > 1 else self._refused(exc)
            if not done:
                return False
        return self._tried(_announce) if any(work.statements for work in group) else True

    def _refused(self, exc: Exception) -> bool:
        log.error("ledger.failed", path=self.name, error=f"a row was refused: {exc}")
        return True

    def _tried(self, act: Callable[[Connection], None]) -> bool:
        delay_s, deadline = 0.25, 0.0
        while True:
            self.heartbeat.beat()
            try:
                if self._db is None:
                    self._db = connect(self._url)
                act(self._db)
            except _HOPELESS:
                raise
            except psycopg.Error as exc:
                if self._failing_since is None:
                    self._failing_since = time.time()
                    log.error("ledger.failed", path=self.name, error=one_line(exc), hint=KEPT)
                self._disconnect()
                deadline = deadline or time.monotonic() + DRAIN_S
                if self._closing.wait(delay_s):
                    if time.monotonic() > deadline:
                        self._gave_up = True
                        return False
                    time.sleep(delay_s)
                delay_s = min(delay_s * 2, self._renew_s)
            else:
                if self._failing_since is not None:
                    log.info("ledger.recovered", path=self.name, duration_s=round(time.time() - self._failing_since, 3))
                    self._failing_since = None
                return True

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _keep_lease(self, db: Connection) -> None:
        if time.monotonic() - self._renewed >= self._renew_s:
            self.lease.renew(db)
            self._renewed = time.monotonic()

    def _commit(self, run: list[Work], db: Connection) -> None:
        work = run[0]
        arguments = {"destination": self.destination, "owner": self.lease.owner, **work.arguments}
        if work.row is not None:
            latest = {each.key: each.row for each in run}
            arguments["rows"] = sql.as_json([*latest.values()])
        rows: list[tuple[Any, ...]] = []
        for statement in work.statements:
            self.statements += 1
            cursor = db.execute(statement.encode(), arguments)
            rows = cursor.fetchall() if cursor.description else []
        stored = {row[0] for row in rows}
        for each in run:
            if each.taken:
                each.taken(rows)
            elif each.path and each.row and each.row["path"] not in stored:
                self._lost(each.path)
            elif each.committed is not None:
                each.committed()


def _announce(db: Connection) -> None:
    """A reader of any node sees that there is something new."""
    db.execute(sql.CHANGED)
