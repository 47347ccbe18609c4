"""The bounded queue between those who find files and the workers who send them; each path is in it once."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from s3spool.failure.breaker import PROBES, CircuitBreaker, Probe
from s3spool.folder.slow_directories import SlowDirectories, limit
from s3spool.queue.item import Item, Lane
from s3spool.queue.lifo_condition import LifoCondition
from s3spool.queue.parts import PartItem, PartQueue

TURNS = (Lane.ARRIVED, Lane.FOUND, Lane.BODY, Lane.ARRIVED, Lane.RETRY)  # no lane starves another
UNTRIED = (Lane.ARRIVED, Lane.FOUND)
ASIDE = (Lane.BODY, Lane.LARGE)
BODY_SHARE = 0.9  # bodies above 128 KiB, parts too, may block this share of the workers: the rest is for small files
RETRY_SHARE = 4  # files that have failed before hold one of so many workers at most
PART_TURN = 8  # every eighth take asks the large files' parts first; all others ask them last
RETRY_ROOM = 4  # so many times the room for new files of slow directories
ASIDE_SHARE = 4  # so many times the size may be put aside before they take the others' room
MEANWHILE_S = 5.0  # how often who waits for room does what else it has to do
ROOM = 8  # who waits for room is woken when an eighth of the queue is free: not for each name
NOTHING_S = 1.0  # how often to look again where a probe may go, but nothing that may be sent is there
IDLE_S = 5.0  # a worker that waits for longer closes its connections: somebody else may need them
SETTLING_DOWN = 4096  # sent, and waiting for the ledger and the step after it


class Inbox:
    """Names waiting for a worker, and names with one. Thread-safe; `offer` and `take` block, nothing else does.

    A path is *queued*, then *in flight* from `take` until `done`. Offered again while queued it changes nothing;
    offered again while in flight it is remembered, and `done` says so: the file may have changed under the
    worker's hands.

    Parts of large files come out of here too, but after the files: none waits longer for a worker than a part takes.
    While the circuit breaker is open, only its probes come out.
    """

    def __init__(
        self,
        size: int,
        workers: int,
        breaker: CircuitBreaker,
        *,
        sent_bytes: Callable[[], int] = lambda: 0,
        rng: random.Random | None = None,
        slow: SlowDirectories | None = None,
    ) -> None:
        """`size` bounds each lane; `sent_bytes`: how much all workers have sent up to now."""
        self._size = size
        self._breaker = breaker
        self._slow = slow or SlowDirectories()
        self._slow_in_flight: set[str] = set()
        self._max_slow = limit(workers)
        self._rng = rng or random.Random()  # noqa: S311 - picks probes, no secrets
        # Bounds everything behind the workers: without it a stalled disk would let receipts pile up.
        self._max_in_flight = workers + SETTLING_DOWN
        self._lanes: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self._queued: set[str] = set()
        self._in_flight: dict[str, bool] = {}  # path -> offered again meanwhile
        self._tried_in_flight: set[str] = set()  # of these, those that have failed before
        self._max_tried = max(1, workers // RETRY_SHARE)
        self._bodies_in_flight: set[str] = set()  # of these, those above 128 KiB whose body blocks a worker
        self._max_bodies = max(1, int(workers * BODY_SHARE))
        self._untried_probes: set[str] = set()  # of these, those that were not tried before, and are probes
        self._turns = itertools.cycle(TURNS)
        self._takes = 0
        self.parts = PartQueue(sent_bytes, self._max_tried, self._slow, self._max_slow)
        self._lock = threading.Lock()
        self._idle_workers = LifoCondition(self._lock)
        self._drained = threading.Condition(self._lock)
        self._waiting_offers: Counter[Lane] = Counter()
        self._lookout_until = 0.0  # monotonic seconds
        self._closed = False
        breaker.on_change(self.wake_all)

    def offer(self, items: Iterable[Item], meanwhile: Callable[[], None] | None = None) -> bool:
        """Queue these, waiting for room; False when the inbox was closed before all had found some.

        A file of a slow directory is left to the next scan where there is no room: nothing waits for those.
        `meanwhile` is called now and then while it waits, and must be quick.
        """
        with self._lock:
            for item in items:
                if self._slow.holds(item.path):
                    if not self._slow_full(item):
                        self._add(item)
                    continue
                while self._full(item.lane) and not self._closed:
                    self._waiting_offers[item.lane] += 1
                    self._drained.wait(MEANWHILE_S if meanwhile else None)
                    self._waiting_offers[item.lane] -= 1
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
                lane = Lane.RETRY if item.tried else item.lane
                if self._closed or (self._slow_full(item) if self._slow.holds(item.path) else self._full(lane)):
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
                self._idle_workers.call()
                return taken
            self._forget_in_flight(item.path)
            self._queued.add(item.path)
            lane = self._lanes[self._lane_of(item)]
            if first:
                lane.appendleft(item)
            else:
                lane.append(item)
            self._idle_workers.call()
            return True

    def wake(self, count: int) -> None:
        """So many parts have become available."""
        with self._lock:
            self._idle_workers.call(count)

    def wake_all(self) -> None:
        """The circuit breaker has changed: all workers look again."""
        with self._lock:
            self._idle_workers.call_all()

    def take(self, close_idle: Callable[[], None] | None = None) -> Item | PartItem | None:
        """The next item, waiting for one; None when the inbox is closed.

        `close_idle` is called, without any lock, when that takes IDLE_S, or at once while the circuit breaker is open.
        """
        while True:
            with self._lock:
                if self._closed:
                    return None
                item = self._next()
                if item is not None:
                    return item
                look_again_s = self._look_again_s()
                paused = self._breaker.open
                idle = close_idle is not None and (paused or look_again_s is None)
                if not (idle and paused):
                    called = self._idle_workers.wait(IDLE_S if idle else look_again_s, last=look_again_s is not None)
                    idle = idle and not called
                if look_again_s is not None:
                    self._lookout_until = 0.0  # called away, perhaps: the next worker looks
            if close_idle is not None and idle:
                close_idle()
                close_idle = None

    def take_nowait(self) -> Item | PartItem | None:
        with self._lock:
            return None if self._closed else self._next()

    def admit_slow(self, path: str) -> bool:
        """Whether the worker that has taken this file of a slow directory may open it; if not, put it back."""
        with self._lock:
            if path not in self._slow_in_flight and len(self._slow_in_flight) >= self._max_slow:
                return False
            self._slow_in_flight.add(path)
            return True

    def admit_body(self, path: str) -> bool:
        """Whether the worker that has taken this file may send a body that blocks it; if not, put it aside."""
        with self._lock:
            if path not in self._bodies_in_flight and not self._body_room():
                return False
            self._bodies_in_flight.add(path)
            return True

    def release_body(self, path: str) -> None:
        """The file goes in parts: those count instead."""
        with self._lock:
            self._bodies_in_flight.discard(path)

    def claim(self, path: str) -> bool:
        """Put a path in flight without queueing it; False if it is queued or in flight already, or too much is."""
        with self._lock:
            if path in self._queued or path in self._in_flight or len(self._in_flight) >= self._max_in_flight:
                return False
            self._in_flight[path] = False
            return True

    def done(self, path: str) -> bool:
        """The path is no longer in flight; True if it was offered again meanwhile."""
        with self._lock:
            again = self._forget_in_flight(path)
            if self._idle_workers and self._queued:
                self._idle_workers.call()
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

    def close(self) -> None:
        """Nothing more comes in or goes out; whoever waits is woken."""
        with self._lock:
            self._closed = True
            self._idle_workers.call_all()
            self._drained.notify_all()

    # The callers of these hold the lock.

    def _look_again_s(self) -> float | None:
        """Seconds after which a worker that found nothing looks again; None: when it is woken.

        For a free lane of the parts, or for the next probe; one worker looks for all.
        """
        now = time.monotonic()
        if self._breaker.open:
            wait_s = self._breaker.next_probe_s if self._queued or self.parts.waiting() else None
            # A probe may go, and nothing can: all that there is would exceed its share.
            wait_s = NOTHING_S if wait_s == 0 else wait_s
        else:
            wait_s = self.parts.next_in_s()
            wait_s = NOTHING_S if wait_s == 0 and not self._body_room() else wait_s
        if wait_s is None or now < self._lookout_until <= now + wait_s:
            return None
        self._lookout_until = now + wait_s
        return wait_s

    def _add(self, item: Item) -> None:
        path = item.path
        if path in self._in_flight:
            self._in_flight[path] = True
        elif path not in self._queued:
            self._queued.add(path)
            self._lanes[self._lane_of(item)].append(item)
            if self._breaker.open and item.lane is Lane.ARRIVED and len(self._untried_probes) < PROBES:
                self._breaker.expect_arrival()
            if self._idle_workers:
                self._idle_workers.call()

    def _full(self, kind: Lane, *, leave: int = 0) -> bool:
        """Whether this lane has no more room than `leave`."""
        aside = sum(len(self._lanes[each]) for each in ASIDE) - ASIDE_SHARE * self._size
        if kind in ASIDE:
            return aside + leave >= 0
        # Files that were put aside take the room of others only where there are very many.
        aside = max(0, aside)
        return len(self._lanes[kind]) + aside + leave >= self._size

    def _lane_of(self, item: Item) -> Lane:
        if item.large or item.body:
            return Lane.LARGE if item.large else Lane.BODY
        return Lane.SLOW if self._slow.holds(item.path) else Lane.RETRY if item.tried else item.lane

    def _slow_full(self, item: Item) -> bool:
        # Those that are tried again get more room: no scan finds one that is left out.
        return len(self._lanes[Lane.SLOW]) >= self._size * (RETRY_ROOM if item.tried else 1)

    def _forget_in_flight(self, path: str) -> bool:
        self._slow_in_flight.discard(path)
        self._bodies_in_flight.discard(path)
        self._tried_in_flight.discard(path)
        self._untried_probes.discard(path)
        return self._in_flight.pop(path, False)

    def _body_room(self) -> bool:
        return len(self._bodies_in_flight) + self.parts.in_flight < self._max_bodies

    def _next(self) -> Item | PartItem | None:
        if self._breaker.open:
            return self._next_probe()
        self._takes += 1
        if self._takes % PART_TURN == 0:
            return self._next_part() or self._next_file()
        return self._next_file() or self._next_part()

    def _next_part(self) -> PartItem | None:
        part = self.parts.take() if self._body_room() else None
        if part is not None and self._idle_workers and self.parts.next_in_s() == 0:
            self._idle_workers.call()  # there is another one: the lanes may have been opened just now
        return part

    def _next_file(self) -> Item | None:
        if not self._queued or len(self._in_flight) >= self._max_in_flight:
            return None
        if self._lanes[Lane.SLOW] and len(self._slow_in_flight) < self._max_slow:
            return self._taken(Lane.SLOW, 0)
        for kind in (next(self._turns), *UNTRIED, Lane.BODY, Lane.RETRY):
            if (place := self._allowed(kind)) is not None:
                return self._taken(kind, place)
        place = None if self.parts.waiting() else self._allowed(Lane.LARGE)
        if place is None:
            return None
        if len(self._lanes[Lane.LARGE]) > 1 and self._standby:
            self._standby.call()  # for the next one: time alone has made room, perhaps, of which nobody is told
        return self._taken(Lane.LARGE, place)

    def _allowed(self, kind: Lane) -> int | None:
        """The place of the first file in this lane whose share of the workers has room; None where there is none."""
        lane = self._lanes[kind]
        if not lane or (kind is Lane.BODY and not self._body_room()):
            return None
        room = len(self._tried_in_flight) < self._max_tried
        if kind in UNTRIED or (kind is Lane.RETRY and room):
            return 0
        if kind is Lane.RETRY:
            return None
        slow_room = len(self._slow_in_flight) < self._max_slow
        return next(
            (
                place
                for place, item in enumerate(lane)
                if (room or not item.tried) and (slow_room or not self._slow.holds(item.path))
            ),
            None,
        )

    def _next_probe(self) -> Item | PartItem | None:
        """Rule 4 of the circuit breaker: an untried file, the newest or a random one, else a random other one."""
        if not (self._queued or self.parts.waiting()):
            return None
        untried = [kind for kind in UNTRIED if self._lanes[kind]]
        probe = self._breaker.take_probe(untried=bool(untried))
        if probe is None:
            return None
        if not untried:
            return self._next_tried_probe()
        item = self._taken(untried[0], -1) if probe is Probe.NEWEST else self._taken_at_random(untried)
        self._untried_probes.add(item.path)
        return item

    def _next_tried_probe(self) -> Item | PartItem | None:
        # Slow ones only where there is no other: a probe that hangs tells nothing.
        kinds = [kind for kind in (Lane.RETRY, *ASIDE) if self._lanes[kind]]
        if not kinds and len(self._slow_in_flight) < self._max_slow and self._lanes[Lane.SLOW]:
            kinds = [Lane.SLOW]
        files, parts = sum(len(self._lanes[kind]) for kind in kinds), self.parts.waiting()
        if not files or self._rng.randrange(files + parts) >= files:
            part = self.parts.take()
            if part is not None or not files:
                return part
        return self._taken_at_random(kinds)

    def _taken_at_random(self, kinds: Sequence[Lane]) -> Item:
        place = self._rng.randrange(sum(len(self._lanes[kind]) for kind in kinds))
        for kind in kinds:
            if place < len(self._lanes[kind]):
                break
            place -= len(self._lanes[kind])
        return self._taken(kind, place)

    def _taken(self, kind: Lane, place: int) -> Item:
        lane = self._lanes[kind]
        item = lane[place]
        del lane[place]
        self._queued.discard(item.path)
        self._in_flight[item.path] = False
        if kind is Lane.SLOW:
            self._slow_in_flight.add(item.path)
        if item.tried:
            self._tried_in_flight.add(item.path)
        if (kind in ASIDE or self._waiting_offers[kind]) and not self._full(kind, leave=self._size // ROOM):
            self._drained.notify_all()
        return item
