"""What becomes of a file after its attempt: recorded, retried, parked, changed, vanished."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from s3spool.content import Bucket, Stored
from s3spool.errors import EXHAUSTED, NOTHING_LEFT, LedgerError, Scope, UploadError
from s3spool.ledger.rows import Identity, Receipt, Retry, State
from s3spool.ledger.store import Ledger
from s3spool.pipeline.after import After, Sent
from s3spool.pipeline.destination import Destination, for_good, heard
from s3spool.pipeline.inbox import Inbox
from s3spool.pipeline.item import Item, Lane
from s3spool.pipeline.retry import Park, RetryThread, decide
from s3spool.pipeline.settle import Quiet, Settle
from s3spool.pipeline.stats import Stats

log = structlog.get_logger()


class Outcome:
    """Each path that a worker took ends in exactly one of these. Thread-safe; nothing here blocks."""

    def __init__(
        self,
        bucket: Bucket,
        ledger: Ledger,
        inbox: Inbox,
        settle: Settle,
        destination: Destination,
        after: After,
        retry: RetryThread,
        stats: Stats,
        *,
        rescan: Callable[[str], None],
    ) -> None:
        self._bucket = bucket
        self._ledger = ledger
        self._inbox = inbox
        self._settle = settle
        self._destination = destination
        self._after = after
        self._retry = retry
        self._stats = stats
        self._rescan = rescan
        destination.on_change(lambda: inbox.favour_new(destination.paused))
        self._counting = threading.Lock()  # what is judged slowly, and parts, fail outside the gate
        self._doubted = True  # whether there may be files that were parked on one answer alone; the ledger knows
        self._rng = random.Random()  # noqa: S311 - jitter, not cryptography

    def record(
        self,
        item: Item,
        identity: Identity,
        key: str,
        proof: Stored | Receipt,
        times: tuple[float, float],
        *,
        attempt: int,
    ) -> None:
        """Hand the receipt to the ledger; once it is durable, `after` goes on.

        `times`: when it was read (Unix seconds) and when the attempt began (monotonic seconds).
        """
        read_at, started = times
        receipt = Receipt(
            item.path,
            identity,
            self._ledger.destination,
            key,
            proof.etag,
            proof.checksum,
            proof.version_id,
            read_at,
            time.time(),
            self._after.action,
        )
        sent = Sent(receipt, self._bucket.bucket, round(time.monotonic() - started, 6), attempt)
        self._ledger.record_receipt(receipt, lambda: self._after.committed(sent))
        if self._doubted and isinstance(proof, Stored):
            # S3 takes files: whether it takes those that it refused alone is worth another question now.
            self._doubted = False
            self._ledger.release_doubted(self._retry.wake)

    def failed(
        self, item: Item, identity: Identity, error: UploadError, *, probe: bool, began: float = math.inf
    ) -> None:
        """Whose fault, and what follows: the destination pauses, or the file backs off or is parked.

        `began`: when the request set out (monotonic seconds), where it has.
        """
        if error.mended and not item.again:
            self._inbox.put_back(item._replace(again=True), first=True)
            if probe:
                self._destination.release_probe()
            return
        if self._destination.failed(item, error, probe=probe, began=began) is Scope.DESTINATION:
            self.blame(error)
            if error.slow_down:
                self._inbox.put_back(item, first=False)
                return
            now = time.time()
            if for_good(error):
                item = item._replace(blamed_for=error.code, last_error_at=now)
            if probe or not item.blamed_at:
                item = item._replace(blamed_at=now)
            if probe or for_good(error):
                # Behind those that were not tried yet, so that the next probe asks with another file.
                item = item._replace(lane=Lane.RETRY)
            self._inbox.put_back(item, first=not probe)
            return
        self.count(item, identity, error)

    def blame(self, error: UploadError) -> None:
        self._stats.last_error = str(error)

    def count(self, item: Item, identity: Identity, error: UploadError) -> bool:
        """One more failed attempt of this file; True if it is parked now."""
        now = time.time()
        attempts = item.attempts + 1
        known = self._is_known_to_be_its_own(item, error)
        countable = known or (heard(error) and self._alone(item))
        countable = countable and error.operation != "record"  # a ledger that cannot be used is no file's fault
        decision = decide(error, attempts, policy=self._retry.policy, countable=countable, rng=self._rng)
        parked = isinstance(decision, Park)
        delay_s = 0.0 if isinstance(decision, Park) else decision.seconds
        due = 0.0 if parked and known else now + delay_s
        reason = decision.reason if isinstance(decision, Park) else error.cause
        row = Retry(
            item.path,
            identity,
            attempts,
            item.first_error_at or now,
            now,
            error.code,
            reason,
            error.hint,
            due,
            State.PARKED if parked else State.WAITING,
        )
        with self._counting:
            self._stats.failed += 1
        self._stats.last_error = str(error)
        path = item.path
        self._ledger.record_retry(row, lambda: self._settled(path))
        if parked and not known:
            self._doubted = True
        elif for_good(error) and not self._destination.alone(path):
            self._ledger.release_doubted(self._retry.wake)  # a file that was parked alone is alone no longer
        fields: dict[str, Any] = {
            "path": path,
            "operation": error.operation,
            "attempt": attempts,
            "error_code": error.code,
            "error": reason,
            "scope": Scope.FILE.value,
            "hint": error.hint,
        }
        if parked:
            log.error("file.parked", **fields)
        else:
            log.warning("file.failed", **fields, next_attempt_s=round(delay_s, 3))
        return parked

    def _is_known_to_be_its_own(self, item: Item, error: UploadError) -> bool:
        """Whether the destination cannot be to blame for this error."""
        if for_good(error):
            return self._destination.proven(item, error)
        if error.scope is Scope.FILE and (error.proven or not heard(error)):
            return True
        return 0.0 < item.first_error_at < item.taken_at

    def _alone(self, item: Item) -> bool:
        """Whether there is no other file that could show whose fault it is."""
        return self._destination.alone(item.path) and self._inbox.counts() == (0, 1)

    def again(self, item: Item, quiet: Quiet, seen: Identity | None) -> None:
        """Not ready: back to settle, where a changed file starts anew."""
        if item.lane is Lane.RETRY:
            # Only once its row is gone: the sift would take the file for one that waits for its retry.
            self._ledger.forget_retry(item.path, lambda: self._resettle(item.path, quiet, seen))
        else:
            self._resettle(item.path, quiet, seen)

    def changed(self, item: Item) -> None:
        log.info("file.changed", path=item.path, operation="upload")
        self.again(item, Quiet.CHANGED, None)

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
            self._resettle(path, Quiet.CHANGED, None)

    def _settled(self, path: str) -> None:
        """On the ledger's thread: the failure is durable, the path may come again."""
        self.done(path)
        self._retry.wake()

    def _resettle(self, path: str, quiet: Quiet, seen: Identity | None) -> None:
        if self._inbox.done(path):
            quiet, seen = Quiet.CHANGED, None
        if not self._settle.touch(path, quiet, seen):
            self._rescan("full")


