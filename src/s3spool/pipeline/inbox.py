"""The bounded queue between those who find files and the workers who send them; each path is in it once."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from s3spool.pipeline.item import Item, Lane
from s3spool.pipeline.parts import PartItem, PartQueue
from s3spool.pipeline.standby import Standby

TURNS = (Lane.NEW, Lane.NEW, Lane.NEW, Lane.RETRY)  # neither lane starves the other
PART_TURN = 8  # every eighth take asks the large files' parts first; all others ask them last
LARGE_SHARE = 4  # so many times the size may be put aside as large before they take the others' room
MEANWHILE_S = 5.0  # how often who waits for room does what else it has to do
ROOM = 8  # who waits for room is woken when an eighth of the queue is free: not for each name
COOL_S = 30.0  # about as long as servers keep a connection that rests; libcurl does not use it after 118 s
SETTLING_DOWN = 4096  # sent, and waiting for the ledger and the step after it


class Inbox:
    """Names waiting for a worker, and names with one. Thread-safe; `offer` and `take` block, nothing else does.

    A path is *queued*, then *in flight* from `take` until `done`. Offered again while queued it changes nothing;
    offered again while in flight it is remembered, and `done` says so: the file may have changed under the
    worker's hands.

    Parts of large files come out of here too, but after the files: none waits longer for a worker than a part takes.
    """

    def __init__(self, size: int, workers: int, *, sent_bytes: Callable[[], int] = lambda: 0) -> None:
        """`sent_bytes`: how much all workers have sent up to now."""
        self._size = size
        # Bounds everything behind the workers: without it a stalled disk would let receipts pile up.
        self._max_in_flight = workers + SETTLING_DOWN
        self._lanes: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self._queued: set[str] = set()
        self._in_flight: dict[str, bool] = {}  # path -> offered again meanwhile
        self._turns = itertools.cycle(TURNS)
        self._new_first = False
        self._takes = 0
        self.parts = PartQueue(sent_bytes)
        self._lock = threading.Lock()
        self._standby = Standby(self._lock)
        self._drained = threading.Condition(self._lock)
        self._waiting_offers = 0
        self._lookout_until = 0.0  # monotonic seconds
        self._closed = False
        self.stirred: Callable[[], None] | None = None  #: called once, when something comes in; must be quick

    def offer(self, items: Iterable[Item], meanwhile: Callable[[], None] | None = None) -> bool:
        """Queue these, waiting for room; False when the inbox was closed before all had found some.

        `meanwhile` is called now and then while it waits, and must be quick.
        """
        with self._lock:
            for item in items:
                while self._full() and not self._closed:
                    self._waiting_offers += 1
                    self._drained.wait(MEANWHILE_S if meanwhile else None)
                    self._waiting_offers -= 1
                    if meanwhile:
                        meanwhile()
                if self._closed:
                    return False
                self._add(item)
        return True

    def offer_nowait(self, items: Sequence[Item]) -> int:
        """Queue as many of these as there is room for; returns how many were accepted (or were here already)."""
        with self._lock:
            for count, item in enumerate(items):
                if self._closed or self._full():
                    return count
                self._add(item)
        return len(items)

    def put_back(self, item: Item | PartItem, *, first: bool) -> bool:
        """A worker returns what it had taken, unsent; never blocks, its room is still its own.

        False for a part of a file that was given up meanwhile: whoever holds it may be the last, who has to end it.
        """
        with self._lock:
            if isinstance(item, PartItem):
                taken = self.parts.give_back(item)
                self._standby.call()
                return taken
            self._in_flight.pop(item.path, None)
            self._queued.add(item.path)
            lane = self._lanes[Lane.LARGE if item.large else item.lane]
            if first:
                lane.appendleft(item)
            else:
                lane.append(item)
            self._standby.call()
            return True

    def wake(self, count: int) -> None:
        """So many parts have become available."""
        with self._lock:
            self._standby.call(count)

    def take(self, cool: Callable[[], None] | None = None) -> Item | PartItem | None:
        """The next item, waiting for one; None when the inbox is closed.

        `cool` is called, without any lock, when that takes COOL_S.
        """
        while True:
            with self._lock:
                if self._closed:
                    return None
                item = self._next()
                if item is not None:
                    return item
                look_again_s = self._look_again_s()
                rests = cool is not None and look_again_s is None
                called = self._standby.wait(COOL_S if rests else look_again_s, last=look_again_s is not None)
                if look_again_s is not None:
                    self._lookout_until = 0.0  # called away, perhaps: whoever comes next looks
            if cool is not None and rests and not called:
                cool()
                cool = None

    def take_nowait(self) -> Item | PartItem | None:
        with self._lock:
            return None if self._closed else self._next()

    def claim(self, path: str) -> bool:
        """Put a path in flight without queueing it; False if it is queued or in flight already, or too much is."""
        with self._lock:
            if path in self._queued or path in self._in_flight or len(self._in_flight) >= self._max_in_flight:
                return False
            self._in_flight[path] = False
            self._stir()
            return True

    def done(self, path: str) -> bool:
        """The path is no longer in flight; True if it was offered again meanwhile."""
        with self._lock:
            again = self._in_flight.pop(path, False)
            if self._standby and self._queued:
                self._standby.call()
            return again

    def knows(self, paths: Iterable[str]) -> set[str]:
        """Those of these paths that are queued or in flight; the latter are marked as offered again."""
        known: set[str] = set()
        with self._lock:
            if not (self._queued or self._in_flight):
                return known
            for path in paths:
                if path in self._queued:
                    known.add(path)
                elif path in self._in_flight:
                    self._in_flight[path] = True
                    known.add(path)
            return known

    def counts(self) -> tuple[int, int]:
        """(queued, in flight)."""
        with self._lock:
            return len(self._queued), len(self._in_flight)

    def listing(self, limit: int) -> tuple[list[str], list[str]]:
        """Up to `limit` (queued, in flight) paths."""
        with self._lock:
            return list(itertools.islice(self._queued, limit)), list(itertools.islice(self._in_flight, limit))

    def oldest(self) -> list[str]:
        """The paths that wait, or are sent, for the longest time: one of each lane at most."""
        with self._lock:
            waiting = [lane[0].path for lane in self._lanes.values() if lane]
            return [*itertools.islice(self._in_flight, 1), *waiting]

    def state_of(self, path: str) -> str | None:
        with self._lock:
            if path in self._queued:
                return "queued"
            return "uploading" if path in self._in_flight else None

    def favour_new(self, favoured: bool) -> None:
        """While only probes are sent: a file that was not tried yet tells more than one that failed."""
        self._new_first = favoured

    def close(self) -> None:
        """Nothing more comes in or goes out; whoever waits is woken."""
        with self._lock:
            self._closed = True
            self._standby.call_all()
            self._drained.notify_all()

    # The callers of these hold the lock.

    def _look_again_s(self) -> float | None:
        """Seconds after which a worker that found nothing looks again for a free lane; None: when it is woken."""
        if self._lookout_until > (now := time.monotonic()):
            return None  # another one does
        wait_s = self.parts.next_in_s()
        if wait_s is not None:
            self._lookout_until = now + wait_s
        return wait_s

    def _add(self, item: Item) -> None:
        path = item.path
        if path in self._in_flight:
            self._in_flight[path] = True
        elif path not in self._queued:
            self._queued.add(path)
            self._lanes[item.lane].append(item)
            if self._standby:
                self._standby.call()
            self._stir()

    def _stir(self) -> None:
        if self.stirred is not None:
            stirred, self.stirred = self.stirred, None
            stirred()

    def _full(self) -> bool:
        return self._waiting() >= self._size

    def _waiting(self) -> int:
        """Names that take the room of others."""
        aside = len(self._lanes[Lane.LARGE])
        return len(self._queued) - min(aside, LARGE_SHARE * self._size)

    def _next(self) -> Item | PartItem | None:
        self._takes += 1
        if self._takes % PART_TURN == 0:
            return self._next_part() or self._next_file()
        return self._next_file() or self._next_part()

    def _next_part(self) -> PartItem | None:
        part = self.parts.take()
        if part is not None and self._standby and self.parts.next_in_s() == 0:
            self._standby.call()  # there is another one: the lanes may have been opened just now
        return part

    def _next_file(self) -> Item | None:
        if not self._queued or len(self._in_flight) >= self._max_in_flight:
            return None
        turn = Lane.NEW if self._new_first else next(self._turns)
        lane = self._lanes[turn] or self._lanes[Lane.NEW] or self._lanes[Lane.RETRY]
        if not lane:
            if self.parts.waiting():
                return None
            lane = self._lanes[Lane.LARGE]
        item = lane.popleft()
        self._queued.discard(item.path)
        self._in_flight[item.path] = False
        if self._waiting_offers and self._waiting() <= self._size - max(1, self._size // ROOM):
            self._drained.notify()
        return item
