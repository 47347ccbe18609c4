"""Is the trouble the file's or the destination's? Pauses everything while the destination is unusable."""

from __future__ import annotations

import dataclasses
import math
import random
import threading
import time
from collections.abc import Callable

import structlog

from s3spool.errors import Scope, UploadError
from s3spool.pipeline.item import Item
from s3spool.pipeline.retry import backoff_s
from s3spool.pipeline.throttle import Throttle

STREAK = 8  # so many transient failures without a success between them, or refused files, are no accident
LOCAL = {"read", "map", "send", "record"}  # operations that fail before S3 has been heard
ALONE_S = 10.0  # the longest wait for a probe while the files themselves may be to blame
log = structlog.get_logger()


def heard(error: UploadError) -> bool:
    """Whether S3 has dealt with the file and refused it: then the destination works."""
    return error.scope is Scope.FILE and error.operation not in LOCAL


def for_good(error: UploadError) -> bool:
    """Whether S3 says that it will never take this file; a server or proxy that is broken may say so of every file."""
    return error.permanent and heard(error) and not error.proven


def about_content(error: UploadError) -> bool:
    """Whether a file that changed while it was sent explains the error: other bytes came, or are there, than read."""
    return error.scope is Scope.FILE or error.code == "Unconfirmed"


class Destination:
    """A valve in front of the workers: open, or paused with one worker at a time sent ahead as a probe.

    Thread-safe. `admit` blocks while paused; the file that the admitted worker then takes is the probe, a real
    one, so what passes is exactly what has to pass.
    """

    def __init__(self, name: str, *, initial_s: float, max_s: float, rng: random.Random | None = None) -> None:
        self.name = name
        self.initial_s = initial_s
        self.max_s = max_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not cryptography
        self._lock = threading.Lock()
        self._turned = threading.Condition(self._lock)
        self._open = True
        self._closed = False
        self._probing = False
        self._timekeeper = False
        self._probes = 0
        self._next_probe = 0.0
        self._streak = 0
        self._suspect = ""  # the first file that failed since the last success
        self._others = False  # another one has failed, too
        self._resumed_at = -math.inf  # monotonic seconds
        self._succeeded_at = 0.0  # Unix seconds, like the times in the ledger
        self._refused: set[str] = set()  # files refused for good since then
        self._doubted = False  # paused because of them: only a content that S3 takes proves that it works again
        self._listeners: list[Callable[[], None]] = []
        self.taken_at = 0.0  #: Unix seconds: the latest start of a request by which S3 took a content
        self.throttle = Throttle(name, max_s=max_s, rng=self._rng)
        self.paused_at: float | None = None  # Unix seconds
        self.reason: UploadError | None = None

    @property
    def paused(self) -> bool:
        return not self._open

    @property
    def next_probe_s(self) -> float:
        """Seconds until the next probe."""
        return max(0.0, self._next_probe - time.monotonic())

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def admit(self) -> bool:
        """Wait until work may be sent; True if what follows is the probe."""
        if self._open:
            return False
        with self._lock:
            while not self._open and not self._closed:
                delay_s = self._next_probe - time.monotonic()
                if not self._probing and delay_s <= 0:
                    self._probing = True
                    return True
                if self._probing or self._timekeeper:
                    self._turned.wait()
                else:
                    # One sleeper watches the clock; a hundred that do would all wake for one probe.
                    self._timekeeper = True
                    self._turned.wait(delay_s)
                    self._timekeeper = False
            return False

    def release_probe(self) -> None:
        """The admitted worker found nothing to send after all: another may probe."""
        with self._lock:
            self._probing = False
            self._turned.notify()

    def succeeded(self, *, probe: bool, began: float = 0.0) -> None:
        """S3 has dealt with a file (taken it, or refused that one alone): the destination works.

        `began`: when the request began (Unix seconds) by which S3 took a content; 0 where it took none.
        While paused only the probe tells: the others were under way before, and say nothing of now.
        """
        if not (self._open or probe):
            return
        if began:
            # Not when it ended: what was sent before another file was refused says nothing of that refusal.
            self.taken_at = max(self.taken_at, began)
            if self._refused:
                with self._lock:
                    self._refused.clear()
        elif self._doubted and not self._open:
            self.release_probe()
            return
        self._succeeded_at = time.time()
        self._streak = 0
        if self.throttle.slowed:
            self.throttle.passed()
        if self._open:
            return
        with self._lock:
            self._open = True
            self._doubted = False
            self._probing = False
            self._probes = 0
            paused_at, self.paused_at, self.reason = self.paused_at, None, None
            self._resumed_at = time.monotonic()
            self._turned.notify_all()
        log.info("destination.resumed", destination=self.name, duration_s=round(time.time() - (paused_at or 0), 3))
        self._tell()

    def failed(self, item: Item, error: UploadError, *, probe: bool, began: float = math.inf) -> Scope:
        """Whom this error concerns. DESTINATION: put the file back uncounted; FILE: it backs off or is parked.

        `began`: when the request set out (monotonic seconds), where it has.
        """
        if error.scope is Scope.DESTINATION and began < self._resumed_at and not probe:
            return Scope.DESTINATION  # it met an outage that is over, and waited until now to hear of it
        if for_good(error):
            return self._refusal(item, error, probe=probe)
        if heard(error):
            self.succeeded(probe=probe)
        elif error.scope is Scope.FILE or (not error.slow_down and self._is_its_own(item, error)):
            if probe:
                self.release_probe()
        else:
            return self._trouble(item, error, probe=probe)
        return Scope.FILE

    def _trouble(self, item: Item, error: UploadError, *, probe: bool) -> Scope:
        """Nothing can be sent, or it looks like that."""
        if error.slow_down and self._open and not self.throttle.refused(error):
            return Scope.DESTINATION
        with self._lock:
            if self._open:
                self._others = self._streak > 0 and (self._others or item.path != self._suspect)
                self._suspect = item.path
                self._streak += 1
                enough = error.sudden or error.slow_down or (self._streak >= STREAK and self._others)
                if not enough:
                    return Scope.FILE
            elif not probe:
                return Scope.DESTINATION  # one of those in flight when it was paused: nothing new
            first = self._open
            delay_s = self._close_valve(item, error)
        self._say(item, error, delay_s, first=first)
        return Scope.DESTINATION

    def _refusal(self, item: Item, error: UploadError, *, probe: bool) -> Scope:
        """S3 will never take this file, it says. So many files in a row, and it is not believed."""
        if self.proven(item, error):
            if probe:
                self.release_probe()
            return Scope.FILE
        if not self._doubted:
            self.succeeded(probe=probe)  # whatever it was paused for: it answers again
        with self._lock:
            if not (self._open or probe):
                return Scope.DESTINATION
            self._refused.add(item.path)
            if self._open and len(self._refused) < STREAK:
                return Scope.FILE
            first = self._open
            self._doubted = True
            hint = f"the last {STREAK} files were all refused, so look at the server, or a proxy before it, first"
            error = dataclasses.replace(error, hint=f"{error.hint}; {hint}" if error.hint else hint)
            delay_s = self._close_valve(item, error)
        self._say(item, error, delay_s, first=first)
        return Scope.DESTINATION

    @staticmethod
    def proven(item: Item, error: UploadError) -> bool:
        """Whether S3 has taken another file since it refused this one in the same way, and was asked again then."""
        return item.blamed_for == error.code and item.taken_at > item.last_error_at

    def alone(self, path: str) -> bool:
        """Whether no other file was refused for good since S3 took one."""
        return not self._refused - {path}

    def _say(self, item: Item, error: UploadError, delay_s: float, *, first: bool) -> None:
        if first:
            log.error(
                "destination.paused",
                destination=self.name,
                error_code=error.code,
                error=error.cause,
                hint=error.hint,
                path=item.path,
                next_attempt_s=round(delay_s, 3),
            )
        self._tell()

    def _is_its_own(self, item: Item, error: UploadError) -> bool:
        """Whether this file fails where others pass."""
        if error.sudden and not error.answered:
            return False  # who cannot be reached has not looked at any file
        if item.blamed_at and self._succeeded_at > item.blamed_at:
            return True  # it paused the destination before, others have passed since
        # It fails again for what it was blamed for, and nothing else has failed since.
        again = self._open and item.blamed_for == error.code
        return again and (error.sudden or self._succeeded_at > item.first_error_at)

    def _close_valve(self, item: Item, error: UploadError) -> float:
        """Pause, or go on pausing; returns the seconds until the next probe. The caller holds the lock."""
        if self._open:
            self._open = False
            self.paused_at = time.time()
        self._others = self._others or item.path != self._suspect
        self._probing = False
        self._probes += 1
        self.reason = error
        max_s = self.max_s if self._others and not self._doubted else min(self.max_s, ALONE_S)
        delay_s = backoff_s(self._probes, initial_s=self.initial_s, max_s=max_s, rng=self._rng)
        if error.retry_after_s is not None:
            delay_s = max(delay_s, min(error.retry_after_s, self.max_s))
        self._next_probe = time.monotonic() + delay_s
        self._turned.notify()
        return delay_s

    def probe_now(self) -> None:
        """A person says it works again: do not wait for the backoff."""
        with self._lock:
            self._next_probe = 0.0
            self._turned.notify_all()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._turned.notify_all()
        self.throttle.close()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
