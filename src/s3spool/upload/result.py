"""What becomes of a file after its attempt: recorded, retried, parked, changed, vanished."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from s3spool.errors import EXHAUSTED, NOTHING_LEFT, Fault, LedgerError, Scope, UploadError
from s3spool.failure.breaker import CircuitBreaker, Times
from s3spool.failure.retry_policy import Park, decide
from s3spool.ledger.rows import Identity, Receipt, Retry, State
from s3spool.ledger.store import Ledger
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.settle import Settle, SettleReason
from s3spool.s3.content import Bucket, Stored
from s3spool.upload.post_upload import PostUpload, Sent
from s3spool.upload.retry import RetryThread
from s3spool.upload.stats import Stats

log = structlog.get_logger()


class ResultHandler:
    """Each path that a worker took ends in exactly one of these. Thread-safe; nothing here blocks."""

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        inbox: Inbox,
        settle: Settle,
        breaker: CircuitBreaker,
        after: PostUpload,
        retry: RetryThread,
        stats: Stats,
        *,
        rescan: Callable[[str], None],
    ) -> None:
        self._bucket = bucket
        self._ledger = ledger
        self._inbox = inbox
        self._settle = settle
        self._breaker = breaker
        self._after = after
        self._retry = retry
        self._stats = stats
        self._rescan = rescan
        self._counting = threading.Lock()  # large files and their parts fail outside the gate
        self._provisional = True  # whether the ledger may hold files that were parked without proof
        self._rng = random.Random()  # noqa: S311 - jitter, not cryptography

    def record(
        self, item: Item, identity: Identity, key: str, proof: Stored | Receipt, times: Times, *, attempt: int
    ) -> None:
        """Hand the receipt to the ledger; once it is durable, `after` goes on. `times`: when the attempt began."""
        receipt = Receipt(
            item.path,
            identity,
            self._ledger.destination,
            key,
            proof.etag,
            proof.checksum,
            proof.version_id,
            times.unix_s,
            time.time(),
            self._after.action,
        )
        sent = Sent(receipt, self._bucket.bucket, round(time.monotonic() - times.monotonic_s, 6), attempt)
        self._ledger.record_receipt(receipt, lambda: self._after.committed(sent))
        if self._provisional and isinstance(proof, Stored):
            # Rule 2: a success gives each file that was parked without proof one more try.
            self._provisional = False
            self._ledger.release_provisional(self._retry.wake)

    def failed(self, item: Item, identity: Identity, error: UploadError, sent_s: float = 0.0) -> None:
        """Judge the failure by the rules of the circuit breaker: the file waits for it, backs off or is parked.

        `sent_s`: when its request began, in monotonic seconds.
        """
        if error.retry_immediately and not item.retried_immediately:
            self._inbox.put_back(item._replace(retried_immediately=True), first=True)
            return
        fault, item = self.judge(item, error, sent_s)
        if fault is None or fault is Fault.DESTINATION:
            self._inbox.put_back(item, first=False)
        else:
            self.count(item, identity, error, fault)

    def judge(self, item: Item, error: UploadError, sent_s: float = 0.0) -> tuple[Fault | None, Item]:
        """Whose fault it is (None: nobody's, too many requests), and the item with its evidence."""
        self._stats.last_error = str(error)
        if error.scope is Scope.LOAD:
            self._breaker.limiter.refused(error)
            return None, item
        fault, failures = self._breaker.failed(
            item.path, item.failures, error, sent_s, success_before=item.success_before
        )
        if fault is Fault.DESTINATION:
            log.debug("file.failed", **_fields(item.path, failures.attempts, error, fault))
        return fault, item._replace(failures=failures)

    def count(self, item: Item, identity: Identity, error: UploadError, fault: Fault) -> bool:
        """One more failed attempt of this file; True if it is parked now."""
        failures = item.failures._replace(attempts=item.failures.attempts + 1)
        decision = decide(error, failures, policy=self._retry.policy, rng=self._rng)
        parked = isinstance(decision, Park)
        reason, provisional = (
            (decision.reason, decision.provisional) if isinstance(decision, Park) else (error.cause, False)
        )
        delay_s = 0.0 if isinstance(decision, Park) else decision.seconds
        row = Retry(
            item.path,
            identity,
            failures.attempts,
            failures.first_error_at,
            failures.last_error_at,
            error.code,
            reason,
            error.hint,
            0.0 if parked else failures.last_error_at + delay_s,
            State.PARKED if parked else State.WAITING,
            failures.own,
            provisional,
        )
        with self._counting:
            self._stats.failed += 1
        path = item.path
        self._ledger.record_retry(row, lambda: self._settled(path))
        if provisional:  # after the row: a success that releases them has to find it
            self._provisional = True
        fields = _fields(path, failures.attempts, error, fault) | {"error": reason}
        if parked:
            log.error("file.parked", **fields)
        else:
            # The attempts 1, 2, 4, 8 ...: thousands of files may fail for days.
            log_at = log.warning if failures.attempts.bit_count() == 1 else log.debug
            log_at("file.failed", **fields, next_attempt_s=round(delay_s, 3))
        return parked

    def again(self, item: Item, reason: SettleReason, seen: Identity | None) -> None:
        """Not ready: back to settle, where a changed file starts anew."""
        if item.failures.attempts:
            # Only once its row is gone: the sift would take the file for one that waits for its retry.
            self._ledger.forget_retry(item.path, lambda: self._resettle(item.path, reason, seen))
        else:
            self._resettle(item.path, reason, seen)

    def changed(self, item: Item) -> None:
        log.info("file.changed", path=item.path, operation="upload")
        self.again(item, SettleReason.CHANGED, None)

    def vanished(self, item: Item) -> None:
        with self._counting:
            self._stats.vanished += 1
        log.info("file.vanished", path=item.path)
        self._ledger.forget_retry(item.path)
        self.done(item.path)

    def drop(self, item: Item, reason: str) -> None:
        log.debug("file.skipped", path=item.path, reason=reason)
        self._ledger.forget_retry(item.path)
        self.done(item.path)

    def done(self, path: str) -> None:
        """Nothing is left to do for it, unless it was offered again meanwhile."""
        if self._inbox.done(path):
            self._resettle(path, SettleReason.CHANGED, None)

    def _settled(self, path: str) -> None:
        """On the ledger's thread: the failure is durable, the path may come again."""
        self.done(path)
        self._retry.wake()

    def _resettle(self, path: str, reason: SettleReason, seen: Identity | None) -> None:
        if self._inbox.done(path):
            reason, seen = SettleReason.CHANGED, None
        if not self._settle.add(path, reason, seen):
            self._rescan("full")


def _fields(path: str, attempts: int, error: UploadError, fault: Fault) -> dict[str, Any]:
    return {
        "path": path,
        "operation": error.operation,
        "attempt": attempts,
        "error_code": error.code,
        "error": error.cause,
        "scope": error.scope.value,
        "fault": fault.value,
        "hint": error.hint,
    }


def translated(exc: Exception, path: str, *, answered: bool = False) -> UploadError:
    """Whatever went wrong around one file, in our terms. `answered`: over S3's answer, not before it was asked."""
    if isinstance(exc, UploadError):
        return exc
    if isinstance(exc, LedgerError):
        return UploadError("record", path, "LedgerUnavailable", str(exc))
    if not isinstance(exc, OSError):
        operation, code = "confirm" if answered else "read", type(exc).__name__
        log.error("file.failed", path=path, operation=operation, error_code=code, exc_info=exc)
        hint = "this is a bug in s3spool: please report it"
        # An answer that raises may come to each file.
        return UploadError(operation, path, code, str(exc), Scope.UNKNOWN if answered else Scope.FILE, hint=hint)
    code = type(exc).__name__ if type(exc) is not OSError else f"errno {exc.errno}"
    cause = exc.strerror or str(exc)
    if exc.errno in EXHAUSTED:
        return UploadError("read", path, code, cause, Scope.LOAD, hint=NOTHING_LEFT)
    # Not permanent: the permission may come through a directory, a mount or a policy, which nobody reports.
    hint = "give the daemon's user read access to it" if isinstance(exc, PermissionError) else ""
    return UploadError("read", path, code, cause, Scope.FILE, hint=hint)
