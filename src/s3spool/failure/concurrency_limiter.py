"""How many workers may send at once, where server or system take no more: fewer at once instead of none at all."""

from __future__ import annotations

import random
import threading
import time

import structlog

from s3spool.errors import UploadError

EVENT_S = 1.0  # refusals this close together are one event: the limit is halved once
REST_S = 1.0  # the longest rest where the server names none
LOST_S = 0.1  # the same for lost connections, which come back at once
STREAK = 8  # so many refusals in a row without a success: halving alone does not help, rest as well
FORGOTTEN_S = 60.0  # so long after the last refusal it is over
log = structlog.get_logger()


class ConcurrencyLimiter:
    """Additive increase, multiplicative decrease (AIMD), as in TCP: worker n may send while n < `limit`.

    A refusal halves the limit, a round of successes raises it by one. `limit` is a plain attribute: as long as nothing
    was refused, comparing with it is all the cost. It is 0 during a rest. Thread-safe.
    """

    def __init__(self, name: str, *, max_s: float, rng: random.Random | None = None) -> None:
        """`name` is the destination's, for the log; `max_s` bounds what Retry-After may ask for."""
        self._name = name
        self._max_s = max_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not cryptography
        self._changed = threading.Condition()
        self._full = 1
        self._width = 1  # the limit, but for a rest
        self._credit = 0  # successes since the last increase
        self._streak = 0
        self._halved_at = 0.0  # monotonic seconds
        self._resume_at = 0.0  # monotonic seconds
        self._closed = False
        self.limit = 1
        self.limited = False  #: whether fewer than all workers may send
        self.slowed_at: float | None = None  #: Unix seconds: since when the server asks for fewer requests

    def apply(self, *, max_s: float) -> None:
        self._max_s = max_s

    def widen(self, count: int) -> None:
        """There are so many workers."""
        with self._changed:
            self._full = self._width = self.limit = count

    def admit(self, number: int) -> None:
        """Wait until worker `number` may send."""
        with self._changed:
            while number >= self.limit and not self._closed:
                rest_s = self._resume_at - time.monotonic()
                if number >= self._width and time.monotonic() - self._halved_at > FORGOTTEN_S:
                    self._width = self.limit = self._full  # those that may send have had no success: they may all hang
                    self._changed.notify_all()
                elif number >= self._width:
                    self._changed.wait(FORGOTTEN_S)
                elif rest_s > 0:
                    self._changed.wait(rest_s)
                else:
                    self.limit = self._width
                    self._changed.notify_all()

    def refused(self, error: UploadError) -> None:
        """The server asks for fewer requests at once, or this process has no descriptor left."""
        now = time.monotonic()
        with self._changed:
            self._streak += 1
            self._halve(now, EVENT_S)
            rest_s = min(error.retry_after_s or 0.0, self._max_s)
            if self._streak >= STREAK:
                # Nothing passes: without a rest the same few files would be refused as fast as the line allows.
                rest_s = max(rest_s, self._rng.uniform(REST_S / 2, REST_S))
            if rest_s and self._resume_at <= now + rest_s:
                self._resume_at = now + rest_s
                self.limit = 0
            first = self.slowed_at is None
            if first:
                self.slowed_at = time.time()
            width = self._width
        if first:
            log.warning(
                "destination.slowed",
                destination=self._name,
                error_code=error.code,
                error=error.cause,
                hint=error.hint,
                path=error.path,
                workers=width,
                next_attempt_s=round(rest_s, 3),
            )

    def connection_lost(self) -> None:
        """A connection was refused or reset, perhaps because there were too many."""
        with self._changed:
            self._halve(time.monotonic(), LOST_S)

    def passed(self) -> None:
        """A file went through. To be called only while `limited`."""
        now = time.monotonic()
        with self._changed:
            if not self.limited:
                return
            self._streak = 0
            self._credit += 1
            if self._credit >= self._width:
                self._credit = 0
                self._width += 1
            if now - self._halved_at > FORGOTTEN_S:
                self._width = self._full
            if self._resume_at <= now:
                self.limit = self._width
            self._changed.notify_all()
            if self._width < self._full:
                return
            self._width = self.limit = self._full
            self.limited = False
            since, self.slowed_at = self.slowed_at, None
        if since is not None:
            log.info("destination.throttle_ended", destination=self._name, duration_s=round(time.time() - since, 3))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _halve(self, now: float, event_s: float) -> None:
        """Once an event. The caller holds the lock."""
        if now - self._halved_at >= event_s or not self.limited:
            self._halved_at = now
            self._width = max(1, self._width // 2)
            self._credit = 0
        self.limit = min(self.limit, self._width)
        self.limited = True
