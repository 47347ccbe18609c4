"""The well-behaved part of the S3 stand-in: one bucket in memory, answering as S3 would.

It checks what S3 checks (digests, part lists, preconditions, the clock), but neither signatures nor the
minimum part size, so that a test may send small parts.
"""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from support.s3_messages import DIGESTS, NAMESPACE, Answer, Request, checksum, md5_base64, md5_hex

_MAX_SKEW_S = 900
_ANNOUNCED = ("x-amz-checksum-algorithm", "x-amz-checksum-type")
_KEPT = (
    "x-amz-meta-",
    "x-amz-storage-class",
    "x-amz-server-side-encryption",
    "x-amz-tagging",
    "content-type",
)


@dataclass(kw_only=True)
class StoredObject:
    body: bytes = field(repr=False)
    etag: str  #: with its quotes
    checksums: dict[str, str]  #: "x-amz-checksum-..." to value
    headers: dict[str, str]  #: metadata, storage class, encryption, tags: as they came
    modified: datetime


@dataclass(kw_only=True)
class Upload:
    """A multipart upload in progress."""

    key: str
    headers: dict[str, str]
    started: datetime
    parts: dict[int, StoredObject] = field(default_factory=dict)


class Store:
    """One bucket; `handle` may be called from any thread."""

    def __init__(self, bucket: str, region: str) -> None:
        self.bucket = bucket
        self.region = region
        self.objects: dict[str, StoredObject] = {}
        self.uploads: dict[str, Upload] = {}
        self.date_skew_s = 0.0
        self.on_stored: Callable[[str, StoredObject], None] = lambda _key, _stored: None  #: before the answer
        self._lock = threading.Lock()
        self._upload_count = 0

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + self.date_skew_s, UTC)

    def handle(self, request: Request) -> Answer:
        with self._lock:
            if self._is_skewed(request):
                return Answer.error(403, "RequestTimeTooSkewed", "The difference between the clocks is too large")
            if request.bucket != self.bucket:
                return Answer.error(404, "NoSuchBucket", "The specified bucket does not exist")
            operation = self._operation(request)
            return operation(request) if operation else Answer.error(501, "NotImplemented")

    def _operation(self, request: Request) -> Callable[[Request], Answer] | None:
        query = request.query
        if not request.key:
            uploads = self._list_uploads if "uploads" in query else self._list_objects
            return {"HEAD": self._head_bucket, "GET": uploads}.get(request.method)
        if "uploads" in query:
            return {"POST": self._create_upload}.get(request.method)
        if "uploadId" in query:
            if query["uploadId"] not in self.uploads:
                return lambda _: Answer.error(404, "NoSuchUpload", "The specified upload does not exist")
            return {
                "PUT": self._upload_part,
                "GET": self._list_parts,
                "POST": self._complete_upload,
                "DELETE": self._abort_upload,
            }.get(request.method)
        return {"PUT": self._put, "HEAD": self._get, "GET": self._get}.get(request.method)

    def _is_skewed(self, request: Request) -> bool:
        sent = request.headers.get("x-amz-date")
        if not sent:
            return False
        at = datetime.strptime(sent, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return abs((at - self.now()).total_seconds()) > _MAX_SKEW_S

    def _head_bucket(self, request: Request) -> Answer:
        return Answer(headers={"x-amz-bucket-region": self.region})

    def _list_objects(self, request: Request) -> Answer:
        query = request.query
        prefix, limit = query.get("prefix", ""), int(query.get("max-keys", "1000"))
        after = query.get("continuation-token") or query.get("start-after", "")
        found = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        children: list[tuple[str, object]] = [("Name", self.bucket), ("Prefix", prefix), ("MaxKeys", limit)]
        children += [("KeyCount", len(found[:limit])), ("IsTruncated", str(len(found) > limit).lower())]
        if len(found) > limit:
            children.append(("NextContinuationToken", found[limit - 1]))
        for key in found[:limit]:
            stored = self.objects[key]
            entry = [("Key", key), ("Size", len(stored.body)), ("ETag", stored.etag)]
            children.append(("Contents", [*entry, ("LastModified", _iso(stored.modified))]))
        return Answer.document("ListBucketResult", children)

    def _list_uploads(self, request: Request) -> Answer:
        children: list[tuple[str, object]] = [("Bucket", self.bucket), ("IsTruncated", "false")]
        for upload_id, upload in self.uploads.items():
            entry = [("Key", upload.key), ("UploadId", upload_id), ("Initiated", _iso(upload.started))]
            children.append(("Upload", entry))
        return Answer.document("ListMultipartUploadsResult", children)

    def _put(self, request: Request) -> Answer:
        if refused := _refusal(request) or self._conflict(request):
            return refused
        self.objects[request.key] = stored = self._stored(request)
        self.on_stored(request.key, stored)
        return Answer(headers={"ETag": stored.etag, **stored.checksums})

    def _get(self, request: Request) -> Answer:
        stored = self.objects.get(request.key)
        if stored is None:
            return Answer.error(404, "NoSuchKey", "The specified key does not exist")
        headers = stored.headers | {"ETag": stored.etag, "Last-Modified": _http_date(stored.modified)}
        if request.headers.get("x-amz-checksum-mode") == "ENABLED":
            headers |= stored.checksums
        return Answer(headers=headers, body=stored.body)

    def _create_upload(self, request: Request) -> Answer:
        self._upload_count += 1
        upload_id = f"upload-{self._upload_count}"
        self.uploads[upload_id] = Upload(key=request.key, headers=request.headers, started=self.now())
        children = [("Bucket", self.bucket), ("Key", request.key), ("UploadId", upload_id)]
        answer = Answer.document("InitiateMultipartUploadResult", children)
        # S3 says which checksum it is going to take.
        answer.headers |= {name: value for name, value in request.headers.items() if name in _ANNOUNCED}
        return answer

    def _upload_part(self, request: Request) -> Answer:
        if refused := _refusal(request):
            return refused
        stored = self._stored(request)
        self.uploads[request.query["uploadId"]].parts[int(request.query["partNumber"])] = stored
        return Answer(headers={"ETag": stored.etag, **stored.checksums})

    def _list_parts(self, request: Request) -> Answer:
        query = request.query
        parts = self.uploads[query["uploadId"]].parts
        limit, after = int(query.get("max-parts", "1000")), int(query.get("part-number-marker", "0"))
        numbers = sorted(number for number in parts if number > after)
        children: list[tuple[str, object]] = [("UploadId", query["uploadId"]), ("Key", request.key)]
        children.append(("IsTruncated", str(len(numbers) > limit).lower()))
        if len(numbers) > limit:
            children.append(("NextPartNumberMarker", numbers[limit - 1]))
        for number in numbers[:limit]:
            part = parts[number]
            entry = [("PartNumber", number), ("Size", len(part.body)), ("ETag", part.etag)]
            entry += [(f"Checksum{name.rpartition('-')[2].upper()}", value) for name, value in part.checksums.items()]
            children.append(("Part", [*entry, ("LastModified", _iso(part.modified))]))
        return Answer.document("ListPartsResult", children)

    def _complete_upload(self, request: Request) -> Answer:
        upload = self.uploads[request.query["uploadId"]]
        wanted = _part_list(request.body)
        if sorted(wanted) != list(wanted):
            return Answer.error(400, "InvalidPartOrder")
        for number, etag in wanted.items():
            if number not in upload.parts or upload.parts[number].etag.strip('"') != etag.strip('"'):
                return Answer.error(400, "InvalidPart", f"part {number} is missing or another one")
        parts = [upload.parts[number] for number in wanted]
        whole = Request(**vars(request) | {"body": b"".join(part.body for part in parts)})
        if refused := _refusal(whole) or self._conflict(request):
            return refused
        algorithm = upload.headers.get("x-amz-checksum-algorithm", "").lower()
        stored = self._stored(whole)
        stored.etag = f'"{md5_hex(b"".join(bytes.fromhex(part.etag.strip(chr(34))) for part in parts))}-{len(parts)}"'
        stored.headers = _kept(upload.headers)
        if algorithm == "crc64nvme" or upload.headers.get("x-amz-checksum-type") == "FULL_OBJECT":
            stored.checksums = {f"x-amz-checksum-{algorithm}": checksum(algorithm, whole.body)}
        elif algorithm in DIGESTS:
            digests = b"".join(DIGESTS[algorithm](part.body) for part in parts)
            stored.checksums = {f"x-amz-checksum-{algorithm}": f"{checksum(algorithm, digests)}-{len(parts)}"}
        self.objects[request.key] = stored
        self.on_stored(request.key, stored)
        del self.uploads[request.query["uploadId"]]
        children: list[tuple[str, object]] = [
            ("Bucket", self.bucket),
            ("Key", request.key),
            ("ETag", stored.etag),
        ]
        children += [(f"Checksum{name.rpartition('-')[2].upper()}", value) for name, value in stored.checksums.items()]
        return Answer.document("CompleteMultipartUploadResult", children)

    def _abort_upload(self, request: Request) -> Answer:
        del self.uploads[request.query["uploadId"]]
        return Answer(status=204)

    def _conflict(self, request: Request) -> Answer | None:
        if request.headers.get("if-none-match") == "*" and request.key in self.objects:
            return Answer.error(412, "PreconditionFailed", "At least one of the pre-conditions did not hold")
        return None

    def _stored(self, request: Request) -> StoredObject:
        sent = {name: value for name, value in request.headers.items() if _algorithm(name)}
        return StoredObject(
            body=request.body,
            etag=f'"{md5_hex(request.body)}"',
            checksums=sent,
            headers=_kept(request.headers),
            modified=self.now(),
        )


def _refusal(request: Request) -> Answer | None:
    """S3's answer to a body that does not fit its digests."""
    for name, value in request.headers.items():
        algorithm = _algorithm(name)
        if algorithm and value != checksum(algorithm, request.body):
            return Answer.error(400, "BadDigest", f"The {algorithm} you specified did not match what we received")
    if request.headers.get("content-md5", md5_base64(request.body)) != md5_base64(request.body):
        return Answer.error(400, "BadDigest", "The Content-MD5 you specified did not match what we received")
    return None


def _algorithm(header: str) -> str:
    """The digest a header carries, "" for other headers."""
    name = header.removeprefix("x-amz-checksum-")
    return name if name != header and name in DIGESTS else ""


def _part_list(body: bytes) -> dict[int, str]:
    document = ET.fromstring(body)  # noqa: S314 - written by the client under test
    parts = document.findall(f"{{{NAMESPACE}}}Part") or document.findall("Part")
    fields = [{child.tag.rpartition("}")[2]: child.text or "" for child in part} for part in parts]
    return {int(part["PartNumber"]): part["ETag"] for part in fields}


def _kept(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith(_KEPT)}


def _iso(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _http_date(at: datetime) -> str:
    return at.strftime("%a, %d %b %Y %H:%M:%S GMT")
