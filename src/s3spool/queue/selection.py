"""Which item a worker takes next: the lanes in turn, within each kind's share of the workers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from s3spool.failure.breaker import PROBES, CircuitBreaker, Probe
from s3spool.folder.slow_directories import SlowDirectories, max_slow_files
from s3spool.queue.inbox_queues import DEFERRED, UNTRIED, InboxQueues
from s3spool.queue.item import Item, Lane
from s3spool.queue.parts import OPEN_TRANSFERS, PartItem, PartQueue

LANE_ROTATION = (Lane.ARRIVED, Lane.FOUND, Lane.BODY, Lane.ARRIVED, Lane.RETRY)  # no lane starves another one
BODY_SHARE = 0.9  # of the workers may block in bodies above 128 KiB and parts; the rest is for small files
RETRY_DIVISOR = 4  # files that have failed before hold a quarter of the workers at most
RECHECK_S = 1.0  # how often to look again while a probe or a part may go, but every share is used up
PARTS_FIRST_EVERY = 8  # every eighth take prefers a part of a large file; all others prefer a file


class Share(set[str]):
    """The paths of one kind that workers hold, and how many there may be."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def has_room(self, others: int = 0) -> bool:
        return len(self) + others < self.limit

    def admit(self, path: str, others: int = 0) -> bool:
        """Add the path if there is room, or if it is in already."""
        if path not in self and not self.has_room(others):
            return False
        self.add(path)
        return True


class Selection:
    """The lanes, the parts and the shares of the workers. Not thread-safe: the inbox's lock guards it."""

    def __init__(
        self,
        size: int,
        workers: int,
        breaker: CircuitBreaker,
        slow: SlowDirectories,
        sent_bytes: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self.queues = InboxQueues(size, slow)
        self._breaker = breaker
        self._slow = slow
        self._rng = rng
        self._tried_files = Share(max(1, workers // RETRY_DIVISOR))
        self._slow_files = Share(max_slow_files(workers))
        self._bodies = Share(max(1, int(workers * BODY_SHARE)))
        self._untried_probes: set[str] = set()  # in flight
        self.parts = PartQueue(
            sent_bytes, self._tried_files.limit, slow, self._slow_files.limit, limit=max(workers, OPEN_TRANSFERS)
        )
        self._rotation = itertools.cycle(LANE_ROTATION)
        self._takes = 0

    def take(self, *, files: bool) -> Item | PartItem | None:
        """`files`: whether a file may be taken; parts always may."""
        self._takes += 1
        if self._takes % PARTS_FIRST_EVERY == 0:
            return self._take_part() or (self._take_file() if files else None)
        return (self._take_file() if files else None) or self._take_part()

    def take_probe(self, *, queued: bool) -> Item | PartItem | None:
        """Rule 4 of the circuit breaker: the newest untried file, a random untried one, or else any other one."""
        if not (queued or self.parts.waiting()):
            return None
        untried = [lane for lane in UNTRIED if self.queues[lane]]
        probe = self._breaker.take_probe(untried=bool(untried))
        if probe is None:
            return None
        if not untried:
            return self._take_tried_probe()
        item = self._remove(untried[0], -1) if probe is Probe.NEWEST else self._take_at_random(untried)
        self._untried_probes.add(item.path)
        return item

    def recheck_s(self, *, queued: bool, held: bool) -> float | None:
        """Seconds until a probe or a part may go that may not go now; None: none will, whatever the time."""
        if self._breaker.open:
            probes = not held and (queued or self.parts.waiting())
            wait_s = self._breaker.next_probe_s if probes else None
            usable = False  # a probe may go, and none was found: each would exceed its share
        else:
            wait_s = self.parts.next_in_s()
            usable = self.body_room()
            if wait_s is None and not held and (queued or self.parts.pending()):
                return RECHECK_S  # a slow directory may be fast again
        return RECHECK_S if wait_s == 0 and not usable else wait_s

    def wants_untried_probe(self) -> bool:
        return len(self._untried_probes) < PROBES

    def body_room(self) -> bool:
        return self._bodies.has_room(self.parts.in_flight)

    def admit_slow(self, path: str) -> bool:
        return self._slow_files.admit(path)

    def admit_body(self, path: str) -> bool:
        return self._bodies.admit(path, self.parts.in_flight)

    def release_body(self, path: str) -> None:
        """The parts of the file have shares of their own."""
        self._bodies.discard(path)
        self._slow_files.discard(path)
        self._tried_files.discard(path)

    def release(self, path: str) -> None:
        """No worker holds this path any more."""
        self._slow_files.discard(path)
        self._bodies.discard(path)
        self._tried_files.discard(path)
        self._untried_probes.discard(path)

    def _take_part(self) -> PartItem | None:
        return self.parts.take() if self.body_room() else None

    def _take_file(self) -> Item | None:
        if self.queues[Lane.SLOW] and self._slow_files.has_room():
            return self._remove(Lane.SLOW, 0)
        for lane in (next(self._rotation), *UNTRIED, Lane.BODY, Lane.RETRY):
            items = self.queues[lane]
            if items and lane in UNTRIED:
                return items.popleft()
            if items and (index := self._first_allowed(lane)) is not None:
                return self._remove(lane, index)
        index = None if self.parts.waiting() else self._first_allowed(Lane.LARGE)
        return None if index is None else self._remove(Lane.LARGE, index)

    def _first_allowed(self, lane: Lane) -> int | None:
        """The index of the first file of BODY, RETRY or LARGE whose share of the workers has room; None: no file."""
        items = self.queues[lane]
        if not items or (lane is Lane.BODY and not self.body_room()):
            return None
        tried_room = self._tried_files.has_room()
        if lane is Lane.RETRY:
            return 0 if tried_room else None
        slow_room = self._slow_files.has_room()
        for index, item in enumerate(items):
            if (tried_room or not item.tried) and (slow_room or not self._slow.holds(item.path)):
                return index
        return None

    def _take_tried_probe(self) -> Item | PartItem | None:
        # A slow file only where there is no other one: a probe that hangs proves nothing.
        lanes = [lane for lane in (Lane.RETRY, *DEFERRED) if self.queues[lane]]
        if Lane.BODY in lanes and not self.body_room():
            lanes.remove(Lane.BODY)
        if not lanes and self._slow_files.has_room() and self.queues[Lane.SLOW]:
            lanes = [Lane.SLOW]
        files, parts = self.queues.count(lanes), self.parts.waiting()
        if not files or self._rng.randrange(files + parts) >= files:
            part = self._take_part()
            if part is not None or not files:
                return part
        return self._take_at_random(lanes)

    def _take_at_random(self, lanes: list[Lane]) -> Item:
        index = self._rng.randrange(self.queues.count(lanes))
        for lane in lanes:
            if index < len(self.queues[lane]):
                break
            index -= len(self.queues[lane])
        return self._remove(lane, index)

    def _remove(self, lane: Lane, index: int) -> Item:
        items = self.queues[lane]
        item = items[index]
        del items[index]
        if lane is Lane.SLOW:
            self._slow_files.add(item.path)
        if item.tried:
            self._tried_files.add(item.path)
        return item
