"""How many parts of large files go out at once: as many as help.

Where single connections are fast (a store near by, loopback), a hundred at once only push each other's data out of the
CPU's caches: four carry a third more, for half the CPU. Where they are slow (S3 gives a connection some 90 MB/s, a long
line less), every worker helps. So a burst begins narrow, and the first signs of slow connections open it: a little
where they are neither, to all workers where they are slow.
"""

from __future__ import annotations

from collections.abc import Hashable

NARROW, MIDDLE = 4, 8
FAST_BYTES_S = 192 * 2**20  # what a connection carries where four are enough
SLOW_BYTES_S = 128 * 2**20  # what it carries where all workers help
HANGING_BYTES_S = SLOW_BYTES_S / 4  # a part under way that is slower than this need not end to be called slow
WEIGHT = 0.25  # of the newest part in the moving average
ALL = 1_000_000  # more than there are workers


class Lanes:
    """The parts under way. Times are monotonic seconds. Not thread-safe: the part queue's lock guards it."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, tuple[float, int]] = {}  # part -> (since when, its bytes), oldest first
        self._s_per_byte = 0.0
        self._width = NARROW

    def open_in_s(self, now: float) -> float:
        """How long the next part has to wait at most; 0: it may go."""
        if len(self._under_way) < self._width:
            return 0.0
        since, size = next(iter(self._under_way.values()))
        left_s = since + size / HANGING_BYTES_S - now
        if left_s <= 0:
            self._width = ALL
        return max(0.0, left_s)

    def enter(self, part: Hashable, size: int, now: float) -> None:
        self._under_way[part] = (now, size)

    def confirmed(self, part: Hashable, now: float) -> None:
        """S3 has it: how fast was its connection?"""
        since, size = self._under_way[part]
        self._s_per_byte += WEIGHT * ((now - since) / size - self._s_per_byte)
        if self._s_per_byte * SLOW_BYTES_S > 1:
            self._width = ALL
        elif self._s_per_byte * FAST_BYTES_S > 1:
            self._width = max(self._width, MIDDLE)

    def leave(self, part: Hashable) -> None:
        """The worker is through with it, whatever came of it. The end of a burst forgets what it has learned."""
        self._under_way.pop(part, None)
        if not self._under_way:
            self._s_per_byte = 0.0
            self._width = NARROW
