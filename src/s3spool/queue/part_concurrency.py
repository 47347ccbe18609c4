"""How many parts of large files go out at once: as many as help.

More connections carry more as long as each is held back by something of its own: S3 gives one some 90 MB/s, a long line
less. Beyond that they only share what there is. A thin line then carries a hundred parts for minutes each: small files
wait for a worker meanwhile, and a crash costs a hundred parts. A fast store near by pushes their data out of the CPU's
caches. So a burst begins narrow; twice as many are tried, and stay, up to all workers, if they carry clearly more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

NARROW = 4
FAST_BYTES_S = 192 * 2**20  # connections that carry so much each are few enough
GAIN = 1.3  # twice as many have to carry so many times as much
WINDOW_S = 0.25  # the least time to measure
WINDOW_BYTES = 2 * 2**20  # and the least each connection has sent by then: buffers on the way are filled at once
SILENT_S = 3.0  # parts that carry nothing for so long wait for a server that does not answer: other files pass them
SILENT_BYTES = 64 * 2**10  # nothing: less than this for each lane
REST_S = 30.0  # before more are tried again where they were of no use


class PartConcurrency:
    """The parts under way. Times are monotonic seconds. Not thread-safe: the part queue's lock guards it."""

    def __init__(self, sent_bytes: Callable[[], int]) -> None:
        """`sent_bytes`: how much has been sent in all, up to now."""
        self._sent_bytes = sent_bytes
        self._under_way: set[Hashable] = set()
        self._begin_burst()

    def open_in_s(self, now: float) -> float:
        """After how long to ask again; 0: the next part may go."""
        if len(self._under_way) >= self._width:
            if now >= self._resting_until:
                self._measure(now)
            if len(self._under_way) >= self._width:
                return WINDOW_S
        return 0.0

    def silent(self, now: float) -> bool:
        """Whether the parts under way carry nothing: they wait for a server that does not answer."""
        elapsed_s, sent = now - self._since, self._sent_bytes() - self._sent
        return bool(self._under_way) and elapsed_s >= SILENT_S and sent < self._width * SILENT_BYTES

    def enter(self, part: Hashable, now: float) -> None:
        if not self._under_way:
            self._begin_window(now)
        self._under_way.add(part)

    def leave(self, part: Hashable) -> None:
        """The worker is through with it, whatever came of it. The end of a burst forgets what it has learned."""
        self._under_way.discard(part)
        if not self._under_way:
            self._begin_burst()

    def _begin_burst(self) -> None:
        self._width = NARROW
        self._half_rate = 0.0  # bytes a second with half as many; 0: not known
        self._resting_until = 0.0
        self._since, self._sent = 0.0, 0

    def _begin_window(self, now: float) -> None:
        self._since, self._sent = now, self._sent_bytes()

    def _measure(self, now: float) -> None:
        elapsed_s, sent = now - self._since, self._sent_bytes() - self._sent
        if elapsed_s < WINDOW_S or sent < self._width * WINDOW_BYTES:
            return
        rate = sent / elapsed_s
        if rate <= self._half_rate * GAIN:
            self._width = max(NARROW, self._width // 2)
            self._half_rate = 0.0
            self._resting_until = now + REST_S
        elif rate < self._width * FAST_BYTES_S:
            self._half_rate = rate
            self._width *= 2
        self._begin_window(now)
