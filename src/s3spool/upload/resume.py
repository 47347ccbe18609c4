"""Resumes or aborts the multipart uploads that an earlier run or attempt has left in S3."""

from __future__ import annotations

import structlog

from s3spool.errors import UploadError
from s3spool.folder.folder import Folder
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.rows import Multipart, Part
from s3spool.s3.content import Content
from s3spool.s3.multipart import MultipartStore

CHANGED = "the file changed"
log = structlog.get_logger()


class ResumableUploads:
    """Only uploads in the ledger. Thread-safe; blocks for S3."""

    def __init__(self, folder: Folder, bucket: MultipartStore, ledger: LedgerBackend) -> None:
        self._folder = folder
        self._bucket = bucket
        self._ledger = ledger

    def known(self) -> list[Multipart]:
        """Raises LedgerError."""
        with self._ledger.reader() as reader:
            return reader.multiparts()

    def resumed(self, content: Content) -> tuple[Multipart | None, dict[int, Part]]:
        """The unfinished upload of this content, and its parts; an upload of other content is aborted."""
        with self._ledger.reader() as reader:
            upload = reader.multipart(content.path)
            ours = {part.number: part for part in reader.parts(upload.upload_id)} if upload else {}
        if upload is None:
            return None, {}
        if upload.identity != content.identity or upload.destination != self._ledger.destination:
            self.abort(upload, CHANGED)
            return None, {}
        there = self._bucket.listed(upload)
        if there is None:
            self.abort(upload, "S3 no longer knows it")
            return None, {}
        parts: dict[int, Part] = {}
        for number, listed in there.items():
            part = self._bucket.matches(upload, content, number, listed, ours.get(number))
            if part is not None:
                parts[number] = part
                if number not in ours:
                    self._ledger.record_part(part)
        return upload, parts

    def sweep(self, upload: Multipart, older_than: float) -> None:
        """Abort the upload if it is stale or its file has changed. Errors are logged; the next sweep tries again."""
        claims = self._ledger.claims
        if claims is not None and not claims.take([upload.path]):
            return  # another daemon may be sending it
        try:
            if upload.started_at < older_than and self._progressed_at(upload) < older_than:
                self.abort(upload, "it is stale")
            elif self._folder.identity_of(upload.path) != upload.identity:
                self.abort(upload, CHANGED)
        except (UploadError, OSError) as exc:
            log.warning("library.warning", logger="multipart", message=f"an upload could not be aborted: {exc}")
        finally:
            if claims is not None:
                claims.give_back([upload.path])

    def abort_quietly(self, upload: Multipart, reason: str) -> None:
        try:
            self.abort(upload, reason)
        except UploadError as exc:
            # It stays in the ledger: the next attempt of this file, or the daily sweep, tries again.
            log.warning("library.warning", logger="multipart", message=f"an upload could not be aborted: {exc}")

    def abort(self, upload: Multipart, reason: str) -> None:
        self._bucket.abort(upload)
        self._ledger.forget_multipart(upload.upload_id)
        log.info("multipart.aborted", path=upload.path, key=upload.key, upload_id=upload.upload_id, reason=str(reason))

    def _progressed_at(self, upload: Multipart) -> float:
        """When S3 stored its last part (Unix seconds, by S3's clock); without parts, when it began."""
        listed = (self._bucket.listed(upload) or {}).values()
        return max(
            (part["LastModified"].timestamp() for part in listed if "LastModified" in part), default=upload.started_at
        )
