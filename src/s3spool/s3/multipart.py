"""Uploads in parts: create, list, complete, abort through boto3; the parts themselves go like small files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import awscrt.checksums
import botocore.exceptions

from s3spool.content import Content, Stored
from s3spool.errors import UploadError
from s3spool.ledger.rows import Identity, Multipart, Part
from s3spool.s3 import checksums
from s3spool.s3.boto3_transport import translated
from s3spool.s3.store import MIB, Store, look, mtime_text
from s3spool.s3.transport import Answer, Request

MAX_PARTS = 10_000  # S3 user guide, "Multipart upload limits"
MAX_OBJECT_BYTES = 5 * 1024**4  # the same
_GONE = {"NoSuchUpload", "HTTP404", "NoSuchKey"}
_BOTO = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)


class MultipartStore:
    """Thread-safe. All methods but `part_request` and `judge_part` ask S3 and block."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def part_size(self, size: int, wanted: int) -> int:
        """`wanted`, raised to a whole MiB where 10,000 parts would not suffice."""
        least = -(-size // MAX_PARTS)
        return wanted if least <= wanted else -(-least // MIB) * MIB

    def check_size(self, path: str, size: int) -> None:
        """Raises UploadError (permanent) for more than S3 takes."""
        if size > MAX_OBJECT_BYTES:
            raise UploadError(
                "upload",
                path,
                "EntityTooLarge",
                f"the file has {size} bytes, S3 takes {MAX_OBJECT_BYTES} (5 TiB)",
                permanent=True,
                hint="split the file",
            )

    def create(self, path: str, identity: Identity, destination: int, part_size: int) -> Multipart:
        """Raises UploadError."""
        store = self._store
        key = store.key(path, identity.mtime_ns / 1e9)
        algorithm = store.algorithm
        arguments = store.create_arguments(mtime_text(identity.mtime_ns))
        if algorithm != "md5":
            arguments["ChecksumAlgorithm"] = algorithm.upper()
            # Composite checksums cannot be compared with what was read as a whole; CRC64NVME is always full.
            arguments["ChecksumType"] = "COMPOSITE" if algorithm == "sha256" else "FULL_OBJECT"
        try:
            answer = store.client.create_multipart_upload(Bucket=store.bucket, Key=key, **arguments)
        except _BOTO as exc:
            raise store.refused(translated(exc, path, "create multipart upload")) from exc
        return Multipart(
            path, identity, destination, store.bucket, key, answer["UploadId"], part_size, algorithm, time.time()
        )

    def listed(self, upload: Multipart) -> dict[int, Mapping[str, Any]] | None:
        """What S3 has of it, by part number; None when S3 no longer knows the upload. Raises UploadError."""
        found: dict[int, Mapping[str, Any]] = {}
        try:
            pages = self._store.client.get_paginator("list_parts").paginate(
                Bucket=upload.bucket, Key=upload.key, UploadId=upload.upload_id
            )
            for page in pages:
                for part in page.get("Parts", []):
                    found[part["PartNumber"]] = part
        except _BOTO as exc:
            error = translated(exc, upload.path, "list parts")
            if error.code in _GONE:
                return None
            raise error from exc
        return found

    def matches(
        self, upload: Multipart, content: Content, number: int, there: Mapping[str, Any], ours: Part | None
    ) -> Part | None:
        """The part as we know it if what S3 has is what the file holds; None to send it again. Raises OSError."""
        offset = (number - 1) * upload.part_size
        length = min(upload.part_size, content.size - offset)
        etag = there["ETag"].strip('"')
        if length <= 0 or there["Size"] != length:
            return None
        if ours is not None and ours.etag == etag and ours.size == length:
            return ours
        # The ledger had not heard of it when we died: what S3 has must prove itself.
        if upload.algorithm != "md5":
            value = checksums.of_range(upload.algorithm, content.fd, offset, length)
            if there.get(f"Checksum{upload.algorithm.upper()}") == value:
                return Part(upload.upload_id, number, length, etag, value)
        md5 = checksums.of_range("md5", content.fd, offset, length)
        if checksums.md5_hex(md5) != etag:
            return None
        value = md5 if upload.algorithm == "md5" else checksums.of_range(upload.algorithm, content.fd, offset, length)
        return Part(upload.upload_id, number, length, etag, value)

    def part_request(self, upload: Multipart, content: Content, number: int) -> Request:
        """Reads the range once for its checksum. Raises OSError."""
        offset = (number - 1) * upload.part_size
        length = min(upload.part_size, content.size - offset)
        value = checksums.of_range(upload.algorithm, content.fd, offset, length)
        headers = ((checksums.header_of(upload.algorithm), value), *self._store.owner_headers)
        query = urlencode({"partNumber": number, "uploadId": upload.upload_id})
        return Request(
            upload.key, query, headers, None, content.fd, offset, length, f"{upload.algorithm}:{value}", content.path
        )

    def judge_part(self, upload: Multipart, request: Request, answer: Answer, number: int) -> Part:
        """Raises UploadError; OSError where the range has to be read again and cannot be."""
        headers = self._store.accepted(request, answer)
        algorithm, _, value = request.checksum.partition(":")
        etag = headers.get("etag", "").strip('"')
        if not etag:
            raise self._store.unconfirmed(request, "without an ETag for the part")
        if algorithm == "md5":
            proven = etag == checksums.md5_hex(value)
        elif headers.get(checksums.header_of(algorithm)) is not None:
            proven = headers[checksums.header_of(algorithm)] == value
        else:
            md5 = checksums.of_range("md5", request.fd, request.offset, request.length)
            proven = etag == checksums.md5_hex(md5)
        if not proven:
            raise self._store.mismatch(request, "the part's checksum and ETag are not those of what was read")
        return Part(upload.upload_id, number, request.length, etag, value)

    def complete(self, upload: Multipart, content: Content, parts: Sequence[Part]) -> Stored:
        """Review all parts, put them together, and make sure of the result; settles an ambiguous end by asking.

        Raises UploadError; its code is NoSuchUpload when S3 has neither the upload nor the object.
        """
        if sum(part.size for part in parts) != content.size or [p.number for p in parts] != list(
            range(1, len(parts) + 1)
        ):
            raise UploadError("complete", upload.path, "InvalidPart", "the parts do not add up to the file")
        checksum = _whole(upload.algorithm, parts)
        try:
            answer = self._store.client.complete_multipart_upload(
                **self._complete_arguments(upload, content, parts, checksum)
            )
        except _BOTO as exc:
            error = translated(exc, upload.path, "complete multipart upload")
            stored = self._stored_after_all(upload, content, parts, checksum)
            if stored is not None:
                with contextlib.suppress(UploadError):  # there is none, unless the object was there before
                    self.abort(upload)
                return stored
            if error.code == "PreconditionFailed":
                raise self._store.conflict(upload.path, upload.key) from exc
            raise error from exc
        etag = answer.get("ETag", "").strip('"')
        answered = answer.get(f"Checksum{upload.algorithm.upper()}", "")
        if (checksum and answered == checksum) or etag == _composite_etag(parts):
            return Stored(upload.key, etag, _named(upload.algorithm, checksum), answer.get("VersionId", ""))
        stored = self._stored_after_all(upload, content, parts, checksum)
        if stored is None:
            raise UploadError(
                "complete", upload.path, "Unconfirmed", "S3 completed the upload but does not show its content"
            )
        return stored

    def abort(self, upload: Multipart) -> None:
        """Raises UploadError; an upload S3 does not know is fine."""
        try:
            self._store.client.abort_multipart_upload(Bucket=upload.bucket, Key=upload.key, UploadId=upload.upload_id)
        except _BOTO as exc:
            error = translated(exc, upload.path, "abort multipart upload")
            if error.code not in _GONE:
                raise error from exc

    def _stored_after_all(
        self, upload: Multipart, content: Content, parts: Sequence[Part], checksum: str
    ) -> Stored | None:
        """Whether the object is there and is ours, whatever the answer to Complete was. Raises UploadError."""
        found = look(self._store.client, upload.bucket, upload.key, upload.path)
        if found is None or found.size != content.size:
            return None
        if found.checksums.get(upload.algorithm) == checksum != "" or found.etag == _composite_etag(parts):
            return Stored(upload.key, found.etag, _named(upload.algorithm, checksum), found.version_id)
        return None

    def _complete_arguments(
        self, upload: Multipart, content: Content, parts: Sequence[Part], checksum: str
    ) -> dict[str, Any]:
        name = f"Checksum{upload.algorithm.upper()}"
        arguments: dict[str, Any] = {
            "Bucket": upload.bucket,
            "Key": upload.key,
            "UploadId": upload.upload_id,
            "MultipartUpload": {"Parts": list(_listed_parts(name if upload.algorithm != "md5" else "", parts))},
            "MpuObjectSize": content.size,
        }
        if checksum:
            arguments |= {name: checksum, "ChecksumType": "FULL_OBJECT"}
        if self._store.never:
            arguments["IfNoneMatch"] = "*"
        return arguments


def _listed_parts(name: str, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    for part in parts:
        listed: dict[str, Any] = {"PartNumber": part.number, "ETag": f'"{part.etag}"'}
        if name:
            listed[name] = part.checksum
        yield listed


def _whole(algorithm: str, parts: Sequence[Part]) -> str:
    """Base64 of the checksum of the whole file from those of its parts; "" for algorithms that do not combine."""
    if algorithm not in {"crc64nvme", "crc32"}:
        return ""
    width = 8 if algorithm == "crc64nvme" else 4
    combine = awscrt.checksums.combine_crc64nvme if algorithm == "crc64nvme" else awscrt.checksums.combine_crc32
    total = 0
    for part in parts:
        value = int.from_bytes(base64.b64decode(part.checksum), "big")
        total = combine(total, value, part.size)
    return base64.b64encode(total.to_bytes(width, "big")).decode()


def _composite_etag(parts: Sequence[Part]) -> str:
    """The MD5 of the parts' MD5s, and their number: what S3 shows for objects put together of parts."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _named(algorithm: str, checksum: str) -> str:
    return f"{algorithm}:{checksum}" if checksum else ""
