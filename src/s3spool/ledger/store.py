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

from s3spool.ledger.database import open_for_writing, speaking_of
from s3spool.ledger.rows import Multipart, Part, Receipt, Retry, to_text

GROUP_S = 0.005  # how long the first row of a group waits for company: one fsync then serves them all
GROUP_ROWS = 1000

_COLUMNS = {"receipts": 14, "retries": 14, "multiparts": 13, "parts": 5}


# A whole batch in one statement: sqlite3 gives the GIL away once a batch instead of once a row.
def _insert_statement(table: str, columns: int) -> str:
    values = ", ".join(f"json_extract(value, '$[{column}]')" for column in range(columns))
    claimed = ", 0" if table == "retries" else ""
    return f"INSERT OR REPLACE INTO {table} SELECT {values}{claimed} FROM json_each(?)"  # noqa: S608 - constants


_INSERT = {table: _insert_statement(table, columns) for table, columns in _COLUMNS.items()}
_PATHS = "path IN (SELECT value FROM json_each(?))"
_FORGET_RETRY = f"DELETE FROM retries WHERE {_PATHS}"  # noqa: S608 - constants
_FORGET_RECEIPT = f"DELETE FROM receipts WHERE {_PATHS}"  # noqa: S608 - constants
_FORGET_MULTIPART = f"DELETE FROM multiparts WHERE {_PATHS}"  # noqa: S608 - constants
_FORGET_PARTS = f"DELETE FROM parts WHERE upload_id IN (SELECT upload_id FROM multiparts WHERE {_PATHS})"  # noqa: S608 - constants
_CLAIM = f"UPDATE retries SET claimed = 1 WHERE {_PATHS} AND next_attempt <= ?"  # noqa: S608 - constants
_RELEASE = f"UPDATE retries SET state = 'waiting', next_attempt = 0, claimed = 0 WHERE {_PATHS}"  # noqa: S608 - constants
_RELEASE_ALL = "UPDATE retries SET state = 'waiting', next_attempt = 0 WHERE claimed = 0"

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
    When the disk is full or broken the rows are kept and tried again until it works: nothing is dropped.
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
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._closing = threading.Event()
        self.failing_since: float | None = None
        self._gave_up = False  # closed while the disk was full or broken
        self.beats = 0  # groups committed or tried; grows while the thread lives and has work

    def start(self) -> None:
        self._thread.start()

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
        error, hint = _storable(retry.error), _storable(retry.hint)
        row = (to_text(retry.path), *retry.identity, *retry[2:6], error, hint, retry.next_attempt, retry.state.value)
        self._put("retries", "", row, committed)

    def record_multipart(self, multipart: Multipart, committed: Committed | None = None) -> None:
        row = (to_text(multipart.path), *multipart.identity, *multipart[2:])
        self._put("multiparts", "", row, committed)

    def record_part(self, part: Part) -> None:
        self._put("parts", "", tuple(part), None)

    def forget_multipart(self, path: str, committed: Committed | None = None) -> None:
        self._put("", _FORGET_PARTS, (_paths(path),), None)
        self._put("", _FORGET_MULTIPART, (_paths(path),), committed)

    def claim(self, paths: Sequence[str], now: float, committed: Committed | None = None) -> None:
        """These files, due at `now`, are with the workers; `due` leaves them out until they fail again.

        One that failed again in the meantime has a new row, due later, which is not to be claimed.
        """
        self._put("", _CLAIM, (_paths(*paths), now), committed)

    def release(self, paths: Sequence[str] | None, committed: Committed | None = None) -> None:
        """Make waiting and parked files due at once: these, or all."""
        if paths is None:
            self._put("", _RELEASE_ALL, (), committed)
        else:
            self._put("", _RELEASE, (_paths(*paths),), committed)

    def forget(self, path: str, committed: Committed | None = None) -> None:
        """Drop the receipt and the retry of this path."""
        self._put("", _FORGET_RECEIPT, (_paths(path),), None)
        self._put("", _FORGET_RETRY, (_paths(path),), committed)

    def forget_retry(self, path: str, committed: Committed | None = None) -> None:
        self._put("", _FORGET_RETRY, (_paths(path),), committed)

    def drop_receipts(self, paths: Sequence[str]) -> None:
        self._put("", _FORGET_RECEIPT, (_paths(*paths),), None)

    def ping(self, answer: Committed) -> None:
        """Call back from the thread; at once where it is known to be trying, and trying, to write."""
        if self.failing_since is not None:
            answer()
        else:
            self._put("", "SELECT 1", (), answer)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed in before is durable."""
        done = threading.Event()
        self._put("", "SELECT 1", (), done.set)
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
        first = self._inbox.get()
        if first is None:
            return False
        if not self._closing.is_set():
            time.sleep(GROUP_S)
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
        if not self._commit_until_done(group):
            self._gave_up = True
            return False
        for work in group:
            if work.committed is not None:
                work.committed()
        return not last

    def _commit_until_done(self, group: list[_Work]) -> bool:
        delay_s = 0.5
        while True:
            self.beats += 1
            try:
                self._commit(group)
            except (sqlite3.Error, ValueError, TypeError) as exc:
                self._rollback()
                if isinstance(exc, _HOPELESS) and len(group) > 1:
                    return self._commit_one_by_one(group)
                if isinstance(exc, _HOPELESS):
                    log.error("ledger.failed", path=str(self.path), error=f"a row was refused: {exc}", exc_info=exc)
                    group[0] = group[0]._replace(committed=None)  # it is not durable, so nobody is told so
                    return True
                if self.failing_since is None:
                    self.failing_since = time.time()
                    log.error("ledger.failed", path=str(self.path), error=str(exc), exc_info=False)
                if self._closing.wait(delay_s):
                    return False
                delay_s = min(delay_s * 2, 10.0)
            else:
                if self.failing_since is not None:
                    duration_s = round(time.time() - self.failing_since, 3)
                    self.failing_since = None
                    log.info("ledger.recovered", path=str(self.path), duration_s=duration_s)
                return True

    def _commit_one_by_one(self, group: list[_Work]) -> bool:
        """One row cannot be stored, ever: it must not keep the others out."""
        for index, work in enumerate(group):
            alone = [work]
            if not self._commit_until_done(alone):
                return False
            group[index] = alone[0]
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
        self._db.execute(_INSERT[table], (msgspec.json.encode(rows).decode(),))
        if table == "receipts":
            paths = msgspec.json.encode([row[0] for row in rows]).decode()
            self._db.execute(_FORGET_RETRY, (paths,))

    def _rollback(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error as exc:
                log.debug("ledger.rollback_failed", error=str(exc))


def _storable(text: str) -> str:
    """An error's words may hold a name that is not UTF-8; that must not cost the ledger's thread its life."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _paths(*paths: str) -> str:
    return msgspec.json.encode([to_text(path) for path in paths]).decode()
