"""How objects are stored: each request is the one that botocore makes for the same options, and servers keep them."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from msgspec.structs import replace

from s3spool.config.schema import DestinationConfig as Options
from s3spool.demo.seaweed import Seaweed
from s3spool.errors import Scope, UploadError
from s3spool.ledger.rows import NO_IDENTITY
from s3spool.s3.content import Content
from s3spool.s3.content_types import TYPES, UNKNOWN, content_type_of
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.object_rules import PreparedOptions
from s3spool.s3.options import mtime_text
from s3spool.s3.store import Store, look
from support.daemon import Daemon
from support.faulty import FaultyS3
from support.objects import content_of
from support.s3_messages import Request
from support.stores import content, destination, put, store_of, use

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BODY = b"content of the file"
PART = 5 * 1024**2
#: of a request, but not of its object; botocore's own bookkeeping
_NOT_COMPARED = {
    "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "connection", "expect", "host",
    "user-agent", "x-amz-date", "accept", "x-amz-content-sha256", "content-length", "x-amz-sdk-checksum-algorithm",
}  # fmt: skip


class Case(NamedTuple):
    """Our options, and the same as botocore's arguments."""

    options: Options
    arguments: dict[str, Any]


CASES = {
    "type": Case(Options(content_type="text/html; charset=utf-8"), {"ContentType": "text/html; charset=utf-8"}),
    "odd type": Case(Options(content_type='a/b; c="d e"'), {"ContentType": 'a/b; c="d e"'}),
    "no type": Case(Options(content_type=""), {}),
    "type by name": Case(Options(), {"ContentType": "image/png"}),
    "headers": Case(
        Options(
            cache_control="public, max-age=31536000, immutable",
            content_disposition="attachment; filename=\"a b.txt\"; filename*=UTF-8''%e2%82%ac",
            content_encoding="gzip, br",
            content_language="de, pt-BR",
        ),
        {
            "ContentType": "image/png",
            "CacheControl": "public, max-age=31536000, immutable",
            "ContentDisposition": "attachment; filename=\"a b.txt\"; filename*=UTF-8''%e2%82%ac",
            "ContentEncoding": "gzip, br",
            "ContentLanguage": "de, pt-BR",
        },
    ),
    "stored": Case(
        Options(
            prefix="in/", storage_class="GLACIER", sse="aws:kms", kms_key_id="alias/k", acl="private",
            expected_bucket_owner="123456789012", overwrite="never", tags={"team": "a b", "ü": "+&="},
            metadata={"Source": "Scanner 7"},
        ),
        {
            "ContentType": "image/png",
            "StorageClass": "GLACIER",
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": "alias/k",
            "ACL": "private",
            "ExpectedBucketOwner": "123456789012",
            "Tagging": "team=a%20b&%C3%BC=%2B%26%3D",
            "Metadata": {"source": "Scanner 7"},
        },
    ),
    "locked": Case(
        Options(object_lock_mode="COMPLIANCE", object_lock_days=400, legal_hold=True),
        {
            "ContentType": "image/png",
            "ObjectLockMode": "COMPLIANCE",
            "ObjectLockLegalHoldStatus": "ON",
        },
    ),
    "held": Case(Options(legal_hold=True), {"ContentType": "image/png", "ObjectLockLegalHoldStatus": "ON"}),
    "requester pays": Case(
        Options(requester_pays=True, checksum="md5"), {"ContentType": "image/png", "RequestPayer": "requester"}
    ),
}  # fmt: skip
_COMMON = {"ExpectedBucketOwner", "RequestPayer"}


def locked(arguments: dict[str, Any], sent: Request) -> dict[str, Any]:
    """With the date of the retention, which depends on the clock."""
    until = sent.headers.get("x-amz-object-lock-retain-until-date")
    if until is None:
        assert "ObjectLockMode" not in arguments
        return arguments
    end = datetime.fromisoformat(until)
    assert timedelta(0) <= datetime.now(UTC) + timedelta(days=400) - end + timedelta(seconds=1) < timedelta(minutes=5)
    return arguments | {"ObjectLockRetainUntilDate": end}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        use(server.environment(), monkeypatch)
        yield server


