"""The result of an attempt: the file is recorded, retried, parked, changed or vanished."""

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
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.rows import Identity, Receipt, Retry, State
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.settle import Settle, SettleReason
from s3spool.s3.content import Stored
from s3spool.upload.post_upload import PostUpload, Sent
from s3spool.upload.retry import RetryThread
from s3spool.upload.stats import Stats

log = structlog.get_logger()


class ResultHandler:
    """Each path that a worker took ends in one of these methods. Thread-safe; no method blocks."""

    def __init__(
        self,
        ledger: LedgerBackend,
        inbox: Inbox,
        settle: Settle,
        breaker: CircuitBreaker,
        post_upload: PostUpload,
        retry: RetryThread,
        stats: Stats,
        *,
        rescan: Callable[[str], None],
        on_parked: Callable[[Retry], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._claims = ledger.claims
        self._inbox = inbox
        self._settle = settle
        self._breaker = breaker
        self._post_upload = post_upload
        self._retry = retry
        self._stats = stats
        self._rescan = rescan
        self._on_parked = on_parked
        self._stats_lock = threading.Lock()  # parts fail outside the gate
        self._provisional = True  # whether the ledger may hold files that were parked without proof
        self._provisional_at = 0.0  # Unix seconds: when the latest of them failed in this process
        self._rng = random.Random()  # noqa: S311 - jitter, not cryptography

    def may_start(self, item: Item) -> bool:
        """Whether no other daemon sends this file meanwhile; if one may, the file goes back to settle."""
        if self._claims is None or (self._claims.may_start() and self._claims.holds(item.path)):
            return True
        # Without its claim: neither a scan nor the retry thread would find it again if settle has no room.
        self._claims.give_back([item.path], lambda: self._resettle(item.path, SettleReason.CHANGED, None))
        return False

    def record_success(self, item: Item, identity: Identity, proof: Stored | Receipt, times: Times) -> None:
        """Hand the receipt to the ledger; then the post-upload action follows. `times`: start of the attempt."""
        receipt = Receipt(
            item.path,
            identity,
            self._ledger.destination,
            proof.key,
            proof.etag,
            proof.checksum,
            proof.version_id,
            times.unix_s,
            time.time(),
            self._post_upload.action_of(item.path),
        )
        uploaded = isinstance(proof, Stored)  # a receipt proves that the content has not changed since
        attempt = item.failures.attempts + 1 if uploaded else 0
        sent = Sent(receipt, round(time.monotonic() - times.monotonic_s, 6), attempt)
        self._ledger.record_receipt(receipt, lambda: self._post_upload.receipt_committed(sent), self._claim_lost)
        if self._provisional and uploaded and times.unix_s > self._provisional_at:
            # Rule 2: a success gives each file that was parked without proof one more try. One that was sent before the
            # failure proves nothing: the file would be refused again at once, with each success of a busy daemon.
            self._provisional = False
            self._ledger.release_provisional(self._retry.wake)

    def node_gone(self) -> None:
        """It may have parked files without proof, and no longer releases them."""
        self._provisional = True

    def failed(self, item: Item, identity: Identity, error: UploadError, sent_s: float = 0.0) -> None:
        """Apply the rules of the circuit breaker: the file waits for the destination, backs off or is parked.

        `sent_s`: when its request began, in monotonic seconds.
        """
        if error.retry_immediately and not item.retried_immediately:
            self._inbox.put_back(item._replace(retried_immediately=True), first=True)
            return
        fault, item = self.assign_fault(item, error, sent_s)
        if fault is None or fault is Fault.DESTINATION:
            self._inbox.put_back(item, first=False)
        else:
            self.record_failure(item, identity, error, fault)

    def assign_fault(self, item: Item, error: UploadError, sent_s: float = 0.0) -> tuple[Fault | None, Item]:
        """The fault (None for too many requests), and the item with this failure as evidence."""
        self._stats.last_error = str(error)
        with self._stats_lock:
            self._stats.count_failure(error.code)
        if error.scope is Scope.LOAD:
            self._breaker.limiter.refused(error)
            return None, item
        fault, failures = self._breaker.failed(
            item.path, item.failures, error, sent_s, success_before=item.success_before
        )
        if fault is Fault.DESTINATION:
            log.debug("file.failed", **_fields(item.path, failures.attempts, error, fault))
        return fault, item._replace(failures=failures)

    def record_failure(self, item: Item, identity: Identity, error: UploadError, fault: Fault) -> bool:
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
        with self._stats_lock:
            self._stats.failed += 1
            self._stats.parked += parked
        path = item.path
        self._ledger.record_retry(row, lambda: self._waits_again(path), self._claim_lost)
        if provisional:  # after the row: `release_provisional` has to find it
            self._provisional, self._provisional_at = True, failures.last_error_at
        fields = _fields(path, failures.attempts, error, fault) | {"error": reason}
        if parked:
            log.error("file.parked", **fields)
            self._on_parked(row)
        else:
            # The attempts 1, 2, 4, 8 ...: thousands of files may fail for days.
            log_at = log.warning if failures.attempts.bit_count() == 1 else log.debug
            log_at("file.failed", **fields, next_attempt_s=round(delay_s, 3))
        return parked

    def settle_again(self, item: Item, reason: SettleReason, seen: Identity | None) -> None:
        """Not ready: the file goes back to settle, and loses its failures and its claim."""
        if item.failures.attempts or self._claims is not None:
            # Only once its row is deleted: the deduplicator skips a file that waits for its retry.
            self._ledger.forget_retry(item.path, lambda: self._resettle(item.path, reason, seen))
        else:
            self._resettle(item.path, reason, seen)

    def changed(self, item: Item) -> None:
        log.info("file.changed", path=item.path, operation="upload")
        self.settle_again(item, SettleReason.CHANGED, None)

    def vanished(self, item: Item) -> None:
        claims, missing = self._claims, self._retry.missing
        if claims is not None and item.failures.attempts and not missing.is_gone(item.path, time.monotonic()):
            # Another daemon may see it: its retry stays.
            claims.give_back([item.path], lambda: self._waits_again(item.path))
            return
        with self._stats_lock:
            self._stats.vanished += 1
        log.info("file.vanished", path=item.path)
        self._forget(item.path)

    def drop(self, item: Item, reason: str) -> None:
        log.debug("file.skipped", path=item.path, reason=reason)
        self._forget(item.path)

    def done(self, path: str) -> None:
        """The path is finished; if it was offered again meanwhile, it goes back to settle."""
        if self._inbox.done(path):
            self._resettle(path, SettleReason.CHANGED, None)

    def _forget(self, path: str) -> None:
        """End the path's retry, then let go of it: if it returns before that, its row still says that it waits."""
        self._ledger.forget_retry(path, lambda: self.done(path))

    def _claim_lost(self, path: str) -> None:
        """Another daemon may have this file: nothing is removed here. Runs on the ledger's thread."""
        log.warning("file.claim_lost", path=path)
        self._resettle(path, SettleReason.CHANGED, None)

    def _waits_again(self, path: str) -> None:
        """The path may be offered again when its retry is due. Runs on the ledger's thread."""
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
    """Any error as an UploadError. `answered`: it was raised while S3's response was handled."""
    if isinstance(exc, UploadError):
        return exc
    if isinstance(exc, LedgerError):
        return UploadError("record", path, "LedgerUnavailable", str(exc))
    if not isinstance(exc, OSError):
        operation, code = "confirm" if answered else "read", type(exc).__name__
        log.error("file.failed", path=path, operation=operation, error_code=code, exc_info=exc)
        hint = "this is a bug in s3spool: please report it"
        # A response that raises may follow any file: not a fault of this one.
        return UploadError(operation, path, code, str(exc), Scope.UNKNOWN if answered else Scope.FILE, hint=hint)
    code = type(exc).__name__ if type(exc) is not OSError else f"errno {exc.errno}"
    cause = exc.strerror or str(exc)
    if exc.errno in EXHAUSTED:
        return UploadError("read", path, code, cause, Scope.LOAD, hint=NOTHING_LEFT)
    # Not permanent: a permission may change through a directory, mount or policy, without an event.
    hint = "give the daemon's user read access to it" if isinstance(exc, PermissionError) else ""
    return UploadError("read", path, code, cause, Scope.FILE, hint=hint)


def too_large(path: str, size: int, max_size: int) -> UploadError:
    return UploadError(
        "map",  # S3 was not asked
        path,
        "FileTooLarge",
        f"the file has {size} bytes, watch.max_size is {max_size}",
        scope=Scope.FILE,
        permanent=True,
        hint="split the file, or raise watch.max_size, restart and retry it",
    )
