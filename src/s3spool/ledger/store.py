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

from s3spool.errors import LedgerError
from s3spool.ledger.database import open_for_writing, speaking_of
from s3spool.ledger.health import ANEW, KEPT, UNREAD, DamagedError, Guard, Trouble, is_damage, made_anew
from s3spool.ledger.rows import Multipart, Part, Receipt, Retry, to_text
from s3spool.ledger.statements import (
    CLAIM,
    FORGET_MULTIPART,
    FORGET_PARTS,
    FORGET_RECEIPT,
    FORGET_RETRY,
    HASTEN,
    INSERT,
    NOTHING,
    RELEASE,
    RELEASE_ALL,
    RELEASE_PROVISIONAL,
    as_json,
    storable,
)

GROUP_S = 0.005  # how long the first row of a group waits for company: one fsync then serves them all
BUSY_GROUP_S = 0.02  # the same while they come in crowds
CROWD = 8
GROUP_ROWS = 1000
DOUBT_S = 5.0
LOOK_S = 5.0  # how often an idle ledger looks whether its file is still there

# Errors of a row, not of the disk: trying again is no use.
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
    file is deleted, replaced or damaged it is put aside and a new one is made; whoever asked for it is told.
    """

    def __init__(self, path: Path, *, destination: str) -> None:
        """Open or create the file; raises LedgerError. `destination` names where receipts of this run belong."""
        self.path = path
        self._db = open_for_writing(path)  # only the ledger thread uses it once that runs
        with speaking_of(path), contextlib.ExitStack() as stack:
            stack.callback(self._db.close)
            self._db.execute("UPDATE retries SET claimed = 0 WHERE claimed = 1")
            self._db.execute("INSERT OR IGNORE INTO destinations (name) VALUES (?)", (destination,))
            row = self._db.execute("SELECT id FROM destinations WHERE name = ?", (destination,)).fetchone()
            stack.pop_all()
        self.destination = int(row[0])
        self._name = destination
        self._guard = Guard(path)
        self._on_made_anew: list[Callable[[], None]] = []
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._closing = threading.Event()
        self._trouble = Trouble(path)
        self._spoilt = False  # the connection's own file was changed by others: nothing in it is to be trusted
        self._gave_up = False  # closed while the disk was full or broken
        self.watched = False  #: somebody calls `look` when the file is touched: no need to look every few seconds
        self._crowded = False
        self.beats = 0  # groups committed or tried; grows while the thread lives and has work

    def on_made_anew(self, listener: Callable[[], None]) -> None:
        """Call back on the ledger's thread; `listener` must neither block nor raise."""
        self._on_made_anew.append(listener)

    def start(self) -> None:
        self._thread.start()

    @property
    def failing_since(self) -> float | None:
        """Unix seconds; None while all is well."""
        return self._trouble.since

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        """Commit what was handed in and close the file; False if that did not work out in time."""
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

    def hasten(self, now: float, latest: float, committed: Committed | None = None) -> None:
        """Make due at `now` what is due after `latest`: the clock was set back."""
        self._put("", HASTEN, (now, latest), committed)

    def forget_retry(self, path: str, committed: Committed | None = None) -> None:
        self._put("", FORGET_RETRY, (as_json(path),), committed)

    def drop_receipts(self, paths: Sequence[str]) -> None:
        self._put("", FORGET_RECEIPT, (as_json(*paths),), None)

    def doubt(self, error: Exception, before: str = "") -> str:
        """A reader has trouble: see whether the file is sound, and if so say what the reader says.

        Once: `before` is the answer to its last complaint, which this call's answer replaces. Waits for seconds.
        """
        lines, done = self._trouble.lines, threading.Event()
        self._guard.doubt = str(error)
        self._put("", NOTHING, (), done.set)
        if self.alive():
            done.wait(DOUBT_S)
        if str(error) != before and lines == self._trouble.lines and self.failing_since is None:
            log.error("ledger.failed", path=str(self.path), error=str(error), hint=UNREAD)
        return str(error)

    def ping(self, answer: Committed) -> None:
        """Call back from the thread; at once where it is known to be trying, and trying, to write."""
        if self.failing_since is not None:
            answer()
        else:
            self._put("", NOTHING, (), answer)

    def look(self) -> None:
        """See whether the file is still there and ours, even if there is nothing to write."""
        self._put("", NOTHING, (), None)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed in before is durable."""
        done = threading.Event()
        self._put("", NOTHING, (), done.set)
        return done.wait(timeout_s)

    def _put(self, table: str, statement: str, row: tuple[Any, ...], committed: Committed | None) -> None:
        self._inbox.put(_Work(table, statement, row, committed))

    # Below this line everything runs on the ledger's thread.

    def _run(self) -> None:
        while self._step():
            pass
        self._db.close()

    def _step(self) -> bool:
        """Gather one group, make it durable, tell who waits; False when it was the last."""
        try:
            first = self._inbox.get(timeout=None if self.watched else LOOK_S)
        except queue.Empty:
            first = _Work("", NOTHING, (), None)  # a look at the file comes with it
        if first is None:
            return False
        if not self._closing.is_set():
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
        delay_s = 0.5
        anew = 0
        while True:
            self.beats += 1
            try:
                if self._guard.before():
                    self._reopen()
                self._commit(group)
                self._guard.after()
            except (sqlite3.Error, ValueError, TypeError, DamagedError, LedgerError, OSError) as exc:
                self._rollback()
                if isinstance(exc, _HOPELESS) and not is_damage(exc):
                    return self._commit_one_by_one(group, exc)
                if (isinstance(exc, DamagedError) or is_damage(exc)) and self._replaced(exc):
                    anew += 1
                    if anew == 1:
                        continue  # at once: this group goes into the new one
                self._trouble.complain(str(exc), KEPT)
                if self._closing.wait(delay_s):
                    return False
                delay_s = min(delay_s * 2, 10.0)
            else:
                self._trouble.over()
                if anew:
                    self._tell()
                return True

    def _tell(self) -> None:
        for listener in self._on_made_anew:
            listener()

    def _replaced(self, exc: Exception) -> bool:
        """Go on with a new file; False if that cannot be made now."""
        self._trouble.begin()  # a large one takes a while
        self._spoilt = self._spoilt or not (isinstance(exc, DamagedError) and exc.readable)
        try:
            readable, destination = not self._spoilt, (self.destination, self._name)
            self._reopen(made_anew(self.path, self._db, readable=readable, destination=destination))
        except (sqlite3.Error, DamagedError, LedgerError, OSError) as error:
            self._trouble.complain(f"{exc}; no new one can be made: {error}", KEPT)
            return False
        self._trouble.complain(str(exc), ANEW)
        return True

    def _reopen(self, ours: tuple[int, int] | None = None) -> None:
        # A connection keeps pages of what it has read, whoever changes the file behind its back.
        with contextlib.ExitStack() as stack:
            with self._guard.opening(ours):
                new = open_for_writing(self.path)
                stack.callback(new.close)
            stack.pop_all()
        old, self._db = self._db, new
        self._spoilt = False
        with contextlib.suppress(sqlite3.Error):
            old.close()

    def _commit_one_by_one(self, group: list[_Work], exc: Exception) -> bool:
        """One row cannot be stored, ever: it must not keep the others out."""
        if len(group) == 1:
            if not self._is_sound(exc):
                return self._commit_until_done(group)
            bug = None if isinstance(exc, sqlite3.IntegrityError) else exc  # else it is the file that has been altered
            log.error("ledger.failed", path=str(self.path), error=f"a row was refused: {exc}", exc_info=bug)
            group[0] = group[0]._replace(committed=None)  # it is not durable, so nobody is told so
            return True
        for index, work in enumerate(group):
            alone = [work]
            if not self._commit_until_done(alone):
                return False
            group[index] = alone[0]
        return True

    def _is_sound(self, exc: Exception) -> bool:
        """Before a row is blamed: in a file whose pages were exchanged, sound rows look wrong."""
        self._guard.doubt = str(exc)
        try:
            self._guard.before()
        except DamagedError:
            self._guard.doubt = str(exc)  # the next commit finds out the same, and mends it
            return False
        except (sqlite3.Error, LedgerError, OSError):
            self._guard.doubt = ""
        return True

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
