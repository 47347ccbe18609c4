"""How many workers may send while the server says "slow down": fewer at once instead of none at all."""

from __future__ import annotations

import random
import threading
import time

import structlog

from s3spool.errors import UploadError

EVENT_S = 1.0  # refusals this close together are one event: the limit is halved once
HOLD_S = 1.0  # the longest rest where the server names none
STREAK = 8  # so many refusals in a row without a success: halving alone does not help, rest as well
FORGOTTEN_S = 60.0  # a success so long after the last refusal shows that it is over
log = structlog.get_logger()


class Throttle:
    """Additive increase, multiplicative decrease, as in TCP: worker n may send while n < `limit`.

    `limit` is a plain attribute: as long as nobody was ever told to slow down, comparing with it is all the cost.
    It is 0 while all rest. Thread-safe.
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
        self.slowed = False
        self.slowed_at: float | None = None  # Unix seconds

    def widen(self, count: int) -> None:
        """There are so many workers."""
        with self._changed:
            self._full = self._width = self.limit = count

    def admit(self, number: int) -> None:
        """Wait until worker `number` may send."""
        with self._changed:
            while number >= self.limit and not self._closed:
                rest_s = self._resume_at - time.monotonic()
                if number >= self._width:
                    self._changed.wait()
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
            if now - self._halved_at >= EVENT_S or not self.slowed:
                self._halved_at = now
                self._width = max(1, self._width // 2)
                self._credit = 0
            self.limit = min(self.limit, self._width)
            rest_s = min(error.retry_after_s or 0.0, self._max_s)
            if self._streak >= STREAK:
                # Nothing passes: without a rest the same few files would be refused as fast as the line allows.
                rest_s = max(rest_s, self._rng.uniform(HOLD_S / 2, HOLD_S))
            if rest_s and self._resume_at <= now + rest_s:
                self._resume_at = now + rest_s
                self.limit = 0
            first = not self.slowed
            self.slowed = True
            width = self._width
            if first:
                self.slowed_at = time.time()
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

    def passed(self) -> None:
        """A file went through. To be called only while `slowed`: one more worker for each round of them."""
        now = time.monotonic()
        with self._changed:
            if not self.slowed:
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
            if self._width < self._full:
                self._changed.notify_all()
                return
            self._width = self.limit = self._full
            self.slowed = False
            since, self.slowed_at = self.slowed_at, None
            self._changed.notify_all()
        log.info("destination.full_speed", destination=self._name, duration_s=round(time.time() - (since or 0), 3))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
