"""One file in a worker: open, check and read it; when S3 has responded, record the result."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from s3spool.errors import Scope, UploadError
from s3spool.failure.breaker import CircuitBreaker, Times
from s3spool.folder.attributes import read_attributes
from s3spool.folder.directories import NotAFileError
from s3spool.folder.folder import Folder, close_quietly
from s3spool.folder.lease import Lease, release_lease, take_lease
from s3spool.folder.slow_directories import SLOW_S, SlowDirectories
from s3spool.ledger.rows import NO_IDENTITY, Identity, Receipt
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.parts import PartItem
from s3spool.queue.settle import SettleReason
from s3spool.s3.content import Content, NeedsVerificationError, Stored
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.store import Store
from s3spool.upload.large import LargeUploads, PartJob
from s3spool.upload.result import ResultHandler, too_large, translated

SMALL_BYTES = 128 * 1024  # a body up to this size is read at once, under the gate: 100 workers hold 12.5 MiB at most
FORBIDDEN_S = 60.0  # rsync --inplace, for example, makes a file readable only after writing it
UNOPENED = Content("", NO_IDENTITY, None, -1)  # the content of a slow file until `load`


@dataclass(slots=True)
class Job:
    """A file that a worker holds. `request` is None until the checksum of a larger file has been computed."""

    owner: SmallUploads
    item: Item
    content: Content
    request: Any
    times: Times  # when the attempt began
    response: Any = None  # kept where its handling may block

    @property
    def size(self) -> int:
        return self.content.size

    def load(self, sender: CurlTransport) -> bool:
        return self.owner.load(self, sender)

    def finish(self, response: Any) -> bool:
        return self.owner.finish(self, response)

    def finish_blocking(self) -> None:
        self.owner.finish_blocking(self)

    def abandon(self) -> None:
        self.owner.abandon(self)


class SmallUploads:
    """Steps of a worker. `begin` and `finish` run under the gate and must be quick; the other steps may block."""

    def __init__(
        self,
        folder: Folder,
        bucket: Store,
        inbox: Inbox,
        breaker: CircuitBreaker,
        results: ResultHandler,
        large: LargeUploads,
        *,
        settle_s: float,
        max_size: int = 0,
        slow: SlowDirectories | None = None,
    ) -> None:
        """`max_size`: larger files are parked; 0: none is too large."""
        self._slow = slow or SlowDirectories()
        self._folder = folder
        self._bucket = bucket
        self._inbox = inbox
        self._breaker = breaker
        self._results = results
        self._large = large
        self._settle_s = settle_s
        self._max_size = max_size

    def begin(self, item: Item | PartItem) -> Job | PartJob | None:
        """Open and read the file; None when there is nothing to send (the item is finished)."""
        if isinstance(item, PartItem):
            return self._large.begin_part(item)
        if item.large:
            item = self._large.deferred_taken(item)
        if item.tried:
            item = item._replace(success_before=self._breaker.last_success_at)
        if self._slow.any and self._slow.holds(item.path):
            if self._inbox.admit_slow(item.path):
                return Job(self, item, UNOPENED, None, Times(0.0, 0.0))
            self._inbox.put_back(item, first=False)
            self._breaker.refund_probe()
            return None
        job = self._opened(item)
        if job is not None and job.content.body is None and not self._inbox.admit_body(item.path):
            self._close(job)
            self._inbox.put_back(item._replace(body=True), first=False)
            job = None
        if job is None:
            self._breaker.refund_probe()
        return job

    def _opened(self, item: Item) -> Job | None:
        if not self._results.may_start(item):
            return None
        began, identity, fd = time.monotonic(), NO_IDENTITY, -1
        job: Job | None = None
        try:
            fd, status = self._folder.open(item.path)
            identity = Identity.of(status)
            if self._max_size and status.st_size > self._max_size:
                raise too_large(item.path, status.st_size, self._max_size)
            times = Times(time.time(), time.monotonic())
            content = self._read(item, fd, identity, times.unix_s)
            if content is not None:
                if wanted := self._bucket.attributes(item.path):
                    content = content._replace(attributes=read_attributes(fd, wanted))
                job = Job(self, item, content, None, times)
                if content.body is not None and item.receipt is None and not self._bucket.asks_first:
                    job.request = self._bucket.request(content)
        except Exception as exc:  # noqa: BLE001 - any error concerns this file only
            job = None
            if fd < 0:
                identity = self._identity_of(item.path)
            self._not_read(item, identity, exc)
        if fd >= 0 and (job is None or job.content.fd < 0):
            close_quietly(fd)
        if (duration_s := time.monotonic() - began) > SLOW_S:
            self._slow.note_slow_file(item.path, duration_s)
        return job

    def _not_read(self, item: Item, identity: Identity, exc: Exception) -> None:
        """The file is gone, is no regular file, is busy, or has failed."""
        if isinstance(exc, FileNotFoundError):
            self._results.vanished(item)
        elif isinstance(exc, NotAFileError):
            self._results.drop(item, "not a regular file")
        elif _is_busy(exc, identity):
            self._results.settle_again(item, SettleReason.BUSY, None)
        else:
            self._results.failed(item, identity, translated(exc, item.path))

    def load(self, job: Job, sender: CurlTransport) -> bool:
        """The steps that may block: checksum and lookups; False when there is nothing to send."""
        if job.content is UNOPENED and not self._open_late(job):
            return False
        item, content = job.item, job.content
        try:
            if item.receipt is not None and self._unchanged(content, item.receipt):
                self._results.record_success(item, content.identity, item.receipt, job.times)
                return self._not_sent(job)
            if self._large.is_large(content.size):
                return self._start_large(job)
            job.request = self._bucket.request(content)
            if self._bucket.asks_first and (stored := self._bucket.existing(content, job.request)):
                return self._found_there(job, stored)
            if self._results.may_start(item):  # the checksum may have taken longer than the lease
                sender.prepare(job.request)
                return True
            self._breaker.refund_probe()
        except Exception as exc:  # noqa: BLE001 - the same
            self._results.failed(item, content.identity, translated(exc, item.path), job.times.monotonic_s)
        self._close(job)
        return False

    def _start_large(self, job: Job) -> bool:
        """Any worker may send the parts. Raises like `LargeUploads.start`."""
        if not self._large.start(job.item, job.content, job.times):
            return self._not_sent(job)
        job.content = job.content._replace(fd=-1)  # ownership of the descriptor moved to the transfer
        self._inbox.release_body(job.item.path)
        return False

    def _open_late(self, job: Job) -> bool:
        """Open a slow file, outside the gate; False when there is nothing to send."""
        with self._slow.reading(job.item.path):
            opened = self._opened(job.item)
        if opened is None:
            self._breaker.refund_probe()
            return False
        job.content, job.times = opened.content, opened.times
        return True

    def _found_there(self, job: Job, stored: Stored) -> bool:
        """S3 has this content already: a success, if the file still has it."""
        item, content = job.item, job.content
        if content.fd >= 0 and not self._folder.is_same(content.identity, Identity.of(os.fstat(content.fd))):
            self._results.changed(item)
        else:
            self._results.record_success(item, content.identity, stored, job.times)
        return self._not_sent(job)

    def _not_sent(self, job: Job) -> bool:
        self._close(job)
        self._breaker.refund_probe()
        return False

    def finish(self, job: Job, response: Any) -> bool:
        """Handle the response; False when that needs `finish_blocking`."""
        if job.content.fd >= 0 and self._slow.holds(job.item.path):
            job.response = response  # the check of the file may hang
            return False
        try:
            self._handle_response(job, response, may_verify=False)
        except NeedsVerificationError:
            job.response = response
            return False
        return True

    def finish_blocking(self, job: Job) -> None:
        self._handle_response(job, job.response, may_verify=True)

    def abandon(self, job: Job) -> None:
        """The worker died over this file: close it and retry with backoff, so that it cannot kill every worker."""
        self._close(job)
        error = UploadError("send", job.item.path, "WorkerDied", "the worker that sent it died", scope=Scope.FILE)
        self._results.failed(job.item, job.content.identity, error)

    def _read(self, item: Item, fd: int, identity: Identity, now: float) -> Content | None:
        """The content if the file is complete and unchanged; else the file goes back to settle. Raises OSError."""
        lease = take_lease(fd)
        try:
            if lease is Lease.BUSY:
                self._results.settle_again(item, SettleReason.BUSY, None)
                return None
            quiet_s = now - identity.mtime_ns / 1e9
            if quiet_s < self._settle_s and item.seen != identity:
                self._results.settle_again(item, SettleReason.CHANGED, identity)
                return None
            if identity.size > SMALL_BYTES:
                return Content(item.path, identity, None, fd)
            # A held lease blocks writers until the body is read: it cannot be torn.
            body = os.read(fd, identity.size + 1)
            if len(body) != identity.size or (lease is not Lease.FREE and Identity.of(os.fstat(fd)) != identity):
                self._results.changed(item)
                return None
            return Content(item.path, identity, body, -1)
        finally:
            if lease is Lease.FREE:
                release_lease(fd)

    def _handle_response(self, job: Job, response: Any, *, may_verify: bool) -> None:
        item, content = job.item, job.content
        error: UploadError | None = None
        try:
            stored = self._bucket.verify(content, job.request, response, may_verify=may_verify)
        except NeedsVerificationError:
            raise
        except Exception as exc:  # noqa: BLE001 - the same
            error = translated(exc, item.path, answered=True)
        torn = content.fd >= 0 and not self._folder.is_same(content.identity, Identity.of(os.fstat(content.fd)))
        self._close(job)
        if error is None:
            self._breaker.succeeded(job.times)
        if torn and (error is None or error.may_be_torn):
            self._results.changed(item)
        elif error is not None:
            self._results.failed(item, content.identity, error, job.times.monotonic_s)
        else:
            self._results.record_success(item, content.identity, stored, job.times)

    def _unchanged(self, content: Content, receipt: Receipt) -> bool:
        return self._bucket.digest(content, receipt.checksum.partition(":")[0]) == receipt.checksum

    def _identity_of(self, path: str) -> Identity:
        try:
            return self._folder.identity_of(path) or NO_IDENTITY
        except OSError:
            return NO_IDENTITY

    @staticmethod
    def _close(job: Job) -> None:
        """May be called twice: the descriptor number may belong to another file by then."""
        fd = job.content.fd
        if fd >= 0:
            job.content = job.content._replace(fd=-1)
            close_quietly(fd)


def _is_busy(exc: Exception, identity: Identity) -> bool:
    """Whether a writer still holds the file: by a write lease, or because it is not readable yet."""
    young = time.time() - identity.mtime_ns / 1e9 < FORBIDDEN_S
    return isinstance(exc, BlockingIOError) or (isinstance(exc, PermissionError) and young)
