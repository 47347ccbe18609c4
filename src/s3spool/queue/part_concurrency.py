"""How many parts of large files are sent at once: more only while more connections increase the throughput.

S3 limits one connection to about 90 MB/s, so more of them help. On a slow line they only share the bandwidth: a
hundred parts take minutes each, small files wait for a worker, and a crash loses a hundred parts. So a burst begins
with NARROW parts; twice as many are tried, and kept if the throughput grows by GAIN.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

NARROW = 4
FAST_BYTES_S = 192 * 2**20  # at this rate per connection, more connections are not tried
GAIN = 1.3  # twice as many have to carry 1.3 times as much
WINDOW_S = 0.25  # the least time to measure
WINDOW_BYTES = 2 * 2**20  # the least per connection: less only fills buffers
STALL_S = 3.0  # parts that send nothing for this time wait for a silent server: other files may pass them
STALL_BYTES = 64 * 2**10  # "nothing" is less than this per part
REST_S = 30.0  # before more are tried again after they did not help


class PartConcurrency:
    """The parts under way. Times are monotonic seconds. Not thread-safe: the part queue's lock guards it."""

    def __init__(self, sent_bytes: Callable[[], int]) -> None:
        """`sent_bytes` returns how much has been sent so far."""
        self._sent_bytes = sent_bytes
        self._under_way: set[Hashable] = set()
        self._begin_burst()

    def next_slot_in_s(self, now: float) -> float:
        """Seconds until to ask again; 0: the next part may be sent."""
        if len(self._under_way) >= self._width:
            if now >= self._resting_until:
                self._measure(now)
            if len(self._under_way) >= self._width:
                return WINDOW_S
        return 0.0

    def stalled(self, now: float) -> bool:
        """Whether the parts under way send nothing, because the server does not answer."""
        elapsed_s, sent = now - self._since, self._sent_bytes() - self._sent
        return bool(self._under_way) and elapsed_s >= STALL_S and sent < self._width * STALL_BYTES

    def enter(self, part: Hashable, now: float) -> None:
        if not self._under_way:
            self._begin_window(now)
        self._under_way.add(part)

    def leave(self, part: Hashable) -> None:
        """The part has ended, sent or not. The last part ends the burst, and resets the width."""
        self._under_way.discard(part)
        if not self._under_way:
            self._begin_burst()

    def _begin_burst(self) -> None:
        self._width = NARROW
        self._half_rate = 0.0  # bytes per second at half the width; 0: unknown
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
