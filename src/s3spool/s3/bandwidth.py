"""The bandwidth limit: one token bucket for all workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_S = 0.2  # an idle limiter saves up to this: 2 % of ten seconds
_PIECES_PER_S = 20
_WAKE_S = 10.0  # a waiting worker wakes up this often, so that HangDetector sees it use CPU
_SMALLEST_PIECE, _LARGEST_PIECE = 4 * 1024, 512 * 1024  # libcurl reads no more at a time


def piece_bytes(rate_bytes_per_s: float) -> int:
    """Return the bytes granted at once: a twentieth of a second, within limits."""
    return round(min(max(rate_bytes_per_s / _PIECES_PER_S, _SMALLEST_PIECE), _LARGEST_PIECE))


class Tokens:
    """The token bucket; `now` is monotonic seconds. Not thread-safe.

    Bytes are numbered in the order of `reserve`, and released by number at the rate: first come, first served. A new
    rate applies to waiting workers at once.
    """

    def __init__(self, rate_bytes_per_s: float, now: float) -> None:
        self._rate = rate_bytes_per_s
        self._since = now
        self._reserved = 0
        self._released = 0.0
        self.piece = piece_bytes(rate_bytes_per_s)

    def reserve(self, wanted: int, now: float) -> int:
        """Queue for `wanted` bytes; return the number of the last of them."""
        self._release(now)
        self._reserved += wanted
        return self._reserved

    def due_in_s(self, ticket: int, now: float) -> float:
        """Return the seconds until the byte with this number may be sent; 0 if it may."""
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
    """Called before bytes are sent: blocks, and returns how many may be sent now. Thread-safe.

    It counts bodies, not headers or TLS; a body that libcurl sends again counts again.
    """

    def __init__(self, rate_bytes_per_s: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a limit if the rate is None or 0."""
        self._clock = clock
        self._changed = threading.Condition()
        self._closed = False
        self.granted = 0  # bytes, limited or not; approximate, because threads add without a lock
        # None without a limit: then a call takes no lock.
        self._tokens = Tokens(rate_bytes_per_s, clock()) if rate_bytes_per_s else None

    def __call__(self, wanted: int) -> int:
        """Return 1 to `wanted`; `wanted` itself without a limit."""
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
                self._changed.wait(min(wait_s, _WAKE_S))
            self.granted += granted
            return granted

    @property
    def limited(self) -> bool:
        return self._tokens is not None

    def set_rate(self, rate_bytes_per_s: float | None) -> None:
        """Change the rate, also for waiting workers."""
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
        """Release all waiting workers, and end the limit for good."""
        with self._changed:
            self._closed = True
            self._tokens = None
            self._changed.notify_all()
