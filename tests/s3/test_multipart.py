"""Uploads in parts against real servers: what is sent, what proves it, and every way in which Complete may end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.exceptions
import pytest

from s3.conftest import StoreAt
from s3spool.demo.seaweed import Seaweed
from s3spool.errors import Scope, UploadError
from s3spool.ledger.rows import Identity, Multipart, Part
from s3spool.s3 import checksums
from s3spool.s3.client import Found
from s3spool.s3.content import Content, Stored
from s3spool.s3.multipart import MAX_OBJECT_BYTES, MultipartStore, _composite_etag
from s3spool.s3.store import MIB, Store
from support.faults import EmptyOk, Fault, HtmlOk, LoseAnswer, Reset, Silent, Status
from support.faulty import FaultyS3
from support.http_server import Exchange, HangUp
from support.objects import content_of, objects
from support.s3_messages import Answer, md5_hex
from support.stores import destination, put

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PART = 5 * MIB  # S3's least; FaultyS3 takes any
TINY = 1000
COMPLETE = "POST big.uploadId"


@dataclass
class Uploader:
    """A store, a file, and its upload step by step."""

    store: Store
    content: Content
    part_size: int = TINY

    def __post_init__(self) -> None:
        self.bucket = MultipartStore(self.store)
        self.transport = self.store.transport()

    @property
    def count(self) -> int:
        return -(-self.content.size // self.part_size)

    def create(self) -> Multipart:
        return self.bucket.create("big", self.content.identity, 1, self.part_size)

    def send(self, upload: Multipart, number: int) -> Part:
        request = self.bucket.part_request(upload, self.content, number)
        return self.bucket.verify_part(upload, request, put(self.transport, request), number)

    def send_all(self, upload: Multipart) -> list[Part]:
        return [self.send(upload, number) for number in range(1, self.count + 1)]

    def sent(self) -> tuple[Multipart, list[Part]]:
        """An upload that only has to be completed."""
        upload = self.create()
        return upload, self.send_all(upload)

    def complete(self, upload: Multipart, parts: list[Part]) -> Stored:
        return self.bucket.complete(upload, self.content, parts)


@contextmanager
def uploader(path: Path, store: Store, part_size: int = TINY) -> Iterator[Uploader]:
    fd = os.open(path, os.O_RDONLY)
    made = Uploader(store, Content("big", Identity.of(os.fstat(fd)), None, fd), part_size)
    try:
        yield made
    finally:
        made.transport.close()
        os.close(fd)


def file_of(directory: Path, content: bytes) -> Path:
    path = directory / "big"
    path.write_bytes(content)
    return path


@pytest.fixture
def big(tmp_path: Path, faulty: FaultyS3, store_at: StoreAt) -> Iterator[Uploader]:
    """Three parts and a bit, for FaultyS3."""
    path = file_of(tmp_path, content_of(3 * TINY + 7))
    with uploader(path, store_at(faulty, timeout_s=2.0)) as made:
        yield made


def content_bytes(made: Uploader) -> bytes:
    return os.pread(made.content.fd, made.content.size, 0)


def parts_sent(faulty: FaultyS3) -> int:
    return faulty.count("PUT big.*partNumber")


@pytest.mark.parametrize(
    ("size", "wanted", "part_size"),
    [
        (1, PART, PART),
        (10_000 * PART, PART, PART),
        (10_000 * PART + 1, PART, PART + MIB),
        (MAX_OBJECT_BYTES, 16 * MIB, 525 * MIB),
        (MAX_OBJECT_BYTES, 600 * MIB, 600 * MIB),
    ],
)
def test_ten_thousand_parts_suffice(big: Uploader, size: int, wanted: int, part_size: int) -> None:
    """The configured size, raised to a whole MiB where it has to be."""
    assert big.bucket.part_size(size, wanted) == part_size
    assert -(-size // part_size) <= 10_000


def test_more_than_s3_takes(big: Uploader) -> None:
    """Five TiB pass, one byte more does not; that is known without S3, so it says nothing of the destination."""
    big.bucket.check_size("big", MAX_OBJECT_BYTES)
    with pytest.raises(UploadError, match=r"5 TiB.*split the file") as caught:
        big.bucket.check_size("big", MAX_OBJECT_BYTES + 1)

    assert caught.value.permanent
    assert caught.value.scope is Scope.FILE


def test_every_size(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str, store_at: StoreAt) -> None:
    """One part, one byte more, two parts, one byte more; zeros, and a file that is mostly a hole."""
    store = store_at(seaweed, bucket=bucket)
    files = {str(size): content_of(size, seed=size) for size in (PART, PART + 1, 2 * PART, 2 * PART + 1)}
    files |= {"zeros": bytes(2 * PART), "hole": bytes(PART) + b"in the middle" + bytes(PART)}

    for name, content in files.items():
        path = tmp_path / name
        path.touch()
        if name == "hole":
            with path.open("r+b") as file:
                file.truncate(len(content))
                file.seek(PART)
                file.write(b"in the middle")
            assert path.stat().st_blocks * 512 < PART
        else:
            path.write_bytes(content)
        with uploader(path, store, PART) as made:
            made.complete(*made.sent())
        assert objects(s3, bucket) == {"big": content}, name
    assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


@pytest.mark.usefixtures("seaweed")
@pytest.mark.parametrize("where", ["seaweed", "faulty"])
@pytest.mark.parametrize("checksum", ["auto", "crc64nvme", "crc32", "sha256", "md5"])
def test_every_checksum(
    request: pytest.FixtureRequest, tmp_path: Path, store_at: StoreAt, checksum: str, where: str
) -> None:
    """Each part goes with the one chosen; the receipt has that of the whole, or of the parts', or none."""
    bucket = request.getfixturevalue("bucket") if where == "seaweed" else ""
    content = content_of(2 * PART + 1)
    store = store_at(request.getfixturevalue(where), bucket=bucket, checksum=checksum)

    with uploader(file_of(tmp_path, content), store, PART) as made:
        upload, parts = made.sent()
        stored = made.complete(upload, parts)

    assert store.client.get_object(Bucket=store.bucket, Key="big")["Body"].read() == content
    assert stored.etag.endswith("-3")
    if checksum != "auto":
        assert upload.algorithm == checksum
    expected = {
        "crc64nvme": f"crc64nvme:{checksums.of_bytes('crc64nvme', content)}",
        "crc32": f"crc32:{checksums.of_bytes('crc32', content)}",
        "md5": "",
    }
    if upload.algorithm == "sha256":
        assert stored.checksum.startswith("sha256:")
        assert stored.checksum.endswith("-3")
    else:
        assert stored.checksum == expected[upload.algorithm]