def translated(exc: Exception, path: str, *, answered: bool = False) -> UploadError:
    """Whatever went wrong around one file, in our terms. `answered`: over S3's answer, not before it was asked."""
    if isinstance(exc, UploadError):
        return exc
    if isinstance(exc, LedgerError):
        return UploadError("record", path, "LedgerUnavailable", str(exc))
    if not isinstance(exc, OSError):
        operation, code = "confirm" if answered else "read", type(exc).__name__
        log.error("file.failed", path=path, operation=operation, error_code=code, exc_info=exc)
        # An answer that trips us up may come to each file: a streak of them pauses, instead of a traceback an attempt.
        scope = Scope.DESTINATION if answered else Scope.FILE
        hint = "this is a bug in s3spool: please report it"
        return UploadError(operation, path, code, str(exc), scope=scope, sudden=False, hint=hint)
    # Not parked without a permission: it may come back through a directory, a mount or a policy, unseen by us.
    hint = "give the daemon's user read access to it" if isinstance(exc, PermissionError) else ""
    code = type(exc).__name__ if type(exc) is not OSError else f"errno {exc.errno}"
    if exc.errno in EXHAUSTED:
        # No file can be opened now, so no file is to blame, not even one that meets this again and again: all wait, and
        # one after the other finds out when it works.
        cause = exc.strerror or str(exc)
        return UploadError("read", path, code, cause, scope=Scope.DESTINATION, hint=NOTHING_LEFT, answered=False)
    return UploadError("read", path, code, exc.strerror or str(exc), hint=hint)
