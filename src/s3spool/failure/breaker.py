"""Decides whose fault a failure is; while nothing passes, only probes are sent."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import structlog

from s3spool.errors import Fault, Scope, UploadError
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.failure.retry_policy import backoff_s
from s3spool.ledger.rows import Failures

LOST_S = 1.0  # lost connections open the breaker only when nothing has passed for so long
STREAK = 8  # unproven failures of so many different files open the breaker
PROBES = 4  # requests in one round while it is open
LONGEST_ROUND_S = 10.0
ARRIVAL_S = 0.25  # a new file is tried so soon while the breaker is open
ARRIVALS = 1000  # new files that are owed a try; rounds come to the others
BETWEEN_ARRIVALS_S = 1 / 32  # where many arrive at once
log = structlog.get_logger()


class Verdict(NamedTuple):
    """Whose fault it is (None: nobody's, there were too many connections), and the evidence to keep with the file."""

    fault: Fault | None
    failures: Failures


class Times(NamedTuple):
    """When an attempt began, by both clocks: the ledger's evidence outlives a process, a wall clock may be set."""

    unix_s: float
    monotonic_s: float


class Probe(Enum):
    """Which file the next probe is made with."""

    NEWEST = "newest"  #: the newest untried one, else a random other one
    RANDOM = "random"  #: a random untried one, else a random other one


class CircuitBreaker:
    """Decides whose fault each failure is, by four rules. Thread-safe; nothing here blocks.

    A lost connection proves nothing against a file while several workers send: the server may admit fewer. It goes to
    the limiter, and counts for rule 2 only.

    1. *Proven.* A failure is the file's own when the file failed before with the same error and another file, sent
       after that failure, had succeeded before this attempt began (and stays its own while the same error repeats);
       or where the file itself shows it (Scope.FILE). Such a failure never touches the breaker.
    2. *Opening.* An unproven failure opens the breaker at once where no file could pass (Scope.EVERYBODY, unless this
       error has opened it before and a file passed all the same), otherwise when eight different files have failed
       without a success between them; lost connections only if nothing has passed for a second, for the limiter
       reduces them already. Below eight the file backs off.
    3. *Open.* Workers wait. A failure now, or of a request that was sent before the breaker closed again, only leaves
       its evidence; the file goes back uncounted.
    4. *Half-open.* Rounds of four probes with different files, by the clock, at most 10 s apart; a new arrival is
       tried within a quarter of a second, 32 a second where many arrive. The first success of a request that was not
       sent before the one whose failure opened the breaker closes it.
    """

    def __init__(
        self,
        name: str,
        *,
        initial_s: float,
        max_s: float,
        limiter: ConcurrencyLimiter,
        rng: random.Random | None = None,
    ) -> None:
        """`name` is the destination's, for the log; `initial_s` and `max_s` bound the time between two rounds."""
        self.name = name
        self.initial_s = initial_s
        self.max_s = max_s
        self.limiter = limiter
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not cryptography
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._unproven: set[str] = set()  # files that failed, unproven, since the last success; at most STREAK
        self._passed_at = 0.0  # monotonic seconds: the latest success
        self._refuted: set[str] = set()  # errors that opened the breaker, and a file passed all the same
        self._failed_sent_s = 0.0  # monotonic seconds: when the latest of these, or what opened the breaker, was sent
        self._rounds = 0
        self._next_round_at = 0.0  # monotonic seconds
        self._probes_left = 0
        self._arrivals = 0  # new files that are owed a try
        self._next_arrival_at = 0.0  # monotonic seconds
        self._closed_at = 0.0  # monotonic seconds
        self.open = False
        self.last_success_at = 0.0  #: Unix seconds: when the latest request that S3 took was sent
        self.paused_at: float | None = None  #: Unix seconds
        self.reason: UploadError | None = None
        self.evidence = ""  #: what opened the breaker, for people

    def apply(self, *, initial_s: float, max_s: float) -> None:
        """Other bounds, from the next round on."""
        self.initial_s, self.max_s = initial_s, max_s

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call back, without a lock, when the breaker opens or closes, or a probe may go earlier."""
        self._listeners.append(listener)

    @property
    def next_probe_s(self) -> float:
        """Seconds until the next probe may go; 0 if one may go now."""
        with self._lock:
            if self._probes_left:
                return 0.0
            due = min(self._next_round_at, self._next_arrival_at) if self._arrivals else self._next_round_at
            return max(0.0, due - time.monotonic())

    # What became of a request

    def failed(
        self, path: str, before: Failures, error: UploadError, sent_s: float, *, success_before: float = 0.0
    ) -> Verdict:
        """Judge a failure of this file. Not for Scope.LOAD.

        `before`: its earlier failures; `sent_s`: when the request began (monotonic seconds); `success_before`: what
        `last_success_at` was at that time.
        """
        now = time.time()
        same = before.error_code == error.code
        others_passed = 0 < before.last_error_at < success_before
        crowded = error.connection_lost and self.limiter.limit != 1
        own = error.scope is Scope.FILE or (same and not crowded and (before.own > 0 or others_passed))
        failures = Failures(
            before.attempts,
            before.first_error_at or now,
            now,
            error.code,
            (before.own if same else 0) + 1 if own else 0,
        )
        if own:
            return Verdict(Fault.OWN, failures)
        with self._lock:
            if self.open or sent_s < self._closed_at:
                return Verdict(Fault.DESTINATION, failures)
            if len(self._unproven) < STREAK:
                self._unproven.add(path)
            self._failed_sent_s = max(self._failed_sent_s, sent_s)
            if crowded:
                self.limiter.connection_lost()
            at_once = error.scope is Scope.EVERYBODY and error.code not in self._refuted
            passing = error.connection_lost and time.monotonic() - self._passed_at < LOST_S
            enough = len(self._unproven) >= STREAK and not passing
            if not at_once and not enough:
                # Tried again at once only the first time: its connection may be lost each time.
                return Verdict(None if crowded and not same else Fault.UNKNOWN, failures)
            self._open_now(error, now)
            next_probe_s = self._next_round_at - time.monotonic()
        log.error(
            "destination.paused",
            destination=self.name,
            error_code=error.code,
            error=error.cause,
            hint=error.hint,
            path=path,
            evidence=self.evidence,
            next_attempt_s=round(next_probe_s, 3),
        )
        self._tell()
        return Verdict(Fault.DESTINATION, failures)

    def succeeded(self, sent: Times, *, whole: bool = True) -> None:
        """S3 took what was sent then: a file, or (not `whole`) a part of one, which proves nothing against others."""
        if whole:
            self.last_success_at = max(self.last_success_at, sent.unix_s)
        self._passed_at = time.monotonic()
        if self.limiter.limited:
            self.limiter.passed()
        if not (self._unproven or self.open):
            return
        with self._lock:
            self._unproven.clear()
            if self.reason is None:
                self._failed_sent_s = 0.0
                return
            if sent.monotonic_s < self._failed_sent_s:
                return
            self._refuted.add(self.reason.code)
            self._failed_sent_s = 0.0
            self._closed_at = time.monotonic()
            self.open = False
            paused_at, self.paused_at, self.reason, self.evidence = self.paused_at, None, None, ""
        log.info("destination.resumed", destination=self.name, duration_s=round(time.time() - (paused_at or 0), 3))
        self._tell()

    # Probes

    def take_probe(self, *, untried: bool) -> Probe | None:
        """The right to send one file now, or None. `untried`: whether there are files that were not tried yet."""
        now = time.monotonic()
        with self._lock:
            if not self.open:
                return None
            if now >= self._next_round_at:
                self._plan_round(now)
                self._probes_left = PROBES
            if not untried:
                self._arrivals = 0
            if self._arrivals and now >= self._next_arrival_at:
                self._arrivals -= 1
                self._next_arrival_at = now + BETWEEN_ARRIVALS_S
                return Probe.NEWEST
            if not self._probes_left:
                return None
            self._probes_left -= 1
            return Probe.NEWEST if self._probes_left % 2 else Probe.RANDOM

    def refund_probe(self) -> None:
        """Nothing could be sent after all: the file had vanished, changed or cannot be read."""
        if self.open:
            with self._lock:
                self._probes_left = min(PROBES, self._probes_left + 1)
            self._tell()

    def expect_arrival(self) -> None:
        """A new file has come while the breaker is open."""
        with self._lock:
            if not self._arrivals:
                self._next_arrival_at = time.monotonic() + ARRIVAL_S
            self._arrivals = min(ARRIVALS, self._arrivals + 1)

    def probe_now(self) -> None:
        """A person says it works again: the next round begins now."""
        with self._lock:
            self._next_round_at = 0.0
        self._tell()

    # The callers of these hold the lock.

    def _open_now(self, error: UploadError, now: float) -> None:
        self.open = True
        self.paused_at, self.reason = now, error
        if len(self._unproven) < STREAK:
            self.evidence = f"1 file failed with {error.short}, which no file could pass"
        else:
            self.evidence = f"{STREAK} files in a row failed, the last one with {error.short}"
        self._unproven.clear()
        self._rounds = self._probes_left = self._arrivals = 0
        self._plan_round(time.monotonic())

    def _plan_round(self, now: float) -> None:
        """Rounds go by the clock, whether or not earlier probes were answered."""
        self._rounds += 1
        max_s = min(LONGEST_ROUND_S, self.max_s)
        self._next_round_at = now + backoff_s(self._rounds, initial_s=self.initial_s, max_s=max_s, rng=self._rng)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