def test_more_parts_than_one_page_shows(tmp_path: Path, faulty: FaultyS3, store_at: StoreAt) -> None:
    """S3 lists a thousand at a time; what is on the second page is not sent again."""
    content = content_of(1003 * 10)
    with uploader(file_of(tmp_path, content), store_at(faulty), 10) as made:
        upload, parts = made.sent()

        listed = made.bucket.listed(upload)
        assert listed is not None
        found = [made.bucket.matches(upload, made.content, number, listed[number], None) for number in sorted(listed)]
        assert found == parts
        made.complete(upload, parts)

    assert faulty.count("GET big.*uploadId") == 2
    assert faulty.contents() == {"big": content}


@pytest.mark.parametrize("known", [True, False], ids=["in the ledger", "not in the ledger"])
@pytest.mark.parametrize("how", ["same", "other size", "other bytes", "beyond the end"])
def test_what_s3_has_of_an_upload_must_be_what_the_file_holds(
    big: Uploader, faulty: FaultyS3, how: str, known: bool
) -> None:
    """Else the part is sent again, whether or not we had heard of it."""
    upload = big.create()
    ours = big.send(upload, 2)
    number = 9 if how == "beyond the end" else 2
    if how != "same":
        body = content_of(TINY - 1 if how == "other size" else TINY, seed=1)
        faulty.client().upload_part(
            Bucket=faulty.bucket, Key="big", UploadId=upload.upload_id, PartNumber=number, Body=body
        )
    listed = big.bucket.listed(upload)
    assert listed is not None

    found = big.bucket.matches(upload, big.content, number, listed[number], ours if known else None)

    assert found == (ours if how == "same" else None)
    short = {**listed[number], "Size": TINY - 1, "ETag": ours.etag}
    assert big.bucket.matches(upload, big.content, 2, short, ours if known else None) is None


