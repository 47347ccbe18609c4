"""The bounded queue between discovery and the workers; each path is in it once."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator

from s3spool.failure.breaker import CircuitBreaker
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.queue.item import Item, Lane
from s3spool.queue.lifo_condition import LifoCondition
from s3spool.queue.parts import PartItem
from s3spool.queue.selection import Selection

MEANWHILE_S = 5.0  # how often who waits for room does what else it has to do
WAKE_DIVISOR = 8  # wake blocked producers when 1/8 of a lane is free, not for each name
IDLE_S = 5.0  # an idle worker closes its connections then: the server or other workers may need them
MAX_UNCOMMITTED = 4096  # files that are sent, and wait for the ledger and the post-upload action


class Inbox:
    """Paths that wait for a worker, and paths that have one. Thread-safe; only `offer` and `take` block.

    A path is *queued*, then *in flight* from `take` until `done`. A second offer of a queued path changes nothing.
    A second offer of a path in flight is remembered, and `done` returns True: the file may have changed meanwhile.
    Parts of large files come after the files. While the circuit breaker is open, only its probes are taken; during a
    pause by hand, only parts of files in flight.
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
        may_take: Callable[[], bool] = lambda: True,
        rescan: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`size` bounds each lane; `sent_bytes`: by all workers so far; `may_take`: whether uploads may start now."""
        self._may_take, self._rescan = may_take, rescan
        self._breaker = breaker
        self._slow = slow or SlowDirectories()
        # Bounds everything behind the workers: otherwise receipts would pile up behind a stalled disk.
        self._max_in_flight = workers + MAX_UNCOMMITTED
        self._selection = Selection(size, workers, breaker, self._slow, sent_bytes, rng or random.Random())  # noqa: S311 - picks probes, no secrets
        self._queues = self._selection.queues
        self.parts = self._selection.parts
        self._wake_room = size // WAKE_DIVISOR
        self._queued: set[str] = set()
        self._in_flight: dict[str, bool] = {}  # path -> whether it was offered again
        self._lookups: dict[int, tuple[set[str], set[str]]] = {}  # those under way: their paths, and which were taken
        self._lock = threading.Lock()
        self._idle_workers = LifoCondition(self._lock)
        self._drained = threading.Condition(self._lock)
        self._waiting_offers: Counter[Lane] = Counter()
        self._recheck_at = 0.0  # monotonic seconds: when the one worker that waits with a timeout looks again
        self._closed = self._held = False  # held: paused by hand
        breaker.on_change(self.wake)

    def offer(
        self, items: Iterable[Item], meanwhile: Callable[[], None] | None = None, taken: Container[str] = ()
    ) -> bool:
        """Queue these, and block while their lane is full; False when the inbox was closed before all were queued.

        A file of a slow directory does not wait for room: another scan finds it again. `taken`: see `lookup`.
        `meanwhile` is called now and then while it waits, and must be quick.
        """
        with self._lock:
            for item in items:
                lane = self._queues.lane_of(item)
                if lane is Lane.SLOW and self._queues.full_for(item, lane):
                    self._rescan("full")
                    continue
                while self._queues.full_for(item, lane) and not self._closed:
                    self._waiting_offers[lane] += 1
                    self._drained.wait(MEANWHILE_S if meanwhile else None)
                    self._waiting_offers -= Counter([lane])  # removes a lane without waiting offers
                    if meanwhile:
                        meanwhile()
                if self._closed:
                    return False
                if item.path not in taken:
                    self._add(item, lane)
        return True

    def offer_nowait(self, items: Iterable[Item], claim: Callable[[list[str]], None] | None = None) -> int:
        """Queue items until one has no room; returns how many were accepted (or were here already).

        `claim` gets their paths before a worker can take one, and must not block; what is here is left out then.
        """
        accepted: list[str] = []
        with self._lock:
            for item in items:
                if claim and (item.path in self._queued or item.path in self._in_flight):
                    continue
                lane = self._queues.lane_of(item)
                if self._closed or self._queues.full_for(item, lane):
                    break
                self._add(item, lane)
                accepted.append(item.path)
            if claim and accepted:
                claim(accepted)
        return len(accepted)

    def put_back(self, item: Item | PartItem, *, first: bool) -> bool:
        """Queue an unsent item again; never blocks, because its room is still reserved.

        False for a part whose transfer was given up: the worker still holds the part, and has to release it.
        """
        with self._lock:
            self._idle_workers.notify()
            if isinstance(item, PartItem):
                return self.parts.return_unsent(item)
            self._forget_in_flight(item.path)
            self._queued.add(item.path)
            lane = self._queues[self._queues.lane_of(item)]
            (lane.appendleft if first else lane.append)(item)
            return True

    def wake(self, count: int | None = None) -> None:
        """Wake this many workers, for parts, or all of them: the circuit breaker has changed."""
        with self._lock:
            self._idle_workers.notify(len(self._idle_workers.waiting) if count is None else count)

    def hold(self, held: bool) -> None:
        """Take no new file as long as `held`; files in flight, with all their parts, go on."""
        self._held = held
        self.wake()  # idle workers close their connections

    def take(self, close_idle: Callable[[], None] | None = None) -> Item | PartItem | None:
        """Block until there is an item, and take it; None when the inbox is closed.

        `close_idle` is called without any lock: after IDLE_S, or at once while the circuit breaker is open.
        """
        while True:
            with self._lock:
                if self._closed:
                    return None
                item = self._next()
                if item is not None:
                    return item
                recheck_s = self._recheck_s()
                paused = self._breaker.open or self._held
                idle = close_idle is not None and (paused or recheck_s is None)
                if not (idle and paused):
                    called = self._idle_workers.wait(IDLE_S if idle else recheck_s, last=recheck_s is not None)
                    idle = idle and not called
                if recheck_s is not None:
                    self._recheck_at = 0.0  # this worker may have got an item: the next one rechecks
            if close_idle is not None and idle:
                close_idle()
                close_idle = None

    def take_nowait(self) -> Item | PartItem | None:
        with self._lock:
            return None if self._closed else self._next()

    def admit_slow(self, path: str) -> bool:
        """Whether the worker may open this file of a slow directory; if not, it puts the item back."""
        with self._lock:
            return self._selection.admit_slow(path)

    def admit_body(self, path: str) -> bool:
        """Whether the worker may block in the body of this file; if not, it puts the item back as a body."""
        with self._lock:
            return self._selection.admit_body(path)

    def release_body(self, path: str) -> None:
        """The file is sent in parts: its parts count instead."""
        with self._lock:
            self._selection.release_body(path)

    def claim(self, path: str) -> bool:
        """Put a path in flight without queueing it; False if it is here already, or half of the room is used up."""
        with self._lock:
            room = 2 * len(self._in_flight) < self._max_in_flight
            if free := room and path not in self._queued and path not in self._in_flight:
                self._in_flight[path] = False
            return free

    def done(self, path: str) -> bool:
        """The path is no longer in flight; True if it was offered again meanwhile."""
        with self._lock:
            offered_again = self._forget_in_flight(path)
            if self._queued and self._idle_workers.waiting:
                self._idle_workers.notify()
            return offered_again

    @contextlib.contextmanager
    def lookup(self, paths: Iterable[str]) -> Iterator[tuple[set[str], Container[str]]]:
        """While the caller looks paths up in the ledger: those that are here, and those that workers take meanwhile.

        It must offer neither again. The end of the first may not be durable yet; one in flight counts as offered again.
        The others are read after `lookup` began: a later change has its own hint.
        """
        wanted, taken = set(paths), set[str]()
        with self._lock:
            here = {path for path in wanted if path in self._queued or path in self._in_flight}
            self._in_flight.update(dict.fromkeys(here & self._in_flight.keys(), True))
            self._lookups[id(taken)] = wanted, taken
        try:
            yield here, taken
        finally:
            with self._lock:
                del self._lookups[id(taken)]

    def counts(self) -> tuple[int, int]:
        """(queued, in flight)."""
        with self._lock:
            return len(self._queued), len(self._in_flight)

    def untried(self) -> int:
        """How many files only wait for a free worker; slow, large and failed ones may wait for their share."""
        return self._queues.count([Lane.ARRIVED, Lane.FOUND])

    def wants_files(self) -> bool:
        """Whether workers may lack new files while others wait for room."""
        return self._queues.wants_files()

    def listing(self, limit: int) -> tuple[list[str], list[str]]:
        """Up to `limit` (queued, in flight) paths."""
        with self._lock:
            return [*itertools.islice(self._queued, limit)], [*itertools.islice(self._in_flight, limit)]

    def oldest(self) -> list[str]:
        """The path that has been in flight longest, and the one that has waited longest in each lane."""
        with self._lock:
            return [*itertools.islice(self._in_flight, 1), *(item.path for item in self._queues.heads())]

    def state_of(self, path: str) -> str | None:
        with self._lock:
            return "queued" if path in self._queued else "uploading" if path in self._in_flight else None

    def close(self) -> None:
        """Nothing more comes in or goes out; wake all blocked threads."""
        with self._lock:
            self._closed = True
            self._idle_workers.notify_all()
            self._drained.notify_all()

    # The callers of these hold the lock.

    def _recheck_s(self) -> float | None:
        """Seconds until this worker looks again, one for all; None: it waits until it is called."""
        now = time.monotonic()
        wait_s = self._selection.recheck_s(queued=bool(self._queued), held=self._held)
        if wait_s is None or not self._may_take() or now < self._recheck_at <= now + wait_s:
            return None
        self._recheck_at = now + wait_s
        return wait_s

    def _add(self, item: Item, lane: Lane) -> None:
        path = item.path
        if path in self._in_flight:
            self._in_flight[path] = True
        elif path not in self._queued:
            self._queued.add(path)
            self._queues[lane].append(item)
            if self._breaker.open and item.lane is Lane.ARRIVED and self._selection.wants_untried_probe():
                self._breaker.expect_arrival()
            if self._idle_workers.waiting:
                self._idle_workers.notify()

    def _forget_in_flight(self, path: str) -> bool:
        self._selection.release(path)
        return self._in_flight.pop(path, False)

    def _next(self) -> Item | PartItem | None:
        if not self._may_take():
            return None
        if freed := self._queues.sort_slow():
            self._idle_workers.notify(freed)
        queued, paused = bool(self._queued), self._breaker.open
        if paused:
            item = None if self._held else self._selection.take_probe(queued=queued)
        else:
            room = not self._held and len(self._in_flight) < self._max_in_flight
            item = self._selection.take(files=queued and room)
        if isinstance(item, Item):
            self._queued.discard(item.path)
            self._in_flight[item.path] = False
            for wanted, taken in self._lookups.values():
                taken.update(wanted & {item.path})
            for lane in self._waiting_offers:
                if not self._queues.full(lane, leave=self._wake_room):
                    self._drained.notify_all()
            # Paused: the other one waits for the next round, because this probe may hang. Large: there may be room now.
            if (paused or (item.large and self._queues[Lane.LARGE])) and self._idle_workers.waiting:
                self._idle_workers.notify()
        elif item is not None and self._idle_workers.waiting and (paused or self.parts.next_in_s() == 0):
            self._idle_workers.notify()  # the same; or one more part may go: the concurrency may have grown just now
        return item
