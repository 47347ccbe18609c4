"""One file's way through a worker: open, look, read; then, when S3 has answered, record what became of it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from s3spool.content import Bucket, Content, MustAskError, Sender, Stored
from s3spool.errors import Scope, UploadError
from s3spool.ledger.rows import Identity, Receipt, Retry, State
from s3spool.ledger.store import Ledger
from s3spool.pipeline.after import After, Sent
from s3spool.pipeline.destination import Destination
from s3spool.pipeline.folder import Folder, Lease, NotAFileError, lease, release
from s3spool.pipeline.inbox import Inbox
from s3spool.pipeline.item import Item, Lane
from s3spool.pipeline.retry import Park, Policy, RetryThread, decide
from s3spool.pipeline.settle import Quiet, Settle
from s3spool.pipeline.stats import Stats

SMALL_BYTES = 128 * 1024  # up to here a body is read at once, under the gate: 100 workers hold 12.5 MiB at most
NO_IDENTITY = Identity(0, 0, 0, 0, 0)
log = structlog.get_logger()


@dataclass(slots=True)
class Job:
    """A file in a worker's hands. `request` is None until a large file's checksum has been computed."""

    item: Item
    content: Content
    request: Any
    read_at: float  # Unix seconds
    started: float  # monotonic seconds
    probe: bool
    answer: Any = None  # kept where judging it needs more than the gate's time


class Upload:
    """Steps of a worker. `begin` and `finish` run under the gate and must be quick; the others run outside."""

    def __init__(
        self,
        folder: Folder,
        bucket: Bucket,
        ledger: Ledger,
        inbox: Inbox,
        settle: Settle,
        destination: Destination,
        after: After,
        retry: RetryThread,
        stats: Stats,
        *,
        settle_s: float,
        rescan: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._bucket = bucket
        self._ledger = ledger
        self._inbox = inbox
        self._settle = settle
        self._destination = destination
        self._after = after
        self._retry = retry
        self._stats = stats
        self._settle_s = settle_s
        self._rescan = rescan
        self._rng = random.Random()  # noqa: S311 - jitter, not cryptography

    @property
    def policy(self) -> Policy:
        return self._retry.policy

    def begin(self, item: Item, *, probe: bool) -> Job | None:
        """Open and read; None when there is nothing to send (the item has been dealt with)."""
        try:
            fd, status = self._folder.open(item.path)
        except FileNotFoundError:
            self._vanished(item)
            return None
        except NotAFileError:
            self._drop(item, "not a regular file")
            return None
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this file's trouble alone
            self._failed(item, self._identity_of(item.path), _translated(exc, item.path), probe=probe)
            return None
        identity = Identity.of(status)
        keep_open = False
        try:
            now = time.time()
            content = self._read(item, fd, identity, now)
            if content is None:
                return None
            keep_open = content.fd >= 0
            job = Job(item, content, None, now, time.monotonic(), probe)
            if not keep_open and item.receipt is None:
                job.request = self._bucket.request(content)
        except Exception as exc:  # noqa: BLE001 - the same
            self._failed(item, identity, _translated(exc, item.path), probe=probe)
            return None
        finally:
            if not keep_open:
                os.close(fd)
        return job

    def load(self, job: Job, sender: Sender) -> bool:
        """Compute what takes longer; False when nothing is to be sent after all."""
        item, content = job.item, job.content
        try:
            if item.receipt is not None and self._unchanged(content, item.receipt):
                self._record(job, item.receipt.key, item.receipt, attempt=0)
                self._close(content)
                if job.probe:
                    self._destination.release_probe()  # S3 was not asked
                return False
            job.request = self._bucket.request(content)
            sender.prepare(job.request)
        except Exception as exc:  # noqa: BLE001 - the same
            self._failed(item, content.identity, _translated(exc, item.path), probe=job.probe)
        else:
            return True
        self._close(content)
        return False

    def finish(self, job: Job, answer: Any) -> bool:
        """Judge the answer; False when that needs `finish_slowly`."""
        try:
            self._judge(job, answer, may_ask=False)
        except MustAskError:
            job.answer = answer
            return False
        return True

    def finish_slowly(self, job: Job) -> None:
        self._judge(job, job.answer, may_ask=True)

    def abandon(self, job: Job) -> None:
        """The worker died over this file: close it and let another have it."""
        self._close(job.content)
        self._inbox.put_back(job.item, first=False)
        if job.probe:
            self._destination.release_probe()

    def _read(self, item: Item, fd: int, identity: Identity, now: float) -> Content | None:
        """The content if the file is complete and quiet; else it goes back to settle. Raises OSError."""
        free = lease(fd)
        try:
            if free is Lease.BUSY:
                self._again(item, Quiet.BUSY, None)
                return None
            quiet_s = now - identity.mtime_ns / 1e9
            if quiet_s < self._settle_s and item.seen != identity:
                self._again(item, Quiet.CHANGED, identity)
                return None
            if identity.size > SMALL_BYTES:
                return Content(item.path, identity, None, fd)
            # The lease, where we have it, keeps writers out until the body is read: it cannot be torn.
            body = os.read(fd, identity.size + 1)
            if len(body) != identity.size or (free is not Lease.FREE and Identity.of(os.fstat(fd)) != identity):
                self._changed(item)
                return None
            return Content(item.path, identity, body, -1)
        finally:
            if free is Lease.FREE:
                release(fd)

    def _judge(self, job: Job, answer: Any, *, may_ask: bool) -> None:
        item, content = job.item, job.content
        error: UploadError | None = None
        try:
            stored = self._bucket.judge(content, job.request, answer, may_ask=may_ask)
        except MustAskError:
            raise
        except Exception as exc:  # noqa: BLE001 - the same
            error = _translated(exc, item.path)
        # A file that changed while it was read was refused for that, or, worse, was not.
        torn = content.fd >= 0 and Identity.of(os.fstat(content.fd)) != content.identity
        self._close(content)
        if error is not None and not (torn and error.scope is Scope.FILE):
            self._failed(item, content.identity, error, probe=job.probe)
            return
        self._destination.succeeded()
        if torn:
            self._changed(item)
            return
        self._record(job, stored.key, stored, attempt=item.attempts + 1)

    def _record(self, job: Job, key: str, proof: Stored | Receipt, *, attempt: int) -> None:
        """Hand the receipt to the ledger; once it is durable, `after` goes on."""
        receipt = Receipt(
            job.content.path,
            job.content.identity,
            self._ledger.destination,
            key,
            proof.etag,
            proof.checksum,
            proof.version_id,
            job.read_at,
            time.time(),
            self._after.action,
        )
        duration_s = round(time.monotonic() - job.started, 6)
        sent = Sent(receipt, self._bucket.bucket, duration_s, attempt)
        self._ledger.record_receipt(receipt, lambda: self._after.committed(sent))

    def _unchanged(self, content: Content, receipt: Receipt) -> bool:
        return self._bucket.digest(content, receipt.checksum.partition(":")[0]) == receipt.checksum

    def _failed(self, item: Item, identity: Identity, error: UploadError, *, probe: bool) -> None:
        """Whose fault, and what follows: the destination pauses, or the file backs off or is parked."""
        if self._destination.failed(item, error, probe=probe) is Scope.DESTINATION:
            self._stats.last_error = str(error)
            blamed = item._replace(blamed_at=time.time())
            # A failed probe goes to the back, so that the next one asks with another file.
            self._inbox.put_back(blamed if probe or not item.blamed_at else item, first=not probe)
            return
        now = time.time()
        attempts = item.attempts + 1
        countable = error.scope is Scope.FILE or self._destination.countable(item.first_error_at or now)
        decision = decide(error, attempts, policy=self.policy, countable=countable, rng=self._rng)
        parked = isinstance(decision, Park)
        delay_s = 0.0 if isinstance(decision, Park) else decision.seconds
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
            now + delay_s,
            State.PARKED if parked else State.WAITING,
        )
        self._stats.failed += 1
        self._stats.last_error = str(error)
        path = item.path
        self._ledger.record_retry(row, lambda: self._settled(path))
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

    def _settled(self, path: str) -> None:
        """On the ledger's thread: the failure is durable, the path may come again."""
        if self._inbox.done(path):
            self._resettle(path, Quiet.CHANGED, None)
        self._retry.wake()

    def _again(self, item: Item, quiet: Quiet, seen: Identity | None) -> None:
        """Not ready: back to settle, where a changed file starts anew."""
        if item.lane is Lane.RETRY:
            # Only once its row is gone: the sift would take the file for one that waits for its retry.
            self._ledger.forget_retry(item.path, lambda: self._resettle(item.path, quiet, seen))
        else:
            self._resettle(item.path, quiet, seen)

    def _resettle(self, path: str, quiet: Quiet, seen: Identity | None) -> None:
        if self._inbox.done(path):
            quiet, seen = Quiet.CHANGED, None
        if not self._settle.touch(path, quiet, seen):
            self._rescan("full")

    def _changed(self, item: Item) -> None:
        log.info("file.changed", path=item.path, operation="upload")
        self._again(item, Quiet.CHANGED, None)

    def _vanished(self, item: Item) -> None:
        self._stats.vanished += 1
        log.info("file.vanished", path=item.path)
        self._ledger.forget_retry(item.path)
        self._done(item)

    def _drop(self, item: Item, reason: str) -> None:
        log.debug("file.skipped", path=item.path, reason=reason)
        self._ledger.forget_retry(item.path)
        self._done(item)

    def _done(self, item: Item) -> None:
        if self._inbox.done(item.path):
            self._resettle(item.path, Quiet.CHANGED, None)

    def _identity_of(self, path: str) -> Identity:
        try:
            return self._folder.identity_of(path) or NO_IDENTITY
        except OSError:
            return NO_IDENTITY

    @staticmethod
    def _close(content: Content) -> None:
        if content.fd >= 0:
            os.close(content.fd)


def _translated(exc: Exception, path: str) -> UploadError:
    """Whatever went wrong around one file, in our terms."""
    if isinstance(exc, UploadError):
        return exc
    if not isinstance(exc, OSError):
        log.error("file.failed", path=path, operation="read", error_code=type(exc).__name__, exc_info=exc)
        return UploadError(
            "read", path, type(exc).__name__, str(exc), hint="this is a bug in s3spool: please report it"
        )
    permanent = isinstance(exc, PermissionError)
    hint = "give the daemon's user read access to it, then `s3spool retry`" if permanent else ""
    code = type(exc).__name__ if type(exc) is not OSError else f"errno {exc.errno}"
    return UploadError("read", path, code, exc.strerror or str(exc), permanent=permanent, hint=hint)
