"""Large files: begin or resume a multipart upload, send its parts like small files, and complete it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import structlog

from s3spool.errors import Fault, Scope, UploadError
from s3spool.failure.breaker import CircuitBreaker, Times
from s3spool.folder.folder import Folder, close_quietly
from s3spool.ledger.protocol import LedgerBackend
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.parts import COMPLETE, GivenUp, PartItem, Transfer
from s3spool.s3.content import Content
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.multipart import MultipartStore
from s3spool.upload.result import ResultHandler, translated
from s3spool.upload.resume import CHANGED, ResumableUploads

PART_ATTEMPTS = 3  # then the file backs off; its confirmed parts are kept
DURABLE_S = 30.0
VANISHED, FINISHED = "the file is gone", "complete"
_USELESS = {"NoSuchUpload", "BadDigest"}  # S3 has lost the upload, or has other bytes: a new upload has to begin
log = structlog.get_logger()


@dataclass(slots=True)
class PartJob:
    """A part that a worker holds; `request` is None until its checksum has been computed."""

    owner: LargeUploads
    item: PartItem
    times: Times  # when the attempt began
    success_before: float  # see Item
    request: Any = None
    response: Any = None
    sender: CurlTransport | None = None  # while it sends this part

    @property
    def size(self) -> int:
        return 0 if self.request is None else int(self.request.length)

    @property
    def position(self) -> int:
        """Bytes of the part that were sent, as far as this side knows."""
        sender = self.sender
        return 0 if sender is None else min(self.size, sender.position)

    def load(self, sender: CurlTransport) -> bool:
        return self.owner.load(self, sender)

    def finish(self, response: Any) -> bool:
        return self.owner.finish(self, response)

    def finish_blocking(self) -> None:
        self.owner.finish_blocking(self)

    def abandon(self) -> None:
        self.owner.abandon(self)


class LargeUploads:
    """Steps of a worker for files above the threshold. Only `begin_part` runs under the gate."""

    def __init__(
        self,
        folder: Folder,
        bucket: MultipartStore,
        ledger: LedgerBackend,
        inbox: Inbox,
        breaker: CircuitBreaker,
        results: ResultHandler,
        *,
        threshold: int,
        part_size: int,
    ) -> None:
        self._folder = folder
        self._bucket = bucket
        self._ledger = ledger
        self._inbox = inbox
        self._breaker = breaker
        self._results = results
        self._threshold = threshold
        self._part_size = part_size
        self._queue = inbox.parts
        self._resumable = ResumableUploads(folder, bucket, ledger)
        self.ended = 0  # transfers that have ended, with or without success
        self.completed_bytes = 0  # of the files that S3 has confirmed

    def is_large(self, size: int) -> bool:
        return size > self._threshold

    def deferred_taken(self, item: Item) -> Item:
        """A worker has taken a deferred item; if it goes back, its own lane gets it."""
        self._queue.deferred_taken(item.path)
        return item._replace(large=False)

    def start(self, item: Item, content: Content, times: Times) -> bool:
        """Own the descriptor and queue the parts; False, and the item is deferred, while too many are under way.

        Raises like S3.
        """
        self._bucket.check_size(item.path, content.size)
        owner = os.fstat(content.fd).st_uid
        reservation = self._queue.reserve(owner)
        if reservation is None:
            self._queue.defer(item.path, owner)
            self._inbox.put_back(item._replace(large=True), first=False)
            return False
        try:
            self._start(item, content, times, owner)
        finally:
            self._queue.end_reservation(reservation)
        return True

    def _start(self, item: Item, content: Content, times: Times, owner: int) -> None:
        """Begin a multipart upload, or resume the one of an earlier run."""
        upload, parts = self._resumable.resumed(content)
        if upload is None:
            part_size = self._bucket.part_size(content.size, self._part_size)
            upload = self._bucket.create(
                item.path, content.identity, self._ledger.destination, part_size, content.attributes
            )
            # Durable before the first part: an unrecorded upload could never be resumed or aborted.
            durable = threading.Event()
            self._ledger.record_multipart(upload, durable.set)
            if not durable.wait(DURABLE_S):
                self._resumable.abort_quietly(upload, "the ledger cannot be written")
                raise UploadError("record", item.path, "LedgerUnavailable", "the ledger cannot be written")
        count = -(-content.size // upload.part_size)
        pending = deque(number for number in range(1, count + 1) if number not in parts)
        log.info(
            "multipart.resumed" if parts else "multipart.started",
            path=item.path,
            key=upload.key,
            bytes=content.size,
            parts=count,
            parts_done=len(parts),
            part_bytes=upload.part_size,
            upload_id=upload.upload_id,
        )
        self._breaker.succeeded(times, whole=False)
        transfer = Transfer(item, content, upload, count, times, parts, pending or deque([COMPLETE]), owner)
        self._queue.add(transfer)
        self._inbox.wake(len(transfer.pending))

    def begin_part(self, item: PartItem) -> PartJob:
        return PartJob(self, item, Times(time.time(), time.monotonic()), self._breaker.last_success_at)

    def load(self, job: PartJob, sender: CurlTransport) -> bool:
        """Compute the checksum; False when there is nothing to send."""
        transfer, number = job.item
        sending = False
        try:
            if transfer.over or self._stop_if_changed(transfer):  # a removed file ends with this part
                self._breaker.refund_probe()
            elif number == COMPLETE:
                self._complete(job)
            else:
                job.request = self._bucket.part_request(transfer.upload, transfer.content, number)
                sender.prepare(job.request)
                job.sender = sender
                sending = True
        except Exception as exc:  # noqa: BLE001 - any error concerns this file only
            self._part_failed(job, translated(exc, transfer.item.path))
        if not sending:
            self._release(job.item)
        return sending

    def finish(self, job: PartJob, response: Any) -> bool:
        """Always False: a part is handled outside the gate, by `finish_blocking`."""
        job.response = response
        return False

    def finish_blocking(self, job: PartJob) -> None:
        """Handle the response, check the file, and record the part."""
        transfer, number = job.item
        try:
            part = self._bucket.verify_part(transfer.upload, job.request, job.response, number)
        except Exception as exc:  # noqa: BLE001 - the same
            self._part_failed(job, translated(exc, transfer.item.path, answered=True))
        else:
            self._breaker.succeeded(job.times, whole=False)
            if not self._stop_if_changed(transfer):
                self._ledger.record_part(part)
                job.sender = None
                self._queue.done(job.item, part)
                if len(transfer.parts) == transfer.count:
                    self._inbox.wake(1)
        self._release(job.item)

    def abandon(self, job: PartJob) -> None:
        """The worker died while it held this part."""
        transfer = job.item.transfer
        error = UploadError("send", transfer.item.path, "WorkerDied", "the worker that sent a part died", Scope.FILE)
        fault, transfer.item = self._results.assign_fault(transfer.item, error)
        self._queue.stop_transfer(transfer, GivenUp(error, fault or Fault.OWN))
        self._release(job.item)

    def sweep(self, older_than: float) -> None:
        """Abort the uploads in the ledger without progress since `older_than` (Unix seconds), or of other content.

        Uploads of other programs are never touched. After an error the next sweep tries again.
        """
        for upload in self._resumable.known():
            if not self._inbox.claim(upload.path):
                continue  # queued or being sent: its worker decides
            try:
                self._resumable.sweep(upload, older_than)
            finally:
                self._results.done(upload.path)

    def progress(self) -> list[tuple[str, int, int]]:
        """(path, bytes that S3 has confirmed, bytes) of each large file under way."""
        return [(it.item.path, it.bytes_done, it.content.size) for it in self._queue.transfers()]

    def _complete(self, job: PartJob) -> None:
        transfer = job.item.transfer
        parts = [transfer.parts[number] for number in sorted(transfer.parts)]
        stored = self._bucket.complete(transfer.upload, transfer.content, parts)
        self._breaker.succeeded(job.times)
        self._queue.stop_transfer(transfer, FINISHED)
        item, content = transfer.item, transfer.content
        self.completed_bytes += content.size
        self._results.record_success(item, content.identity, stored, transfer.times)
        self._ledger.forget_multipart(transfer.upload.upload_id)

    def _stop_if_changed(self, transfer: Transfer) -> bool:
        try:
            identity = self._folder.identity_of(transfer.item.path)
        except OSError as exc:
            error = translated(exc, transfer.item.path)
            fault, transfer.item = self._results.assign_fault(transfer.item, error)
            self._queue.stop_transfer(transfer, GivenUp(error, fault))
            return True
        if identity is not None and self._folder.is_same(transfer.content.identity, identity):
            return False
        self._queue.stop_transfer(transfer, VANISHED if identity is None else CHANGED)
        return True

    def _part_failed(self, job: PartJob, error: UploadError) -> None:
        """Queue the part again, or stop the transfer: then the file backs off."""
        transfer, number = job.item
        if error.may_be_torn and self._stop_if_changed(transfer):
            self._breaker.refund_probe()
            return
        if error.retry_immediately and number not in transfer.retried_immediately:
            transfer.retried_immediately.add(number)
            self._requeue(job)
            return
        item = transfer.item._replace(success_before=job.success_before)
        fault, item = self._results.assign_fault(item, error, job.times.monotonic_s)
        if not transfer.over:
            transfer.item = item
        if fault is None or fault is Fault.DESTINATION:
            self._requeue(job)
            return
        failures = transfer.failures[number] = transfer.failures.get(number, 0) + 1
        if error.permanent or error.code in _USELESS or number == COMPLETE or failures >= PART_ATTEMPTS:
            self._queue.stop_transfer(transfer, GivenUp(error, fault))
        else:
            log.warning("file.failed", path=error.path, part=number, error_code=error.code, error=error.cause)
            self._requeue(job)

    def _requeue(self, job: PartJob) -> None:
        self._queue.requeue(job.item)
        self._inbox.wake(1)  # another worker may send it sooner

    def _release(self, item: PartItem) -> None:
        """Release the part; the last worker that holds a part of a stopped transfer ends it."""
        if not self._queue.release(item):
            return
        self.ended += 1
        self._inbox.wake(1)  # another transfer may begin
        transfer = item.transfer
        close_quietly(transfer.content.fd)
        why = transfer.over
        if why == FINISHED:
            return
        if isinstance(why, GivenUp):
            if why.fault is None:
                self._inbox.put_back(transfer.item, first=False)
                return
            parked = self._results.record_failure(transfer.item, transfer.content.identity, why.error, why.fault)
            if parked or why.error.code in _USELESS:
                self._resumable.abort_quietly(transfer.upload, why.error.code)
            return
        self._resumable.abort_quietly(transfer.upload, why)
        if why == VANISHED:
            self._results.vanished(transfer.item)
        else:
            self._results.changed(transfer.item)
