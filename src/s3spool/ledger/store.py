"""The only writer of the ledger: one thread that commits what the others hand it, in groups, with fsync."""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from s3spool.errors import LedgerDamagedError, LedgerError
from s3spool.heartbeat import Heartbeat
from s3spool.ledger.database import open_for_writing, speaking_of
from s3spool.ledger.health import BEGUN_ANEW, ENDING, UNREAD, DamagedError, Guard, Trouble, is_damage, put_aside
from s3spool.ledger.rows import Multipart, Part, Pause, Receipt, Retry, to_text
from s3spool.ledger.statements import (
    CLAIM,
    FORGET_MULTIPART,
    FORGET_PARTS,
    FORGET_RECEIPT,
    FORGET_RETRY,
    HASTEN,
    INSERT,
    NOTHING,
    PAUSE,
    RELEASE,
    RELEASE_ALL,
    RELEASE_PROVISIONAL,
    RESUME,
    as_json,
    storable,
)

GROUP_S = 0.005  # how long the first row of a group waits for more rows, so that one fsync serves them all
BUSY_GROUP_S = 0.02  # the same after a group of at least CROWD rows
CROWD = 8
GROUP_ROWS = 1000
DOUBT_S = 5.0
LOOK_S = 5.0  # how often an idle ledger checks that its files are still there

# Errors of a row, not of the disk: the same row fails again.
_HOPELESS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, ValueError, TypeError)

Committed = Callable[[], None]
log = structlog.get_logger()


class _Work(NamedTuple):
    table: str  # "" for a statement
    statement: str
    row: tuple[Any, ...]
    committed: Committed | None