def test_an_upload_that_s3_does_not_know(big: Uploader) -> None:
    """Nothing to go on with, and nothing to abort: neither is an error; a part or Complete is one."""
    upload, parts = big.sent()
    big.bucket.abort(upload)

    assert big.bucket.listed(upload) is None
    big.bucket.abort(upload)
    with pytest.raises(UploadError) as part_refused:
        big.send(upload, 1)
    with pytest.raises(UploadError) as complete_refused:
        big.complete(upload, parts)

    assert part_refused.value.code == complete_refused.value.code == "NoSuchUpload"


def test_an_abort_that_is_refused_is_an_error(big: Uploader, faulty: FaultyS3) -> None:
    """The upload has to stay in the ledger, for the next sweep; by then there may be other keys."""
    upload = big.create()
    faulty.script(Status(code=403, error_code="AccessDenied"), match="DELETE .*uploadId")

    with pytest.raises(UploadError):
        big.bucket.abort(upload)

    assert big.store.credentials._asked.is_set()


@pytest.mark.parametrize("fault", [EmptyOk(), HtmlOk()], ids=lambda fault: type(fault).__name__)
def test_a_success_that_says_nothing(big: Uploader, faulty: FaultyS3, fault: Fault) -> None:
    """What a captive portal answers is neither an upload id nor a list without parts."""
    upload = big.create()
    faulty.script(fault, times=None, match="big.upload")

    with pytest.raises(UploadError) as created:
        big.create()
    with pytest.raises(UploadError) as listed:
        big.bucket.listed(upload)

    assert created.value.scope is listed.value.scope is Scope.UNKNOWN


class WorkedThenSilent(Fault):
    """Done, and no word of it until the client gives up."""

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        exchange.wait_for_hangup()
        raise HangUp


@dataclass
class WorkedThenSays(Fault):
    """Done, and another answer than that."""

    answer: Answer

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        return self.answer


ERROR_IN_200 = Answer.error(200, "InternalError", "We encountered an internal error. Please try again.")
NO_SUCH_UPLOAD = Answer.error(404, "NoSuchUpload")


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
@pytest.mark.parametrize(
    "fault",
    [
        LoseAnswer(),
        WorkedThenSilent(),
        WorkedThenSays(ERROR_IN_200),
        WorkedThenSays(NO_SUCH_UPLOAD),
        WorkedThenSays(Answer.error(500, "InternalError")),
        WorkedThenSays(Answer()),
        WorkedThenSays(Answer(body=b"<!DOCTYPE html><html>log in")),
    ],
    ids=["lost", "timeout", "error in 200", "NoSuchUpload", "500", "empty", "html"],
)
def test_complete_worked_and_nobody_said_so(big: Uploader, faulty: FaultyS3, fault: Fault, times: int | None) -> None:
    """A HEAD shows that the object is there and is ours: a success, and no part is sent again."""
    upload, parts = big.sent()
    faulty.script(fault, times=times, match=COMPLETE)

    stored = big.complete(upload, parts)

    assert stored.key == "big"
    assert stored.checksum == f"crc64nvme:{checksums.of_bytes('crc64nvme', content_bytes(big))}"
    assert faulty.contents() == {"big": content_bytes(big)}
    assert parts_sent(faulty) == len(parts)
    assert faulty.store.uploads == {}


FAILURES = {
    "cut before": Reset("before"),
    "cut after": Reset("after"),
    "timeout": Silent(),
    "error in 200": Status(code=200, body=ERROR_IN_200.body),
    "500": Status(code=500),
    "html": HtmlOk(),
}
THERE = ["nothing", "other", "equal", "as long"]


@pytest.mark.parametrize(
    ("how", "there"), [(how, there) for how in FAILURES for there in (["equal"] if how == "timeout" else THERE)]
)
def test_complete_did_not_work(big: Uploader, faulty: FaultyS3, how: str, there: str) -> None:
    """No success, whatever older object is there, even an equal one; the parts are kept and do later."""
    ours = content_bytes(big)
    before = {"other": b"other", "equal": ours, "as long": content_of(len(ours), seed=1)}.get(there)
    if before is not None:
        faulty.client().put_object(Bucket=faulty.bucket, Key="big", Body=before, ChecksumAlgorithm="CRC64NVME")
    upload, parts = big.sent()
    faulty.script(FAILURES[how], times=None, match=COMPLETE)

    with pytest.raises(UploadError) as caught:
        big.complete(upload, parts)

    assert not caught.value.permanent
    assert faulty.contents() == ({} if before is None else {"big": before})
    assert list(faulty.store.uploads) == [upload.upload_id]
    faulty.behave()
    assert big.complete(upload, parts).key == "big"
    assert faulty.contents() == {"big": ours}
    assert parts_sent(faulty) == len(parts)


