"""The queues of the inbox: one bounded queue of names for each kind of file."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from s3spool.folder.slow_directories import SlowDirectories
from s3spool.queue.item import Item, Lane

UNTRIED = (Lane.ARRIVED, Lane.FOUND)
DEFERRED = (Lane.BODY, Lane.LARGE)
DEFERRED_FACTOR = 4  # the deferred lanes together may hold 4 x `size`; more takes room of the other lanes
SLOW_RETRY_FACTOR = 4  # no scan finds a retry of a slow directory that is left out: it gets 4 x the room


class InboxQueues(dict[Lane, deque[Item]]):
    """One queue for each lane, of up to `size` items. Not thread-safe: the inbox's lock guards it."""

    def __init__(self, size: int, slow: SlowDirectories) -> None:
        self._size = size
        self._slow = slow
        self._sorted_at = 0  # `SlowDirectories.refreshes` when SLOW was looked through last
        super().__init__((lane, deque()) for lane in Lane)
        self._body, self._large = (self[lane] for lane in DEFERRED)

    def heads(self) -> list[Item]:
        """The first item of each queue."""
        return [queue[0] for queue in self.values() if queue]

    def count(self, lanes: Iterable[Lane]) -> int:
        return sum(len(self[lane]) for lane in lanes)

    def lane_of(self, item: Item) -> Lane:
        if item.large or item.body:
            return Lane.LARGE if item.large else Lane.BODY
        return Lane.SLOW if self._slow.holds(item.path) else Lane.RETRY if item.tried else item.lane

    def sort_slow(self) -> int:
        """Move what is no longer in a slow directory to its other lane, if there is room; returns how many."""
        if not self[Lane.SLOW] or self._sorted_at == self._slow.refreshes:
            return 0
        self._sorted_at = self._slow.refreshes
        waiting, self[Lane.SLOW] = self[Lane.SLOW], deque()
        for item in waiting:
            lane = self.lane_of(item)
            self[Lane.SLOW if self.full(lane) else lane].append(item)
        return len(waiting) - len(self[Lane.SLOW])

    def wants_files(self) -> bool:
        """See Inbox; as long as slow files fill half of their lane, which may hang, more of them are not asked for."""
        return not self.count(UNTRIED) and 2 * len(self[Lane.SLOW]) < self._size

    def full_for(self, item: Item, lane: Lane) -> bool:
        """Whether a new item, whose lane this is, has no room."""
        if lane is Lane.SLOW:
            return len(self[lane]) >= self._size * (SLOW_RETRY_FACTOR if item.tried else 1)
        return self.full(lane)

    def full(self, lane: Lane, *, leave: int = 0) -> bool:
        """Whether a lane for new files has no more room than `leave`."""
        deferred = len(self._body) + len(self._large) - DEFERRED_FACTOR * self._size
        return len(self[lane]) + max(0, deferred) + leave >= self._size