@pytest.fixture(params=["libcurl", "botocore"])
def signer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who signs."""
    if request.param == "botocore":
        monkeypatch.setattr("s3spool.s3.curl_transport.libcurl_signs", lambda *_: False)
    return str(request.param)


def compared(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name not in _NOT_COMPARED}


def query(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.query.items() if name != "uploadId"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_small_file_is_sent_as_botocore_sends_it(signer: str, case: Case, faulty: FaultyS3, tmp_path: Path) -> None:
    """PutObject has the same headers, and each of them is signed."""
    store = store_of("curl", replace(case.options, bucket=faulty.bucket, endpoint_url=faulty.endpoint_url))
    with content(tmp_path / "a.png", BODY, in_memory=True) as file:
        request = store.request(file)
        transport = store.transport()
        answer = put(transport, request)
        transport.close()
        mtime = mtime_text(file.identity.mtime_ns)

    assert answer.status == 200, answer
    arguments = {**case.arguments, "Metadata": {"mtime": mtime, **case.arguments.get("Metadata", {})}}
    if case.options.overwrite == "never":
        arguments["IfNoneMatch"] = "*"
    faulty.objects.clear()
    algorithm, _, checksum = request.checksum.partition(":")
    arguments["ContentMD5" if algorithm == "md5" else "ChecksumCRC64NVME"] = checksum
    arguments = locked(arguments, faulty.requests[0])
    client = faulty.client(request_checksum_calculation="when_required")
    client.put_object(Bucket=faulty.bucket, Key=request.key, Body=BODY, **arguments)
    ours, botocores = faulty.requests
    assert ours.key == botocores.key
    assert compared(ours) == compared(botocores)
    _, _, signed = ours.headers["authorization"].partition("SignedHeaders=")
    assert {name for name in compared(ours) if name.startswith("x-amz-")} <= {*signed.partition(",")[0].split(";")}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_large_file_is_begun_as_botocore_begins_it(signer: str, case: Case, faulty: FaultyS3, tmp_path: Path) -> None:
    """CreateMultipartUpload has the same headers; a part has none of the object's."""
    store = store_of("curl", replace(case.options, bucket=faulty.bucket, endpoint_url=faulty.endpoint_url))
    parts = MultipartStore(store)
    with content(tmp_path / "a.png", BODY, in_memory=False) as file:
        upload = parts.create(file.path, file.identity, 1, 5 * 1024**2)
        request = parts.part_request(upload, file, 1)
        transport = store.transport()
        part = parts.verify_part(upload, request, put(transport, request), 1)
        transport.close()
        mtime = mtime_text(file.identity.mtime_ns)

    arguments = {**case.arguments, "Metadata": {"mtime": mtime, **case.arguments.get("Metadata", {})}}
    common = {name: value for name, value in case.arguments.items() if name in _COMMON}
    checksum: dict[str, Any] = {"ContentMD5": part.checksum}
    if upload.algorithm != "md5":
        arguments |= {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        checksum = {"ChecksumCRC64NVME": part.checksum}
    client = faulty.client(request_checksum_calculation="when_required")
    arguments = locked(arguments, faulty.requests[0])
    client.create_multipart_upload(Bucket=faulty.bucket, Key=upload.key, **arguments)
    client.upload_part(
        Bucket=faulty.bucket, Key=upload.key, PartNumber=1, UploadId=upload.upload_id, Body=BODY, **checksum, **common
    )
    ours, botocores = faulty.requests[:2], faulty.requests[2:]
    assert [compared(one) for one in ours] == [compared(one) for one in botocores]
    assert [query(one) for one in ours] == [query(one) for one in botocores]


def test_every_request_to_a_bucket_whose_requesters_pay_says_so(faulty: FaultyS3, tmp_path: Path) -> None:
    """Also those that boto3 makes: HEAD, the list of parts, completion and abort."""
    store = store_of("curl", destination(faulty.bucket, faulty.endpoint_url, requester_pays=True, checksum="md5"))
    parts = MultipartStore(store)
    transport = store.transport()
    with content(tmp_path / "a.png", BODY, in_memory=False) as file:
        upload = parts.create(file.path, file.identity, 1, 5 * 1024**2)
        request = parts.part_request(upload, file, 1)
        part = parts.verify_part(upload, request, put(transport, request), 1)
        parts.listed(upload)
        parts.complete(upload, file, [part])
        look(store.client, store.bucket, upload.key, file.path)
        parts.abort(upload)
    transport.close()

    assert len(faulty.requests) >= 6
    assert {request.headers.get("x-amz-request-payer") for request in faulty.requests} == {"requester"}
    for request_ in faulty.requests:
        assert "x-amz-request-payer" in request_.headers["authorization"]


@pytest.mark.integration
def test_a_real_store_keeps_the_lock(
    signer: str, seaweed: Seaweed, s3: S3Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention and legal hold come back with the object, for a small file and for one in parts."""
    bucket = f"locked-{signer}"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    use(seaweed.environment(), monkeypatch)
    lock: dict[str, Any] = {"object_lock_mode": "GOVERNANCE", "object_lock_days": 1, "legal_hold": True}
    send_small_and_large(store_of("curl", destination(bucket, seaweed.endpoint_url, **lock)), tmp_path)

    for key in ("small.jpg", "large.jpg"):
        head = s3.head_object(Bucket=bucket, Key=key)
        assert (head["ObjectLockMode"], head["ObjectLockLegalHoldStatus"]) == ("GOVERNANCE", "ON")
        assert abs(head["ObjectLockRetainUntilDate"] - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=5)


@pytest.mark.integration
def test_a_real_store_keeps_the_headers(
    signer: str, seaweed: Seaweed, s3: S3Client, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is configured comes back with the object, for a small file and for one in parts."""
    use(seaweed.environment(), monkeypatch)
    options = replace(
        CASES["headers"].options, content_encoding="gzip", bucket=bucket, endpoint_url=seaweed.endpoint_url
    )
    send_small_and_large(store_of("curl", options), tmp_path)

    for key in ("small.jpg", "large.jpg"):
        head = s3.head_object(Bucket=bucket, Key=key)
        assert head["ContentType"] == "image/jpeg"
        assert head["CacheControl"] == options.cache_control
        assert head["ContentDisposition"] == options.content_disposition
        assert head["ContentEncoding"] == "gzip"


def send_small_and_large(store: Store, tmp_path: Path) -> None:
    transport = store.transport()
    with content(tmp_path / "small.jpg", BODY, in_memory=True) as file:
        request = store.request(file)
        store.verify(file, request, put(transport, request), may_verify=True)
    parts = MultipartStore(store)
    with content(tmp_path / "large.jpg", BODY, in_memory=False) as file:
        upload = parts.create(file.path, file.identity, 1, 5 * 1024**2)
        request = parts.part_request(upload, file, 1)
        part = parts.verify_part(upload, request, put(transport, request), 1)
        parts.complete(upload, file, [part])
    transport.close()


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("photo.jpg", b"\xff\xd8", "image/jpeg"),
        ("Photo.JPG", None, "image/jpeg"),
        ("site/index.html", b"<p>hi", "text/html; charset=utf-8"),
        ("site/index.html", "<p>ü".encode(), "text/html; charset=utf-8"),
        ("site/index.html", "<p>ü".encode("latin-1"), "text/html"),
        ("site/index.html", None, "text/html"),
        ("empty.txt", b"", "text/plain"),
        ("subtitles.vtt", None, "text/vtt; charset=utf-8"),
        ("a.json", b"{}", "application/json"),
        ("backup.tar.gz", None, "application/gzip"),
        ("README", b"text", UNKNOWN),
        ("a.unheard-of", b"text", UNKNOWN),
        ("logs.txt/file", b"text", UNKNOWN),
        ("logs/.txt", b"text", UNKNOWN),
        (".jpg", b"", UNKNOWN),
        ("jpg.", b"", UNKNOWN),
    ],
)
def test_the_type_follows_the_name(path: str, body: bytes | None, kind: str) -> None:
    """By the last extension; text is said to be UTF-8 only where it is."""
    assert content_type_of(path, body) == kind