@pytest.mark.parametrize("there", ["nothing", "other", "as long"])
def test_an_upload_that_went_away_without_an_object(big: Uploader, faulty: FaultyS3, there: str) -> None:
    """NoSuchUpload, and what is at the key is not ours: no success, another upload has to begin."""
    before = {"other": b"other", "as long": content_of(big.content.size, seed=1)}.get(there)
    if before is not None:
        faulty.client().put_object(Bucket=faulty.bucket, Key="big", Body=before)
    upload, parts = big.sent()
    faulty.store.uploads.clear()

    with pytest.raises(UploadError) as caught:
        big.complete(upload, parts)

    assert caught.value.code == "NoSuchUpload"
    assert faulty.contents() == ({} if before is None else {"big": before})


def test_a_head_that_is_not_allowed_settles_nothing(big: Uploader, faulty: FaultyS3) -> None:
    """No file could pass, and what to grant; never a success that nobody has seen."""
    upload, parts = big.sent()
    faulty.script(LoseAnswer(), times=None, match=COMPLETE)
    faulty.script(Status(code=403), times=None, match="HEAD big")

    with pytest.raises(UploadError, match="s3:GetObject") as caught:
        big.complete(upload, parts)

    assert caught.value.scope is Scope.EVERYBODY


def test_a_clear_refusal_of_complete_is_the_answer(big: Uploader, faulty: FaultyS3) -> None:
    """It says what to grant. A HEAD could add nothing, and may need another permission."""
    upload, parts = big.sent()
    faulty.script(Status(code=403, error_code="AccessDenied"), match=COMPLETE)

    with pytest.raises(UploadError, match="complete multipart upload") as caught:
        big.complete(upload, parts)

    assert caught.value.code == "AccessDenied"
    assert faulty.count("HEAD big") == 0


@pytest.mark.parametrize("wrong", ["ETag", "checksum"])
def test_an_object_of_other_bytes_is_no_success(big: Uploader, faulty: FaultyS3, wrong: str) -> None:
    """Complete answers as if all were well, but what is there is not what was read."""
    upload, parts = big.sent()
    faulty.client().put_object(Bucket=faulty.bucket, Key="big", Body=b"x" * big.content.size)
    fields = {
        "ETag": [("ETag", f'"{md5_hex(b"x")}-4"')],
        "checksum": [("ETag", f'"{_composite_etag(parts)}"'), ("ChecksumCRC64NVME", parts[0].checksum)],
    }
    answer = Answer.document("CompleteMultipartUploadResult", [("Key", "big"), *fields[wrong]])

    @dataclass
    class Instead(Fault):
        def instead(self, exchange: Exchange) -> Answer:
            return answer

    faulty.script(Instead(), times=None, match=COMPLETE)

    with pytest.raises(UploadError) as caught:
        big.complete(upload, parts)

    assert caught.value.code == "Unconfirmed"


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_parts_that_are_not_the_file_are_not_completed(big: Uploader, faulty: FaultyS3, missing: int) -> None:
    """The review before Complete: one is missing, in front, in the middle or at the end."""
    upload, parts = big.sent()
    del parts[missing]

    with pytest.raises(UploadError, match="do not add up"):
        big.complete(upload, parts)

    assert faulty.count(COMPLETE) == 0


