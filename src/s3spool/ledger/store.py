"""The only writer of the ledger: one thread commits the rows of all threads in groups, with fsync."""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from s3spool.errors import LedgerDamagedError, LedgerError
from s3spool.heartbeat import Heartbeat
from s3spool.ledger import statements as sql
from s3spool.ledger.health import ENDING, UNREAD, Guard, Trouble, is_damage, open_or_begin_anew, put_aside
from s3spool.ledger.protocol import Committed, LedgerBackend, Lost
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Multipart, Part, Pause, Receipt, Retry

GROUP_S = 0.005  # the first row of a group waits for more rows, so that one fsync serves them all
BUSY_GROUP_S = 0.02  # the same after a group of at least CROWD rows
CROWD = 8
GROUP_ROWS = 1000
CHECK_S = 5.0  # the longest wait of a failed reader for the next commit
LOOK_S = 5.0  # seconds between two checks of an idle ledger's files

# Errors of a row, not of the disk: the same row fails again.
_HOPELESS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, ValueError, TypeError)

log = structlog.get_logger()


class _Work(NamedTuple):
    table: str  # "" for a statement
    statement: str
    row: tuple[Any, ...]
    committed: Committed | None


class Ledger(LedgerBackend):
    """The SQLite file.

    `record_*` and the other writing methods return at once and may be called from any thread; `committed` is
    called on the ledger's thread after the fsync, in the order of the calls, and must neither block nor raise.
    When the disk is full or broken the rows are kept and tried again until it works: nothing is dropped. When the
    file is deleted, replaced or damaged, it is put aside, `damaged` says why, and the thread ends: rows that are not
    durable are dropped without a callback, and the daemon has to be started again.
    """

    def __init__(self, path: Path, *, destination: str) -> None:
        """Open or create the file; raises LedgerError. `destination` is the bucket and prefix of this run's receipts.

        A damaged file is put aside, and a new one created.
        """
        self.path = path
        # Only the ledger's thread uses the connection once that runs.
        self._db, self.destination = open_or_begin_anew(path, destination)
        self._guard = Guard(path)
        self.damaged = ""  #: why this ledger cannot be used any more
        self._damage: LedgerDamagedError | None = None  # what a reader found; any thread sets it
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._closing = threading.Event()
        self._trouble = Trouble(path)
        self._gave_up = False  # rows were left when the thread ended
        self._crowded = False
        self.heartbeat = Heartbeat()
        self.tries = 0  # groups committed or tried

    def start(self) -> None:
        self._thread.start()

    @property
    def name(self) -> str:
        return str(self.path)

    def reader(self) -> Reader:
        return Reader(self.path)

    @property
    def failing_since(self) -> float | None:
        return self._trouble.since

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        """Commit all rows and close the file; False if that failed or took longer."""
        self._closing.set()
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not (self._thread.is_alive() or self._gave_up)

    def record_receipt(self, receipt: Receipt, committed: Committed | None = None, _lost: Lost | None = None) -> None:
        self._put("receipts", "", sql.path_row(receipt), committed)

    def record_retry(self, retry: Retry, committed: Committed | None = None, _lost: Lost | None = None) -> None:
        self._put("retries", "", sql.retry_row(retry), committed)

    def record_multipart(self, multipart: Multipart, committed: Committed | None = None) -> None:
        self._put("multiparts", "", sql.path_row(multipart), committed)

    def record_part(self, part: Part) -> None:
        self._put("parts", "", tuple(part), None)

    def forget_multipart(self, upload_id: str) -> None:
        self._put("", sql.FORGET_PARTS, (upload_id,), None)
        self._put("", sql.FORGET_MULTIPART, (upload_id,), None)

    def claim(self, paths: Sequence[str], committed: Committed | None = None) -> None:
        self._put("", sql.CLAIM, (sql.as_json(*paths),), committed)

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        if paths is None:
            self._put("", sql.RELEASE_ALL, (), committed)
        else:
            self._put("", sql.RELEASE, (sql.as_json(*paths),), committed)

    def release_provisional(self, committed: Committed | None = None) -> None:
        self._put("", sql.RELEASE_PROVISIONAL, (), committed)

    def forget(self, path: str, committed: Committed | None = None) -> None:
        self.drop_receipts([path])
        self.forget_retry(path, committed)

    def record_pause(self, pause: Pause | None) -> None:
        self._put("", *(sql.pause(pause) if pause else (sql.RESUME, ())), None)

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        self._put("", sql.HASTEN, (now, latest), committed)

    def forget_retry(self, path: str, committed: Committed | None = None) -> None:
        self._put("", sql.FORGET_RETRY, (sql.as_json(path),), committed)

    def drop_receipts(self, paths: Sequence[str]) -> None:
        self._put("", sql.FORGET_RECEIPT, (sql.as_json(*paths),), None)

    def report_read_error(self, error: Exception, before: str = "") -> str:
        """A reader failed: a damaged file ends the ledger; another error is logged, unless it equals `before`.

        Waits for seconds. Returns the error, as `before` of the next call.
        """
        if isinstance(error, LedgerDamagedError):
            self._damage = error
            self._put("", sql.NOTHING, (), None)
        elif str(error) != before and self.alive() and self.flush(CHECK_S):  # the commit found no damage
            log.error("ledger.failed", path=str(self.path), error=str(error), hint=UNREAD)
        return str(error)

    def flush(self, timeout_s: float) -> bool:
        done = threading.Event()
        self._put("", sql.NOTHING, (), done.set)
        return done.wait(timeout_s)

    def _put(self, table: str, statement: str, row: tuple[Any, ...], committed: Committed | None) -> None:
        self._inbox.put(_Work(table, statement, row, committed))

    # Below this line everything runs on the ledger's thread.

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except LedgerDamagedError as exc:
            self._end_damaged(exc)
        self._db.close()

    def _end_damaged(self, exc: LedgerDamagedError) -> None:
        self._gave_up = True
        self.damaged = str(exc)
        error = self.damaged
        try:
            put_aside(self.path)
        except OSError as failure:
            error = f"{error}; it cannot be renamed: {failure.strerror}"
        log.error("ledger.failed", path=str(self.path), error=error, hint=ENDING)

    def _step(self) -> bool:
        """Gather one group, make it durable, call back; False when it was the last. Raises LedgerDamagedError."""
        self.heartbeat.beat()
        idle = False
        try:
            first = self._inbox.get(timeout=self.heartbeat.capped(LOOK_S))
        except queue.Empty:
            first, idle = _Work("", sql.NOTHING, (), None), True  # each commit checks the files
        if first is None:
            return False
        if not (idle or self._closing.is_set()):
            time.sleep(BUSY_GROUP_S if self._crowded else GROUP_S)
        group = [first]
        last = False
        while len(group) < GROUP_ROWS:
            try:
                work = self._inbox.get_nowait()
            except queue.Empty:
                break
            if work is None:
                last = True
                break
            group.append(work)
        self._crowded = len(group) >= CROWD
        if not self._commit_until_done(group):
            self._gave_up = True
            return False
        for work in group:
            if work.committed is not None:
                work.committed()
        return not last

    def _commit_until_done(self, group: list[_Work]) -> bool:
        """False if the ledger is closed while the disk is full or broken. Raises LedgerDamagedError."""
        delay_s, thoroughly = 0.5, False
        while True:
            self.heartbeat.beat()
            self.tries += 1
            try:
                self._check_files(thoroughly=thoroughly)
                self._commit(group)
                self._guard.after()
            except (sqlite3.Error, ValueError, TypeError, LedgerError, OSError) as exc:
                self._rollback()
                if is_damage(exc):
                    raise LedgerDamagedError(str(exc)) from exc
                if not isinstance(exc, _HOPELESS):
                    self._trouble.complain(str(exc))
                    if self._closing.wait(delay_s):
                        return False
                    delay_s = min(delay_s * 2, 10.0)
                elif len(group) > 1:
                    return self._commit_one_by_one(group)
                elif thoroughly:
                    self._refuse(group, exc)
                    return True
                else:
                    thoroughly = True  # in a file whose pages were exchanged, sound rows look wrong
            else:
                self._trouble.over()
                return True

    def _commit_one_by_one(self, group: list[_Work]) -> bool:
        """One row can never be stored: it must not block the others."""
        for index, work in enumerate(group):
            alone = [work]
            if not self._commit_until_done(alone):
                return False
            group[index] = alone[0]
        return True

    def _refuse(self, group: list[_Work], exc: Exception) -> None:
        """Drop the callback of the only row in `group`: the row is not durable."""
        bug = None if isinstance(exc, sqlite3.IntegrityError) else exc  # an IntegrityError: the file was altered
        log.error("ledger.failed", path=str(self.path), error=f"a row was refused: {exc}", exc_info=bug)
        group[0] = group[0]._replace(committed=None)

    def _check_files(self, *, thoroughly: bool) -> None:
        """Raises LedgerDamagedError, and LedgerError or OSError where the files cannot be checked now."""
        if self._damage is not None:
            raise self._damage
        if self._guard.before(thoroughly=thoroughly):
            self._db.execute("PRAGMA shrink_memory")  # cached pages may be older than the file

    def _commit(self, group: list[_Work]) -> None:
        """Apply in order: runs of rows for one table go as one statement."""
        self._db.execute("BEGIN IMMEDIATE")
        start = 0
        while start < len(group):
            table = group[start].table
            end = start + 1
            if table:
                while end < len(group) and group[end].table == table:
                    end += 1
                self._insert(table, [work.row for work in group[start:end]])
            else:
                self._db.execute(group[start].statement, group[start].row)
            start = end
        self._db.execute("COMMIT")

    def _insert(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        self._db.execute(sql.INSERT[table], (msgspec.json.encode(rows).decode(),))
        if table == "receipts":
            paths = msgspec.json.encode([row[0] for row in rows]).decode()
            self._db.execute(sql.FORGET_RETRY, (paths,))

    def _rollback(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error as exc:
                log.debug("ledger.rollback_failed", error=str(exc))