class Ledger:
    """Takes rows from any thread, makes them durable in groups, and calls back.

    `record_*` and the other writing methods return at once and may be called from any thread; `committed` is
    called on the ledger's thread after the fsync, in the order of the calls, and must neither block nor raise.
    When the disk is full or broken the rows are kept and tried again until it works: nothing is dropped. When the
    file is deleted, replaced or damaged, it is put aside, `damaged` says why, and the thread ends: rows that are not
    durable are dropped without a callback, and the daemon has to be started again.
    """

    def __init__(self, path: Path, *, destination: str, on_damage: Callable[[], None] = lambda: None) -> None:
        """Open or create the file; raises LedgerError. `destination` is the bucket and prefix of this run's receipts.

        A damaged file is put aside, and a new one created. `on_damage` is called on the ledger's thread when it ends
        because of damage.
        """
        self.path = path
        # Only the ledger's thread uses the connection once that runs.
        try:
            self._db, self.destination = _opened(path, destination)
        except LedgerDamagedError as exc:
            log.error("ledger.failed", path=str(path), error=str(exc), hint=BEGUN_ANEW)
            try:
                put_aside(path)
            except OSError as error:
                raise LedgerError(f"{path}: is damaged, and cannot be renamed: {error.strerror}") from exc
            self._db, self.destination = _opened(path, destination)
        self._guard = Guard(path)
        self._on_damage = on_damage
        self.damaged = ""  #: why this ledger cannot be used any more
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
    def failing_since(self) -> float | None:
        """Unix seconds; None while all is well."""
        return self._trouble.since

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        """Commit all rows that were handed in and close the file; False if that failed or took longer."""
        self._closing.set()
        self._inbox.put(None)
        self._thread.join(timeout_s)
        return not (self._thread.is_alive() or self._gave_up)

    def record_receipt(self, receipt: Receipt, committed: Committed | None = None) -> None:
        """The file is in S3; whatever was waiting for this path is over."""
        identity = receipt.identity
        self._put("receipts", "", (to_text(receipt.path), *identity, *receipt[2:]), committed)

    def record_retry(self, retry: Retry, committed: Committed | None = None) -> None:
        error, hint = storable(retry.error), storable(retry.hint)
        row = (
            *(to_text(retry.path), *retry.identity, *retry[2:6], error, hint, retry.next_attempt, retry.state.value),
            *(retry.own_failures, int(retry.provisional), 0),
        )
        self._put("retries", "", row, committed)

    def record_multipart(self, multipart: Multipart, committed: Committed | None = None) -> None:
        row = (to_text(multipart.path), *multipart.identity, *multipart[2:])
        self._put("multiparts", "", row, committed)

    def record_part(self, part: Part) -> None:
        self._put("parts", "", tuple(part), None)

    def forget_multipart(self, path: str, committed: Committed | None = None) -> None:
        self._put("", FORGET_PARTS, (as_json(path),), None)
        self._put("", FORGET_MULTIPART, (as_json(path),), committed)

    def claim(self, paths: Sequence[str], now: float, committed: Committed | None = None) -> None:
        """These files, due at `now`, are with the workers; `due` leaves them out until they fail again.

        One that failed again in the meantime has a new row, due later, which is not to be claimed.
        """
        self._put("", CLAIM, (as_json(*paths), now), committed)

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        """Make waiting and parked files due at once: these, or all."""
        if paths is None:
            self._put("", RELEASE_ALL, (), committed)
        else:
            self._put("", RELEASE, (as_json(*paths),), committed)

    def release_provisional(self, committed: Committed | None = None) -> None:
        """Make those due at once that were parked without proof."""
        self._put("", RELEASE_PROVISIONAL, (), committed)

    def forget(self, path: str, committed: Committed | None = None) -> None:
        """Drop the receipt and the retry of this path."""
        self._put("", FORGET_RECEIPT, (as_json(path),), None)
        self._put("", FORGET_RETRY, (as_json(path),), committed)

    def record_pause(self, pause: Pause | None, committed: Committed | None = None) -> None:
        """The pause by hand, or its end."""
        if pause is None:
            self._put("", RESUME, (), committed)
        else:
            self._put("", PAUSE, (pause.since, storable(pause.reason)), committed)

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        """Make due at `now` what is due after `latest`: the clock was set back."""
        self._put("", HASTEN, (now, latest), committed)

    def forget_retry(self, path: str, committed: Committed | None = None) -> None:
        self._put("", FORGET_RETRY, (as_json(path),), committed)

    def drop_receipts(self, paths: Sequence[str]) -> None:
        self._put("", FORGET_RECEIPT, (as_json(*paths),), None)

    def doubt(self, error: Exception, before: str = "") -> str:
        """A reader failed: check the file, and where it is sound log the reader's error. Waits for seconds.

        Returns the error; it is not logged again where `before`, the return value of the last call, is the same.
        """
        lines, done = self._trouble.lines, threading.Event()
        self._guard.doubt = str(error)
        self._put("", NOTHING, (), done.set)
        if self.alive():
            done.wait(DOUBT_S)
        if not self.damaged and str(error) != before and lines == self._trouble.lines and self.failing_since is None:
            log.error("ledger.failed", path=str(self.path), error=str(error), hint=UNREAD)
        return str(error)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed in before is durable."""
        done = threading.Event()
        self._put("", NOTHING, (), done.set)
        return done.wait(timeout_s)

    def _put(self, table: str, statement: str, row: tuple[Any, ...], committed: Committed | None) -> None:
        self._inbox.put(_Work(table, statement, row, committed))

    # Below this line everything runs on the ledger's thread.

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except DamagedError as exc:
            self._end_damaged(exc)
        self._db.close()

    def _end_damaged(self, exc: DamagedError) -> None:
        self._gave_up = True
        self.damaged = str(exc)
        error = self.damaged
        try:
            put_aside(self.path)
        except OSError as failure:
            error = f"{error}; it cannot be renamed: {failure.strerror}"
        log.error("ledger.failed", path=str(self.path), error=error, hint=ENDING)
        self._on_damage()

    def _step(self) -> bool:
        """Gather one group, make it durable, call back; False when it was the last. Raises DamagedError."""
        self.heartbeat.beat()
        idle = False
        try:
            first = self._inbox.get(timeout=self.heartbeat.capped(LOOK_S))
        except queue.Empty:
            first, idle = _Work("", NOTHING, (), None), True  # each commit checks the files
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
        """False where the ledger is closed while the disk is full or broken. Raises DamagedError."""
        delay_s = 0.5
        while True:
            self.heartbeat.beat()
            self.tries += 1
            try:
                self._check_files()
                self._commit(group)
                self._guard.after()
            except (sqlite3.Error, ValueError, TypeError, LedgerError, OSError) as exc:
                self._rollback()
                if is_damage(exc):
                    raise DamagedError(str(exc)) from exc
                if isinstance(exc, _HOPELESS):
                    return self._commit_one_by_one(group, exc)
                self._trouble.complain(str(exc))
                if self._closing.wait(delay_s):
                    return False
                delay_s = min(delay_s * 2, 10.0)
            else:
                self._trouble.over()
                return True

    def _commit_one_by_one(self, group: list[_Work], exc: Exception) -> bool:
        """One row can never be stored: it must not keep the others out."""
        if len(group) == 1:
            self._require_sound(exc)
            bug = None if isinstance(exc, sqlite3.IntegrityError) else exc  # an IntegrityError: the file was altered
            log.error("ledger.failed", path=str(self.path), error=f"a row was refused: {exc}", exc_info=bug)
            group[0] = group[0]._replace(committed=None)  # it is not durable
            return True
        for index, work in enumerate(group):
            alone = [work]
            if not self._commit_until_done(alone):
                return False
            group[index] = alone[0]
        return True

    def _require_sound(self, exc: Exception) -> None:
        """In a file whose pages were exchanged, sound rows look wrong. Raises DamagedError."""
        self._guard.doubt = str(exc)
        with contextlib.suppress(sqlite3.Error, LedgerError, OSError):
            self._check_files()
        self._guard.doubt = ""

    def _check_files(self) -> None:
        if self._guard.before():
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
        self._db.execute(INSERT[table], (msgspec.json.encode(rows).decode(),))
        if table == "receipts":
            paths = msgspec.json.encode([row[0] for row in rows]).decode()
            self._db.execute(FORGET_RETRY, (paths,))

    def _rollback(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error as exc:
                log.debug("ledger.rollback_failed", error=str(exc))


def _opened(path: Path, destination: str) -> tuple[sqlite3.Connection, int]:
    """The connection, and the row id of the destination. Raises LedgerError."""
    db = open_for_writing(path)
    with speaking_of(path), contextlib.ExitStack() as stack:
        stack.callback(db.close)
        db.execute("UPDATE retries SET claimed = 0 WHERE claimed = 1")
        db.execute("INSERT OR IGNORE INTO destinations (name) VALUES (?)", (destination,))
        row = db.execute("SELECT id FROM destinations WHERE name = ?", (destination,)).fetchone()
        stack.pop_all()
    return db, int(row[0])
