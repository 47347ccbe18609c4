"""Waiting until a file is left alone. A constant delay a lane, so plain FIFOs: no heap, no timer a file."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from s3spool.heartbeat import Heartbeat
from s3spool.ledger.rows import Identity

BATCH = 500
CREATED_S = 0.1
BUSY_S = 5.0


class SettleReason(Enum):
    """Why a path waits, and so how long."""

    CHANGED = "changed"  #: written, moved in or rewritten: `settle_s` from now
    CREATED = "created"  #: a name appeared: a writer's close usually follows and takes over; hard links have none
    BUSY = "busy"  #: a writer has it open: its close wakes us, this is for writers whose close we cannot see


Ripe = tuple[str, Identity | None]


class Settle:
    """Holds paths until they are due. Thread-safe; `touch` never blocks and never raises."""

    def __init__(self, settle_s: float, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._size = size
        self._delays_s = {
            SettleReason.CHANGED: settle_s,
            SettleReason.CREATED: max(settle_s, CREATED_S),
            SettleReason.BUSY: max(settle_s, BUSY_S),
        }
        # Within a lane the order of insertion is the order of dueness.
        self._lanes: dict[SettleReason, OrderedDict[str, tuple[float, Identity | None]]] = {
            quiet: OrderedDict() for quiet in SettleReason
        }
        self._lane_of: dict[str, SettleReason] = {}
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._sleeping = False
        self._closed = False
        self.heartbeat = Heartbeat()  # of the thread that calls `wait_due`
        self._handed_out = 0  # by the last `due`, and not yet in the inbox as far as we know

    def touch(self, path: str, quiet: SettleReason = SettleReason.CHANGED, seen: Identity | None = None) -> bool:
        """Start the path's wait, or start it anew; False when there is no room (then a scan has to find it again)."""
        now = self._clock()
        with self._lock:
            before = self._lane_of.get(path)
            if before is None:
                if len(self._lane_of) >= self._size:
                    return False
            elif quiet is SettleReason.BUSY or (before is not SettleReason.BUSY and quiet is SettleReason.CREATED):
                # What is known already says more (a change, above all a close, is due sooner) or the same: a directory
                # that is renamed all the time must not keep its files waiting for ever. The worker looks at them.
                return True
            else:
                del self._lanes[before][path]
            lane = self._lanes[quiet]
            self._lane_of[path] = quiet
            lane[path] = (now + self._delays_s[quiet], seen)
            # Only a lane's first entry can be the next one due.
            if self._sleeping and len(lane) == 1:
                self._wake.notify()
        return True

    def has_room(self) -> bool:
        """Whether what is found rather than told may come in: the other half is for what happens now."""
        return 2 * len(self._lane_of) < self._size

    def due(self, now: float) -> tuple[list[Ripe], float | None]:
        """Take out up to BATCH paths that are due at `now`, and say when the next one will be."""
        ripe: list[Ripe] = []
        upcoming: float | None = None
        with self._lock:
            for lane in self._lanes.values():
                while lane and len(ripe) < BATCH:
                    path, (due_at, seen) = next(iter(lane.items()))
                    if due_at > now:
                        break
                    del lane[path]
                    del self._lane_of[path]
                    ripe.append((path, seen))
                if lane:
                    due_at = next(iter(lane.values()))[0]
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
            return {path for path in paths if path in self._lane_of} if self._lane_of else set()

    def paths(self, limit: int) -> Sequence[str]:
        with self._lock:
            return list(self._lane_of)[:limit]

    def __len__(self) -> int:
        return len(self._lane_of)

    def unfinished(self) -> int:
        """How many wait, and how many were handed out and may not have arrived in the next room."""
        with self._lock:
            return len(self._lane_of) + self._handed_out

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wake.notify_all()

    def _newer_than(self, upcoming: float | None) -> bool:
        """Whether something came in, between looking and going to sleep, that is due before `upcoming`."""
        dues = [next(iter(lane.values()))[0] for lane in self._lanes.values() if lane]
        return bool(dues) and (upcoming is None or min(dues) < upcoming)
