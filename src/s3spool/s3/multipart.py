"""Multipart uploads: requests for parts, their verification, and completion with its ambiguous ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import botocore.exceptions
import structlog

from s3spool.errors import UploadError, unfit
from s3spool.ledger.rows import Multipart, Part
from s3spool.s3 import checksums
from s3spool.s3.client import Found, look
from s3spool.s3.content import Content, Stored
from s3spool.s3.errors import FAILURES, conflict, mismatch, untrusted, untrusted_success
from s3spool.s3.multipart_uploads import GONE, Uploads
from s3spool.s3.options import common_headers
from s3spool.s3.store import MIB
from s3spool.s3.transport import Answer, Request

MAX_PARTS = 10_000  # S3 user guide, "Multipart upload limits"
MAX_OBJECT_BYTES = 5 * 1024**4  # the same
log = structlog.get_logger()


class MultipartStore(Uploads):
    """Thread-safe. All methods raise UploadError, those with `content` OSError."""

    def part_size(self, size: int, wanted: int) -> int:
        """Return `wanted`, raised to whole MiB if 10,000 parts of it are too few; all in bytes."""
        least = -(-size // MAX_PARTS)
        return wanted if least <= wanted else -(-least // MIB) * MIB

    def check_size(self, path: str, size: int) -> None:
        """Raises UploadError (permanent) for more bytes than an object can have."""
        if size > MAX_OBJECT_BYTES:
            cause = f"the file has {size} bytes, S3 takes {MAX_OBJECT_BYTES} (5 TiB)"
            raise unfit(path, "EntityTooLarge", cause, "split the file")

    def matches(
        self, upload: Multipart, content: Content, number: int, there: Mapping[str, Any], ours: Part | None
    ) -> Part | None:
        """Return the part if S3's (`there`) equals the file's, None to send it again; `ours` is the ledger's.

        Raises OSError.
        """
        offset = (number - 1) * upload.part_size
        length = min(upload.part_size, content.size - offset)
        etag = there.get("ETag", "").strip('"')
        if length <= 0 or there.get("Size") != length:
            return None
        if ours is not None and ours.etag == etag and ours.size == length:
            return ours
        # The daemon died before the ledger knew this part: checksum or ETag must prove it.
        value = checksums.of_range(upload.algorithm, content.fd, offset, length)
        proven = there.get(f"Checksum{upload.algorithm.upper()}") == value
        if not proven:
            md5 = value if upload.algorithm == "md5" else checksums.of_range("md5", content.fd, offset, length)
            proven = etag == checksums.md5_hex(md5)
        return Part(upload.upload_id, number, length, etag, value) if proven else None

    def part_request(self, upload: Multipart, content: Content, number: int) -> Request:
        """Return the request; read the range once for its checksum. Raises OSError."""
        # A store may take the upload and refuse its parts' checksums: then MD5 is used.
        algorithm = "md5" if self._store.algorithm == "md5" else upload.algorithm
        offset = (number - 1) * upload.part_size
        length = min(upload.part_size, content.size - offset)
        value = checksums.of_range(algorithm, content.fd, offset, length)
        headers = ((checksums.header_of(algorithm), value), *common_headers(self._store.destination))
        query = urlencode({"partNumber": number, "uploadId": upload.upload_id})
        checksum = f"{algorithm}:{value}"
        return Request(upload.key, query, headers, None, content.fd, offset, length, checksum, content.path)

    def verify_part(self, upload: Multipart, request: Request, answer: Answer, number: int) -> Part:
        """Return the confirmed part. Raises UploadError; OSError if the range must be read again."""
        headers = self._store.accepted(request, answer)
        algorithm, _, value = request.checksum.partition(":")
        etag = headers.get("etag", "").strip('"')
        if not etag:
            raise untrusted(request, "without an ETag for the part")
        echoed = headers.get(checksums.header_of(algorithm)) if algorithm != "md5" else None
        if echoed is not None and echoed != value:
            raise mismatch(request, f"the {algorithm} of part {number} is {echoed}, ours {value}")
        if echoed is None:
            md5 = value if algorithm == "md5" else checksums.of_range("md5", *request[4:7])
            if etag != checksums.md5_hex(md5):
                raise untrusted(request, f"the ETag of part {number} ({etag}) is not the MD5 of its bytes")
        # Only a checksum of the upload's algorithm can be combined to that of the whole object.
        return Part(upload.upload_id, number, request.length, etag, value if algorithm == upload.algorithm else "")

    def complete(self, upload: Multipart, content: Content, parts: Sequence[Part]) -> Stored:
        """Complete the upload and return the proof; an ambiguous answer is settled by HEAD. Blocks.

        Raises UploadError, with code NoSuchUpload if S3 has neither the upload nor the object; OSError if the file must
        be read again.
        """
        if sum(part.size for part in parts) != content.size or [p.number for p in parts] != list(
            range(1, len(parts) + 1)
        ):
            raise UploadError("complete", upload.path, "InvalidPart", "the parts do not add up to the file")
        if self._store.asks_first and (there := self._existing(upload, content, parts)):
            return there
        checksum = _whole(upload.algorithm, parts)
        try:
            answer = self._store.client.complete_multipart_upload(
                **self._complete_arguments(upload, content, parts, checksum)
            )
        except FAILURES as exc:
            error = self.failed(exc, upload.path, "complete multipart upload")
            stored = self._settled(upload, content, parts, error, ambiguous=_is_ambiguous(exc, error))
            if stored is None:
                raise error from exc
            return stored
        etag = answer.get("ETag", "").strip('"')
        answered = answer.get(f"Checksum{upload.algorithm.upper()}", "") if checksum else ""
        if answered == checksum if answered else etag == _composite_etag(parts):
            return Stored(upload.key, etag, _prefixed(upload.algorithm, checksum), answer.get("VersionId", ""))
        stored = self._stored(upload, content, parts, self._look(upload))
        if stored is None:
            raise untrusted_success(
                "complete multipart upload", upload.path, f"its ETag ({etag or 'none'}) is not the parts'"
            )
        return stored

    def try_complete(self, upload: Multipart, content: Content, part: Part) -> None:
        """Complete with this one part, without verification. Raises UploadError."""
        checksum = _whole(upload.algorithm, [part])
        try:
            self._store.client.complete_multipart_upload(**self._complete_arguments(upload, content, [part], checksum))
        except FAILURES as exc:
            raise self.failed(exc, upload.path, "complete multipart upload") from exc

    def _existing(self, upload: Multipart, content: Content, parts: Sequence[Part]) -> Stored | None:
        """Return the object at the key, None if there is none. Raises UploadError for another content."""
        found = self._look(upload)
        if found is None:
            return None
        stored = self._stored(upload, content, parts, found)
        if stored is None:
            raise conflict(upload.path, upload.key)
        self._leave(upload)
        return stored

    def _settled(
        self, upload: Multipart, content: Content, parts: Sequence[Part], error: UploadError, *, ambiguous: bool
    ) -> Stored | None:
        """Return the object if it has our content although Complete failed. Raises UploadError, OSError."""
        occupied = error.code == "PreconditionFailed" and self._store.never
        if occupied:
            self._store.guard.refused()
        if not occupied and not ambiguous:
            return None
        found = self._look(upload)
        stored = self._stored(upload, content, parts, found)
        if occupied and found is not None and stored is None:
            raise conflict(upload.path, upload.key)
        # An equal object may be older than this upload. While the upload exists, Complete has not happened.
        known = occupied or error.code in GONE
        if stored is None or (not known and self.listed(upload) is not None):
            return None
        self._leave(upload)
        return stored

    def _leave(self, upload: Multipart) -> None:
        """Abort an upload that is no longer needed; a failure is logged."""
        try:
            self.abort(upload)
        except UploadError as exc:
            log.warning("library.warning", logger="multipart", message=f"an upload could not be aborted: {exc}")

    def _stored(self, upload: Multipart, content: Content, parts: Sequence[Part], found: Found | None) -> Stored | None:
        """Return the object if its content is that of the file, however it was uploaded. Raises OSError."""
        if found is None or found.size != content.size:
            return None
        whole = _whole(upload.algorithm, parts)
        stored = Stored(upload.key, found.etag, _prefixed(upload.algorithm, whole), found.version_id)
        if (whole and found.checksums.get(upload.algorithm) == whole) or found.etag == _composite_etag(parts):
            return stored
        # The object was sent in one piece, or in parts of another size.
        for algorithm, value in found.checksums.items():
            if value and "-" not in value:
                same = checksums.of_range(algorithm, content.fd, 0, content.size) == value
                return stored if same else None
        md5 = checksums.md5_hex(checksums.of_range("md5", content.fd, 0, content.size)) if "-" not in found.etag else ""
        return stored if md5 and md5 == found.etag else None

    def _look(self, upload: Multipart) -> Found | None:
        return look(self._store.client, upload.bucket, upload.key, upload.path)

    def _complete_arguments(
        self, upload: Multipart, content: Content, parts: Sequence[Part], checksum: str
    ) -> dict[str, Any]:
        name = f"Checksum{upload.algorithm.upper()}"
        arguments: dict[str, Any] = {
            **self.named(upload),
            "MultipartUpload": {"Parts": list(_listed_parts(name if upload.algorithm != "md5" else "", parts))},
            "MpuObjectSize": content.size,
        }
        if checksum and upload.algorithm in checksums.CRCS:
            arguments |= {name: checksum, "ChecksumType": "FULL_OBJECT"}
        if self._store.never:
            arguments["IfNoneMatch"] = "*"
        return arguments


def _listed_parts(name: str, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    for part in parts:
        listed: dict[str, Any] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
        if name and part.checksum:
            listed[name] = part.checksum
        yield listed


def _whole(algorithm: str, parts: Sequence[Part]) -> str:
    """Return the checksum that S3 shows for an object of these parts; "" if it cannot be known."""
    if algorithm == "md5" or not all(part.checksum for part in parts):
        return ""
    return checksums.of_parts(algorithm, [(part.checksum, part.size) for part in parts])


def _composite_etag(parts: Sequence[Part]) -> str:
    """Return the ETag that S3 shows for an object of these parts: the MD5 of their MD5s, and their number."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _prefixed(algorithm: str, checksum: str) -> str:
    return f"{algorithm}:{checksum}" if checksum else ""


def _is_ambiguous(exc: Exception, error: UploadError) -> bool:
    """Return whether S3 may have completed the upload: no answer arrived, or one that leaves it open."""
    if not isinstance(exc, botocore.exceptions.ClientError):
        return True
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return error.code in GONE or status < 300 or status >= 500  # noqa: PLR2004 - 3xx and 4xx are clear