def test_the_table_of_types_is_well_formed() -> None:
    """Each extension is in lower case and has one type; no machine's mime.types has a say."""
    assert len(TYPES) > 140
    for extension, (plain, utf8) in TYPES.items():
        assert extension == extension.lower()
        assert plain.count("/") == 1
        assert " " not in plain.replace("; charset=utf-8", "")
        assert utf8 in {"", f"{plain}; charset=utf-8"}


def test_headers_are_made_once_for_each_type(tmp_path: Path) -> None:
    """The hot path looks them up."""
    prepared = PreparedOptions(CASES["headers"].options)

    first = [prepared.headers(Content(path, NO_IDENTITY, b"", -1)) for path in ("a.png", "b/c.png", "c.gif")]

    assert [name for name, _ in first[0]][:2] == ["Content-Type", "Cache-Control"]
    assert all(one is other for one, other in zip(first[0][:-1], first[1][:-1], strict=True))
    assert first[2][0] == ("Content-Type", "image/gif")


TEMPLATES = {
    "Name": "{path}",
    "all": "{size} {mtime} {mode} {{x}}",
    "who": "{owner}@{hostname}",
    "origin": "xattr:user.origin",
    "note": "<{xattr:user.no-such}>",
    "gone": "{xattr:user.gone}",
    "fixed": "{{1}}",
}


