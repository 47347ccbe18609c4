"""Waits until files are complete. One queue per reason, each with a constant delay: no heap, no timer per file."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from s3spool.heartbeat import Heartbeat
from s3spool.ledger.rows import Identity

BATCH = 1000
CREATED_S = 0.1
BUSY_S = 5.0
BUSY_PER_S = 500  # how many busy files become due in a second at most: a crowd of them waits longer


class SettleReason(StrEnum):
    """Why a path waits; decides how long."""

    CHANGED = "changed"  #: written or moved in: wait `settle_s`
    CREATED = "created"  #: a name appeared: usually a close follows (CHANGED); a hard link has none
    BUSY = "busy"  #: open for writing: usually a close follows (CHANGED); not on a remote file system


class Ripe(NamedTuple):
    """A path that has waited long enough."""

    path: str
    seen: Identity | None = None  #: its identity as the wait began, where somebody has looked
    busy: bool = False  #: it waited as BUSY


class Settle:
    """Holds paths until they are due. Thread-safe; `add` never blocks and never raises."""

    def __init__(self, settle_s: float, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._size = size
        self._delays_s = {
            SettleReason.CHANGED: settle_s,
            SettleReason.CREATED: max(settle_s, CREATED_S),
            SettleReason.BUSY: max(settle_s, BUSY_S),
        }
        # Within a queue, the order of insertion is the order of due times.
        self._queues: dict[SettleReason, OrderedDict[str, tuple[float, Identity | None]]] = {
            reason: OrderedDict() for reason in SettleReason
        }
        self._turns = deque(self._queues.items())  # a crowd of one reason must not delay the others
        self._reason_of: dict[str, SettleReason] = {}
        self._last_busy_at = 0.0  # when the last of the busy ones is due
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._sleeping = False
        self._closed = False
        self.heartbeat = Heartbeat()  # of the thread that calls `wait_due`
        self._handed_out = 0  # by the last `due`: these may not be in the inbox yet

    def add(self, path: str, reason: SettleReason = SettleReason.CHANGED, seen: Identity | None = None) -> bool:
        """Start or restart the wait of a path; False when there is no room (then a scan has to find it again)."""
        now = self._clock()
        with self._lock:
            before = self._reason_of.get(path)
            if before is None:
                # Busy files may wait for ever: they leave half of the room to others.
                busy = len(self._queues[SettleReason.BUSY]) if reason is SettleReason.BUSY else 0
                if len(self._reason_of) >= self._size or (busy and 2 * busy >= self._size):
                    return False
            elif reason is SettleReason.BUSY or (before is not SettleReason.BUSY and reason is SettleReason.CREATED):
                # The first wait goes on: a directory that is renamed again and again must not delay its files for ever.
                return True
            else:
                del self._queues[before][path]
            queue = self._queues[reason]
            self._reason_of[path] = reason
            due_at = now + self._delays_s[reason]
            if reason is SettleReason.BUSY:
                due_at = self._last_busy_at = max(due_at, self._last_busy_at + 1 / BUSY_PER_S)
            queue[path] = (due_at, seen)
            # Only the first entry of a queue can be the next one due.
            if self._sleeping and len(queue) == 1:
                self._wake.notify()
        return True

    def has_room(self) -> bool:
        """Whether a listing may add files: one half of the room is reserved for events."""
        return 2 * len(self._reason_of) < self._size

    def due(self, now: float) -> tuple[list[Ripe], float | None]:
        """Remove up to BATCH paths that are due at `now`; returns them and the time when the next one is due."""
        ripe: list[Ripe] = []
        upcoming: float | None = None
        with self._lock:
            self._turns.rotate()
            for reason, queue in self._turns:
                while queue and len(ripe) < BATCH:
                    path, (due_at, seen) = next(iter(queue.items()))
                    if due_at > now:
                        break
                    del queue[path]
                    del self._reason_of[path]
                    ripe.append(Ripe(path, seen, reason is SettleReason.BUSY))
                if queue:
                    due_at = next(iter(queue.values()))[0]
                    upcoming = due_at if upcoming is None else min(upcoming, due_at)
            self._handed_out = len(ripe)
        return ripe, upcoming

    def wait_due(self) -> list[Ripe]:
        """Block until something is due; an empty list means closed."""
        while not self._closed:
            self.heartbeat.beat()
            now = self._clock()
            ripe, upcoming = self.due(now)
            if ripe:
                return ripe
            with self._lock:
                self._sleeping = True
                if not (self._closed or self._newer_than(upcoming)):
                    left_s = None if upcoming is None else max(0.0, upcoming - now)
                    self._wake.wait(self.heartbeat.capped(left_s))
                self._sleeping = False
        return []

    def knows(self, paths: Iterable[str]) -> set[str]:
        with self._lock:
            return {path for path in paths if path in self._reason_of} if self._reason_of else set()

    def reason_of(self, path: str) -> SettleReason | None:
        """Why this path waits; None: it does not."""
        return self._reason_of.get(path)

    def paths(self, limit: int) -> Sequence[str]:
        with self._lock:
            return list(self._reason_of)[:limit]

    def __len__(self) -> int:
        return len(self._reason_of)

    def pending(self) -> int:
        """How many paths wait, plus those handed out that may not be in the inbox yet."""
        with self._lock:
            return len(self._reason_of) + self._handed_out

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wake.notify_all()

    def _newer_than(self, upcoming: float | None) -> bool:
        """Whether a path that is due before `upcoming` was added since `due` returned."""
        dues = [next(iter(queue.values()))[0] for queue in self._queues.values() if queue]
        return bool(dues) and (upcoming is None or min(dues) < upcoming)
