"""The bandwidth limit: one token bucket for all workers, small files and parts alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.2  # what an idle line may save up: 2 % of ten seconds
_PIECES_PER_S = 20
_LOOK_S = 10.0  # who waits longer shows that it lives, or would pass for hanging
_SMALLEST_PIECE, _LARGEST_PIECE = 4 * 1024, 512 * 1024  # libcurl asks for no more at a time


def piece_bytes(rate_bytes_per_s: float) -> int:
    """How much goes out at once: little enough to be smooth, enough to cost nothing."""
    return round(min(max(rate_bytes_per_s / _PIECES_PER_S, _SMALLEST_PIECE), _LARGEST_PIECE))


class Tokens:
    """The arithmetic; `now` is monotonic seconds. Not thread-safe.

    Bytes are numbered in the order in which they were asked for, and released by number at the rate: first come,
    first served, and another rate holds at once for those who wait already.
    """

    def __init__(self, rate_bytes_per_s: float, now: float) -> None:
        self._rate = rate_bytes_per_s
        self._since = now
        self._reserved = 0
        self._released = 0.0
        self.piece = piece_bytes(rate_bytes_per_s)

    def reserve(self, wanted: int, now: float) -> int:
        """Stand in line for so many bytes; the number of the last of them."""
        self._release(now)
        self._reserved += wanted
        return self._reserved

    def due_in_s(self, ticket: int, now: float) -> float:
        """How long until the byte with this number may go; 0 when it may."""
        self._release(now)
        return max(0.0, (ticket - self._released) / self._rate)

    def set_rate(self, rate_bytes_per_s: float, now: float) -> None:
        self._release(now)
        self._rate = rate_bytes_per_s
        self.piece = piece_bytes(rate_bytes_per_s)

    def _release(self, now: float) -> None:
        released = self._released + self._rate * max(0.0, now - self._since)
        self._released = min(released, self._reserved + self._rate * BURST_S)
        self._since = now


class BandwidthLimiter:
    """Called before bytes are sent: waits for its turn and says how many of them may go now. Thread-safe.

    It counts bodies, not headers or TLS; a body that libcurl has to send again is counted again.
    """

    def __init__(self, rate_bytes_per_s: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """None and 0 mean: no limit."""
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False
        self.granted = 0  # bytes, limited or not; a figure to steer by, threads may lose a few of each other's
        # None where nothing is limited: then a call takes no lock.
        self._tokens = Tokens(rate_bytes_per_s, clock()) if rate_bytes_per_s else None

    def __call__(self, wanted: int) -> int:
        """1 to `wanted`, sooner or later; `wanted` itself where nothing is limited."""
        if self._tokens is None:
            self.granted += wanted
            return wanted
        with self._changed:
            tokens = self._tokens
            if tokens is None or wanted <= 0:
                self.granted += wanted
                return wanted
            granted = min(wanted, tokens.piece)
            ticket = tokens.reserve(granted, self._clock())
            while self._tokens is tokens:
                wait_s = tokens.due_in_s(ticket, self._clock())
                if wait_s <= 0:
                    break
                self._changed.wait(min(wait_s, _LOOK_S))
            self.granted += granted
            return granted

    @property
    def limited(self) -> bool:
        return self._tokens is not None

    def set_rate(self, rate_bytes_per_s: float | None) -> None:
        """From now on, also for those who wait."""
        with self._changed:
            if self._closed:
                return
            if not rate_bytes_per_s:
                self._tokens = None
            elif self._tokens is None:
                self._tokens = Tokens(rate_bytes_per_s, self._clock())
            else:
                self._tokens.set_rate(rate_bytes_per_s, self._clock())
            self._changed.notify_all()

    def close(self) -> None:
        """Let all who wait go on, and limit nobody any more: what is left ends by its own means."""
        with self._changed:
            self._closed = True
            self._tokens = None
            self._changed.notify_all()
