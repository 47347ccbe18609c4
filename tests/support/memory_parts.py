"""Uploads in parts in memory, in the place of a MultipartStore: real reads of real files, answers as scripted."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from s3spool.errors import UploadError
from s3spool.ledger.rows import Multipart, Part
from s3spool.s3.content import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from s3spool.ledger.rows import Identity
    from s3spool.s3.content import Content
    from support.memory_bucket import Answer, MemoryBucket


class PartPut(NamedTuple):
    """A prepared request for one part."""

    content: Content
    upload_id: str
    number: int
    offset: int
    length: int

    def body(self) -> bytes:
        return os.pread(self.content.fd, self.length, self.offset)


class MemoryParts:
    """Thread-safe like its bucket, whose `refusals` and `down` hold for parts and for the other acts alike."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.begun = 0
        self.aborted: list[str] = []
        self.refuse: dict[str, list[UploadError]] = {}  # "create", "complete" ... -> for its next calls, in order

    def check_size(self, path: str, size: int) -> None:
        """Nothing is too large here, unless a test says so."""
        if errors := self.refuse.get("check"):
            raise errors.pop(0)

    def part_size(self, size: int, wanted: int) -> int:
        return wanted

    def create(
        self, path: str, identity: Identity, destination: int, part_size: int, attributes: Mapping[str, str] = {}
    ) -> Multipart:
        self._act("create", path)
        with self.bucket.lock:
            self.begun += 1
            upload_id = f"upload-{self.begun}"
            self.uploads[upload_id] = {}
        return Multipart(path, identity, destination, "memory", path, upload_id, part_size, "md5", 1e9)

    def listed(self, upload: Multipart) -> Mapping[int, Mapping[str, Any]] | None:
        self._act("list", upload.path)
        with self.bucket.lock:
            parts = self.uploads.get(upload.upload_id)
            return None if parts is None else {number: {"body": body} for number, body in parts.items()}

    def matches(
        self, upload: Multipart, content: Content, number: int, there: Mapping[str, Any], ours: Part | None
    ) -> Part | None:
        request = self.part_request(upload, content, number)
        return _part(request) if request.body() == there["body"] else None

    def part_request(self, upload: Multipart, content: Content, number: int) -> PartPut:
        offset = (number - 1) * upload.part_size
        length = min(upload.part_size, content.size - offset)
        return PartPut(content, upload.upload_id, number, offset, length)

    def put(self, request: PartPut) -> UploadError | None:
        """Called with the bucket's lock held."""
        if request.upload_id not in self.uploads:
            return UploadError("upload", request.content.path, "NoSuchUpload", "no such upload")
        self.uploads[request.upload_id][request.number] = request.body()
        return None

    def verify_part(self, upload: Multipart, request: PartPut, answer: Answer, number: int) -> Part:
        if answer.error is not None:
            raise answer.error
        return _part(request)

    def complete(self, upload: Multipart, content: Content, parts: Sequence[Part]) -> Stored:
        self._act("complete", upload.path)
        with self.bucket.lock:
            there = self.uploads.pop(upload.upload_id, None)
            if there is None:
                raise UploadError("complete", upload.path, "NoSuchUpload", "no such upload")
            self.bucket.objects[upload.path] = b"".join(there[number] for number in sorted(there))
        return Stored(upload.key, f"etag-{len(parts)}", "", "v1")

    def abort(self, upload: Multipart) -> None:
        self._act("abort", upload.path)
        with self.bucket.lock:
            self.uploads.pop(upload.upload_id, None)
            self.aborted.append(upload.upload_id)

    def _act(self, name: str, path: str) -> None:
        with self.bucket.lock:
            script = self.refuse.get(name)
            error = script.pop(0) if script else self.bucket.down
        if error is not None:
            raise error


def _part(request: PartPut) -> Part:
    md5 = hashlib.md5(request.body())  # noqa: S324 - a checksum
    return Part(
        request.upload_id, request.number, request.length, md5.hexdigest(), base64.b64encode(md5.digest()).decode()
    )