@pytest.mark.integration
def test_metadata_is_taken_from_the_file(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """For a small file and for one in parts; odd names and values are percent-encoded."""
    names = {"ü 1%.txt": b"small", "sub/large": content_of(PART + 1)}
    with Daemon(
        tmp_path,
        seaweed,
        bucket=bucket,
        upload={"multipart_threshold": PART, "part_size": PART},
        destination={"endpoint_url": seaweed.endpoint_url, "metadata": TEMPLATES},
    ) as daemon:
        daemon.wait_ready()
        for name, body in names.items():
            hidden = daemon.drop(f"{name}.part", body)
            os.setxattr(hidden, "user.origin", "Büro 3".encode())
            hidden.chmod(0o640)
            os.utime(hidden, ns=(0, 1_700_000_000_000_000_001))
            hidden.rename(daemon.folder / name)
        daemon.wait_uploaded(2)

    user = pwd.getpwuid(os.geteuid()).pw_name
    for name, body in names.items():
        metadata = s3.head_object(Bucket=bucket, Key=name)["Metadata"]
        assert metadata == {
            "name": "%C3%BC 1%25.txt" if name.startswith("ü") else name,
            "all": f"{len(body)} 1700000000.000000001 0640 {{x}}",
            "who": f"{user}@{socket.gethostname()}",
            "origin": "B%C3%BCro 3",
            "note": "<>",
            "fixed": "{1}",
            "mtime": "1700000000.000000001",
        }


def test_metadata_that_is_too_long_is_the_file_s_own_fault(tmp_path: Path) -> None:
    """It is parked, and S3 is not asked."""
    store = store_of("curl", destination("b", "http://127.0.0.1:9", metadata={"a": "{path}" * 10}))
    with content(tmp_path / ("x" * 250), BODY, in_memory=True) as file, pytest.raises(UploadError) as raised:
        store.request(file)

    assert (raised.value.code, raised.value.permanent, raised.value.scope) == ("MetadataTooLarge", True, Scope.FILE)