@pytest.mark.usefixtures("seaweed")
@pytest.mark.parametrize("there", ["nothing", "ours in one piece", "ours in parts", "ours in other parts", "other"])
@pytest.mark.parametrize("where", ["seaweed", "faulty"])
def test_overwrite_never(
    request: pytest.FixtureRequest, tmp_path: Path, store_at: StoreAt, where: str, there: str
) -> None:
    """Nothing remote is replaced: our own content counts as success, another one parks the file."""
    source, bucket = request.getfixturevalue(where), request.getfixturevalue("bucket") if where == "seaweed" else ""
    content = content_of(2 * PART + 1)
    path = file_of(tmp_path, content)
    store = store_at(source, bucket=bucket, overwrite="never")
    before = b"other" if there == "other" else content
    client = store.client
    if there in {"other", "ours in one piece"}:
        client.put_object(Bucket=store.bucket, Key="big", Body=before)
    elif there != "nothing":
        with uploader(
            path, store_at(source, bucket=bucket), PART if there == "ours in parts" else PART + MIB
        ) as earlier:
            earlier.complete(*earlier.sent())
    version = client.head_object(Bucket=store.bucket, Key="big")["LastModified"] if there != "nothing" else None

    with uploader(path, store, PART) as made:
        upload, parts = made.sent()
        if there == "other":
            with pytest.raises(UploadError, match="overwrite") as caught:
                made.complete(upload, parts)
            assert caught.value.permanent
            made.bucket.abort(upload)
        else:
            assert made.complete(upload, parts).key == "big"

    assert client.get_object(Bucket=store.bucket, Key="big")["Body"].read() == before
    if version is not None:
        assert client.head_object(Bucket=store.bucket, Key="big")["LastModified"] == version
    assert client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", []) == []


@pytest.mark.parametrize(("same", "proof"), [(True, "crc64nvme:"), (False, None)])
def test_an_encrypted_object_is_ours_by_its_checksum(
    faulty: FaultyS3, tmp_path: Path, store_at: StoreAt, same: bool, proof: str | None
) -> None:
    """With SSE-KMS an ETag is no MD5; another process has sent the file in one piece, with another checksum."""
    content = content_of(2 * TINY, seed=1)
    value = checksums.of_bytes("sha256", content if same else content[::-1])
    found = Found(len(content), "opaque", {"crc32": "", "sha256": value}, "")
    with uploader(file_of(tmp_path, content), store_at(faulty)) as made:
        upload, parts = made.sent()
        stored = made.bucket._stored(upload, made.content, parts, found)

    assert (stored and stored.checksum[:10]) == proof


def test_the_completion_tells_the_checksum_of_the_whole(faulty: FaultyS3, tmp_path: Path, store_at: StoreAt) -> None:
    """S3 compares it before it puts the object in its place."""
    content = content_of(2 * TINY + 1, seed=1)
    with uploader(file_of(tmp_path, content), store_at(faulty)) as made:
        made.complete(*made.sent())

    headers = faulty.requests[-1].headers
    assert headers["x-amz-checksum-crc64nvme"] == checksums.of_bytes("crc64nvme", content)
    assert headers["x-amz-checksum-type"] == "FULL_OBJECT"


def test_a_multipart_upload_learns_the_region_too() -> None:
    """Its next attempt goes there at once, and nothing is blamed."""
    store = Store(destination("bucket", ""), timeout_s=20.0)
    response = {
        "Error": {"Code": "PermanentRedirect", "Message": ""},
        "ResponseMetadata": {"HTTPStatusCode": 301, "HTTPHeaders": {"x-amz-bucket-region": "eu-central-1"}},
    }
    exc = botocore.exceptions.ClientError(response, "CreateMultipartUpload")  # type: ignore[arg-type] # as botocore does

    error = MultipartStore(store).failed(exc, "big", "create multipart upload")

    assert error.retry_immediately
    assert store.endpoint.region == "eu-central-1"


@pytest.mark.parametrize("answer", [Status(code=405, error_code="MethodNotAllowed"), Status(code=501)])
def test_a_store_that_lists_no_parts_and_aborts_no_upload(
    faulty: FaultyS3, tmp_path: Path, store_at: StoreAt, answer: Status
) -> None:
    """As s3rver: an interrupted upload begins anew instead of pausing everything."""
    path = file_of(tmp_path, content_of(PART + 1))
    faulty.script(answer, times=None, match="^(GET|DELETE) .*uploadId")
    with uploader(path, store_at(faulty), PART) as made:
        upload = made.create()

        assert made.bucket.listed(upload) is None
        made.bucket.abort(upload)
        for ask in (made.bucket.list_parts, made.bucket.ask_abort):
            with pytest.raises(UploadError):
                ask(upload)
