"""The one act that carries bytes, by itself and in a multi client."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s3.conftest import StoreAt, TransportAt
from s3spool.demo.seaweed import Seaweed
from s3spool.errors import Scope
from s3spool.s3 import curl_transport as module
from s3spool.s3.client import ca_source
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.transport import Answer, FileRange
from support.faults import (
    EmptyOk,
    Endless,
    Fault,
    Garbage,
    HoldUntil,
    HtmlOk,
    LoseAnswer,
    Redirect,
    Reset,
    Silent,
    Status,
    Truncated,
)
from support.faulty import FaultyS3, make_certificate
from support.http_server import Exchange, HangUp
from support.objects import content_of
from support.processes import finished
from support.s3_messages import Answer as Reply
from support.s3_messages import md5_base64
from support.stores import destination, put, put_request, range_request, store_of, use

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MIB = 1024 * 1024
ODD_KEYS = [
    "plain.txt",
    "with space",
    "a+b&c=d?e#f%g;h,i@j",
    'back\\slash"quote<>[]{}|^`',
    "double//slash",
    "日本/語.txt",
    "ümlaut é",
    "%2E%2E/up",
    "a/%2E/b",
    "...",
    "~tilde!*'()$:",
    "100%41",
    "x" * 200,
]


@pytest.fixture(params=["curl", "carried"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def timeout_s() -> float:
    """More than a busy machine needs; a test that waits for it is parametrised with less."""
    return 20.0


@pytest.fixture
def transport(kind: str, timeout_s: float, faulty: FaultyS3, transport_at: TransportAt) -> CurlTransport:
    """To the misbehaving server."""
    return transport_at(faulty, kind, timeout_s=timeout_s)


@pytest.fixture
def real(kind: str, seaweed: Seaweed, bucket: str, transport_at: TransportAt) -> CurlTransport:
    """To SeaweedFS, which verifies signatures and checksums."""
    return transport_at(seaweed, kind, bucket=bucket)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file of 3 MiB and one byte."""
    (tmp_path / "large").write_bytes(content_of(3 * MIB + 1))
    opened = os.open(tmp_path / "large", os.O_RDONLY)
    yield opened
    os.close(opened)


def ok(answer: Answer) -> bool:
    return answer.error is None and answer.status == 200


@pytest.mark.integration
def test_one_handle_sends_all_kinds_of_bodies(real: CurlTransport, fd: int, s3: S3Client, bucket: str) -> None:
    """From memory, from a range of a file, of no bytes at all, and back: nothing of the last request stays behind."""
    whole = content_of(3 * MIB + 1)
    bodies = [
        (put_request("1", b"memory"), b"memory"),
        (range_request("2", fd, 7, 2 * MIB), whole[7 : 7 + 2 * MIB]),
        (put_request("3", b"memory again"), b"memory again"),
        (put_request("4", b""), b""),
        (range_request("5", fd, 0, len(whole)), whole),
        (range_request("6", fd, 5, 0), b""),
        (put_request("7", bytes(range(256))), bytes(range(256))),
        (range_request("8", fd, 3 * MIB, 1), whole[-1:]),
    ]

    for request, _ in bodies:
        assert ok(put(real, request)), (request.key, real.answer())

    assert {r.key: s3.get_object(Bucket=bucket, Key=r.key)["Body"].read() for r, _ in bodies} == {
        r.key: body for r, body in bodies
    }


@pytest.mark.integration
@pytest.mark.parametrize("key", [key for key in ODD_KEYS if "//" not in key])
def test_odd_keys_reach_a_real_store(key: str, real: CurlTransport, s3: S3Client, bucket: str) -> None:
    """Signature and object agree on what the key is. (SeaweedFS joins double slashes: the next test has them.)"""
    answer = put(real, put_request(key, b"odd"))

    assert ok(answer), answer
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"odd"


def test_keys_stand_on_the_wire_as_they_are(transport: CurlTransport, faulty: FaultyS3) -> None:
    """Percent-encoded once; nothing is joined, resolved or taken for a query."""
    for key in ODD_KEYS:
        assert ok(put(transport, put_request(key)))

    assert set(faulty.objects) == set(ODD_KEYS)
    assert faulty.count("[?]") == faulty.count("a\\+b&c=d[?]e")  # the only question mark is that of the name


def test_headers_of_the_object_arrive(transport: CurlTransport, faulty: FaultyS3) -> None:
    """Options, metadata and digests stand in the request as in the object; nobody waits for 100-continue."""
    headers = (
        ("x-amz-storage-class", "STANDARD_IA"),
        ("x-amz-server-side-encryption", "aws:kms"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "alias/k"),
        ("x-amz-acl", "private"),
        ("x-amz-expected-bucket-owner", "123456789012"),
        ("x-amz-tagging", "team=data%20x"),
        ("x-amz-meta-mtime", "1700000000.000000001"),
        ("x-amz-meta-words", "two  words"),
        ("Content-MD5", md5_base64(b"body")),
        ("If-None-Match", "*"),
    )

    assert ok(put(transport, put_request("a", b"body", headers)))

    sent = faulty.requests[0].headers
    assert {name: sent[name.lower()] for name, _ in headers} == dict(headers)
    assert "content-type" not in sent
    assert sent["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert sent["content-length"] == "4"
    assert not {"expect", "transfer-encoding", "content-encoding"} & set(sent)


@pytest.mark.parametrize("algorithm", ["crc64nvme", "crc32", "sha256"])
@pytest.mark.integration
def test_a_wrong_checksum_is_refused(algorithm: str, real: CurlTransport) -> None:
    """The header is what the server compares: its refusal arrives with code and body."""
    answer = put(real, put_request("a", b"body", ((f"x-amz-checksum-{algorithm}", "AAAAAAAAAAA="),)))

    assert (answer.error, answer.status) == (None, 400)
    assert b"<Code>" in answer.body


@pytest.mark.integration
def test_nothing_is_replaced_if_so_asked(real: CurlTransport, s3: S3Client, bucket: str) -> None:
    """If-None-Match arrives, and so does 412."""
    never = (("If-None-Match", "*"),)

    assert ok(put(real, put_request("a", b"first", never)))
    second = put(real, put_request("a", b"second", never))

    assert (second.error, second.status) == (None, 412)
    assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"first"


@pytest.mark.integration
def test_parts_make_an_object(real: CurlTransport, tmp_path: Path, s3: S3Client, bucket: str) -> None:
    """A part is the same act with a query."""
    whole = content_of(10 * MIB + 1)
    (tmp_path / "parts").write_bytes(whole)
    fd = os.open(tmp_path / "parts", os.O_RDONLY)
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="a b/large")["UploadId"]
    requests = [
        range_request("a b/large", fd, n * 5 * MIB, size, f"partNumber={n + 1}&uploadId={upload_id}")
        for n, size in enumerate([5 * MIB, 5 * MIB, 1])
    ]

    answers = [put(real, request) for request in requests]

    os.close(fd)
    assert all(ok(answer) for answer in answers)
    listed = [{"PartNumber": n, "ETag": answer.headers["etag"]} for n, answer in enumerate(answers, 1)]
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key="a b/large",
        UploadId=upload_id,
        MultipartUpload={"Parts": listed},  # type: ignore[typeddict-item]
    )
    assert s3.get_object(Bucket=bucket, Key="a b/large")["Body"].read() == whole


def test_query_of_a_part_arrives(transport: CurlTransport, faulty: FaultyS3) -> None:
    """Upload ids may hold anything."""
    answer = put(transport, put_request("a", b"p", query="partNumber=7&uploadId=x%2By%3D%20z~"))

    assert answer.status == 404
    assert faulty.requests[0].query == {"partNumber": "7", "uploadId": "x+y= z~"}


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Status(code=503, error_code="SlowDown", headers={"Retry-After": "7"}), 503, b"SlowDown"),
        (Status(code=500, body=b"<html><body>Oops<br></body>"), 500, b"Oops"),
        (Status(code=403), 403, b""),
        (Status(code=404, error_code="NoSuchBucket"), 404, b"NoSuchBucket"),
        (Status(code=400, body=b"\x00\xff"), 400, b"\x00\xff"),
        (Status(code=204), 204, b""),
        (HtmlOk(), 200, b"Hotel WLAN"),
        (Status(code=200, body=b"<Error><Code>InternalError</Code></Error>"), 200, b"InternalError"),
        (EmptyOk(), 200, b""),
        (Redirect(code=301), 301, b"PermanentRedirect"),
        (Redirect(code=307), 307, b"PermanentRedirect"),
        (Redirect(code=302), 302, b"PermanentRedirect"),
        (
            Status(code=400, error_code="AuthorizationHeaderMalformed", headers={"x-amz-bucket-region": "eu-x-1"}),
            400,
            b"",
        ),
    ],
    ids=lambda value: getattr(value, "__class__", type).__name__ if isinstance(value, Fault) else None,
)
def test_answers_arrive_as_they_are(
    fault: Fault, status: int, body: bytes, transport: CurlTransport, faulty: FaultyS3
) -> None:
    """Status, headers and body, of one request: nothing is retried, followed or made into something else."""
    faulty.script(fault, times=None)

    answer = put(transport, put_request("a"))

    assert (answer.error, answer.status) == (None, status)
    assert body in answer.body
    assert answer.headers.get("retry-after", "7") == "7"
    assert answer.headers["server"] == "FaultyS3"
    assert ("location" in answer.headers) == isinstance(fault, Redirect)
    assert len(faulty.requests) == 1
    faulty.behave()
    assert ok(put(transport, put_request("next")))
    assert faulty.contents()["next"] == b"body"


@pytest.mark.parametrize(
    ("fault", "streamed"),
    [
        (Reset("before"), True),
        (Reset("inside"), True),
        (Reset("inside"), False),
        (Reset("after"), False),
        (Silent(), True),
        (Garbage(), False),
        (LoseAnswer(), True),
        (Truncated(0.02), False),
    ],
    ids=lambda it: f"{type(it).__name__}-{getattr(it, 'when', '')}" if isinstance(it, Fault) else f"streamed-{it}",
)
@pytest.mark.parametrize("timeout_s", [1.0])
def test_no_answer_is_a_transient_error(
    fault: Fault, streamed: bool, transport: CurlTransport, faulty: FaultyS3, fd: int
) -> None:
    """Whatever goes wrong on the way proves nothing against the file, is retried, and leaves the handle usable."""
    request = range_request("a", fd, 0, 3 * MIB) if streamed else put_request("a", b"b" * MIB)
    assert ok(put(transport, put_request("before")))
    faulty.script(fault, times=None)

    error = put(transport, request).error

    assert error is not None
    assert (error.scope, error.permanent) == (Scope.UNKNOWN, False)
    assert error.code
    assert error.cause
    faulty.behave()
    assert ok(put(transport, request))
    assert faulty.contents()["a"] == (content_of(3 * MIB + 1)[:-1] if streamed else b"b" * MIB)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_half_an_answer_never_confirms(share: float, transport: CurlTransport, faulty: FaultyS3) -> None:
    """Cut headers may pass for all of them; what would confirm the object is then missing or cut as well."""
    faulty.script(Truncated(share), match="a")
    body = b"x" * 100

    answer = put(transport, put_request("a", body))

    etag = answer.headers.get("etag", "")
    assert answer.error is not None or (faulty.objects["a"].etag.startswith(etag) and not etag.endswith('"'))


def test_an_answer_cut_in_its_body_is_no_success(transport: CurlTransport, faulty: FaultyS3) -> None:
    """Less than Content-Length announced."""
    faulty.script(Garbage(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"))

    error = put(transport, put_request("a")).error

    assert error is not None
    assert (error.code, error.scope) == ("PARTIAL_FILE", Scope.UNKNOWN)


@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\nEtag: x\r\n\r\n"])
def test_interim_answers_are_not_the_answer(interim: bytes, transport: CurlTransport, faulty: FaultyS3) -> None:
    """A server may say 100 without having been asked; its headers are not those of the answer."""
    faulty.script(Garbage(interim + b"HTTP/1.1 503 Slow\r\nContent-Length: 0\r\n\r\n"))

    answer = put(transport, put_request("a"))

    assert (answer.error, answer.status) == (None, 503)
    assert "etag" not in answer.headers


def test_a_dead_kept_connection_is_replaced(transport: CurlTransport, faulty: FaultyS3, fd: int) -> None:
    """The server closes between two requests: the next one goes over a new connection, from its first byte."""
    faulty.script(Status(code=200, headers={"Connection": "close"}))
    assert ok(put(transport, put_request("first")))

    assert ok(put(transport, range_request("a", fd, 1, MIB)))
    assert faulty.contents()["a"] == content_of(3 * MIB + 1)[1 : 1 + MIB]


def test_connections_are_kept(transport: CurlTransport, faulty: FaultyS3, fd: int) -> None:
    """One for all requests of a worker, whatever their bodies."""
    for number in range(5):
        assert ok(put(transport, put_request(f"m{number}")))
        assert ok(put(transport, range_request(f"s{number}", fd, number, MIB)))

    assert faulty.connections == 1


@pytest.mark.parametrize("trouble", ["refused", "host", "tls", "certificate"])
def test_unusable_endpoints_say_so_at_once(
    trouble: str, kind: str, faulty: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server, no such host, no TLS there, nobody we trust: no file could pass."""
    use(faulty.environment(), monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with FaultyS3(certificate=make_certificate(tmp_path)) as secure:
        url = {
            "refused": f"http://127.0.0.1:{port}",
            "host": "http://no-such-host.invalid:9",
            "tls": faulty.endpoint_url.replace("http:", "https:"),
            "certificate": secure.endpoint_url,
        }[trouble]
        transport = store_of(kind, destination("bucket", url)).transport()

        error = put(transport, put_request("a")).error

        transport.close()
    assert error is not None
    assert (error.scope, error.permanent) == (Scope.EVERYBODY, False)


@pytest.mark.parametrize("told", ["config", "environment"])
def test_tls_with_a_private_ca(told: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """destination.ca_bundle is believed, and so is the variable that AWS's tools know."""
    certificate, key = make_certificate(tmp_path)
    with FaultyS3(certificate=(certificate, key)) as server:
        use(server.environment(), monkeypatch)
        if told == "environment":
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        where = destination(server.bucket, server.endpoint_url, ca_bundle=certificate if told == "config" else None)
        transport = store_of(kind, where).transport()

        assert ok(put(transport, put_request("a", b"secret")))

        transport.close()
        assert server.contents() == {"a": b"secret"}


@pytest.mark.parametrize("complete", [True, False], ids=["all of them", "one is missing"])
def test_the_systems_certificates_are_read_one_by_one(
    complete: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 150 for each of 100 connections; but where the directory has fewer than the bundle, the bundle counts."""
    certificate, key = make_certificate(tmp_path)
    bundle, directory = tmp_path / "bundle.pem", tmp_path / "hashed"
    directory.mkdir()
    bundle.write_bytes(certificate.read_bytes() * (1 if complete else 2))
    hashed = finished("openssl", "x509", "-noout", "-hash", "-in", str(certificate), check=True)
    (directory / f"{hashed.stdout.strip()}.0").symlink_to(certificate)
    monkeypatch.setattr("s3spool.s3.client._SYSTEM_CA", (str(bundle), str(tmp_path / "none")))
    monkeypatch.setattr("s3spool.s3.client._HASHED_CA", (str(tmp_path / "missing"), str(directory)))
    assert ca_source(bundle) == (directory if complete else bundle)
    assert ca_source(tmp_path / "none") == tmp_path / "none"  # libcurl's error names it
    with FaultyS3(certificate=(certificate, key)) as server:
        use(server.environment(), monkeypatch)
        store = store_of("curl", destination(server.bucket, server.endpoint_url))
        if complete:
            bundle.write_bytes(b"")  # nobody looks into it any more
        transport = store.transport()

        assert ok(put(transport, put_request("a", b"secret")))

        transport.close()


@pytest.mark.parametrize("offset", [0, 7])
def test_a_file_that_ends_early_is_no_success(
    offset: int, kind: str, faulty: FaultyS3, tmp_path: Path, transport_at: TransportAt
) -> None:
    """It shrinks while it is sent: an error of the file, at once, and nothing of it in the bucket."""
    path = tmp_path / "file"
    path.write_bytes(content_of(3 * MIB))
    opened = os.open(path, os.O_RDONLY)
    transport = transport_at(faulty, kind, bandwidth=lambda _: os.truncate(path, MIB))

    error = put(transport, range_request("a", opened, offset, 2 * MIB)).error

    os.close(opened)
    assert error is not None
    assert (error.operation, error.scope, error.permanent) == ("read", Scope.FILE, False)
    assert error.cause == f"the file ended at byte {MIB} of {offset + 2 * MIB} while it was sent"
    assert faulty.contents() == {}
    assert ok(put(transport, put_request("next")))


def test_a_file_that_cannot_be_read_is_the_files_trouble(transport: CurlTransport, tmp_path: Path) -> None:
    """An error of the file system in the middle of a body, here: a directory in the file's place."""
    directory = os.open(tmp_path, os.O_RDONLY)

    error = put(transport, range_request("a", directory, 0, 10)).error

    os.close(directory)
    assert error is not None
    assert (error.operation, error.scope) == ("read", Scope.FILE)
    assert error.cause == "the file could not be read on: Is a directory"


def test_every_byte_is_paced_once(kind: str, faulty: FaultyS3, fd: int, transport_at: TransportAt) -> None:
    """The bandwidth limit hears of each byte before it leaves, from memory and from files alike."""
    heard: list[int] = []
    transport = transport_at(faulty, kind, bandwidth=heard.append)

    assert ok(put(transport, put_request("a", b"12345")))
    assert ok(put(transport, put_request("empty", b"")))
    assert ok(put(transport, range_request("b", fd, 1, 3 * MIB)))

    assert (heard[0], sum(heard)) == (5, 5 + 3 * MIB)


def test_the_pace_may_grant_less(kind: str, faulty: FaultyS3, fd: int, transport_at: TransportAt) -> None:
    """Then the rest is asked for again, and nothing is sent twice or left out."""
    asked: list[int] = []

    def grant(size: int) -> int:
        asked.append(size)
        return min(size, 10_000)

    transport = transport_at(faulty, kind, bandwidth=grant)

    assert ok(put(transport, put_request("a", b"m" * 25_000)))
    assert asked == [25_000, 15_000, 5_000]
    assert ok(put(transport, range_request("b", fd, 5, MIB)))

    assert faulty.contents() == {"a": b"m" * 25_000, "b": content_of(3 * MIB + 1)[5 : 5 + MIB]}
    assert len(asked) >= MIB // 10_000


def test_a_rested_transport_goes_on(transport: CurlTransport, faulty: FaultyS3, fd: int) -> None:
    """It gave back its memory, not what it needs to send."""
    requests = [put_request("a", b"1"), range_request("b", fd, 0, MIB), range_request("c", fd, 1, 9), put_request("d")]

    for request in requests * 2:
        assert ok(put(transport, request))
        transport.release_buffers()
        transport.release_buffers()

    assert faulty.contents() == {
        "a": b"1",
        "b": content_of(3 * MIB + 1)[:MIB],
        "c": content_of(3 * MIB + 1)[1:10],
        "d": b"body",
    }


@pytest.mark.parametrize(("fast_bytes_s", "later"), [(0, module.FAST_BUFFER_BYTES), (2**62, module.BUFFER_BYTES)])
def test_only_a_fast_connection_gets_a_large_buffer(
    fast_bytes_s: int, later: int, faulty: FaultyS3, fd: int, transport_at: TransportAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What small bodies take says nothing of the speed: the first range goes with the smaller one."""
    monkeypatch.setattr(module, "FAST_BYTES_S", fast_bytes_s)
    transport = transport_at(faulty)
    used = []

    for request in (put_request("a"), range_request("b", fd, 0, MIB), range_request("c", fd, 0, MIB)):
        assert ok(put(transport, request))
        used.append(transport._buffer_bytes)

    assert used == [0, module.BUFFER_BYTES, later]


class EarlyRefusal(HoldUntil):
    """Refuse after the headers, and read no more."""

    def on_headers(self, exchange: Exchange) -> None:
        exchange.send_raw(exchange.render(Reply.error(413, "EntityTooLarge")))
        self.event.wait()
        raise HangUp


@pytest.mark.parametrize("timeout_s", [1.0])
def test_a_refusal_in_the_middle_of_a_body(transport: CurlTransport, faulty: FaultyS3, tmp_path: Path) -> None:
    """libcurl hears it and stops. The connection is not used again."""
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, 64 * MIB)  # more than the buffers of both sockets hold
    fd = os.open(path, os.O_RDONLY)
    fault = EarlyRefusal()
    faulty.script(fault)

    answer = put(transport, range_request("a", fd, 0, 64 * MIB))

    os.close(fd)
    assert (answer.error, answer.status) == (None, 413)
    assert b"EntityTooLarge" in answer.body
    assert ok(put(transport, put_request("next")))
    fault.event.set()


ENDLESS = {
    "error, all at once": ((b"HTTP/1.1 403 No\r\n\r\n", b"y" * 65536), 0.0, 403),
    "success, all at once": ((b"HTTP/1.1 200 OK\r\nETag: x\r\n\r\n", b"y" * 65536), 0.0, 200),
    "error, in chunks": (
        (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"y" * 4096 + b"\r\n"),
        0.0,
        500,
    ),
    "body in drips": ((b"HTTP/1.1 200 OK\r\n\r\n", b"y"), 0.02, 200),
    "header in drips": ((b"HTTP/1.1 200 OK\r\nX-Long: ", b"y"), 0.2, 0),
    "headers in drips": ((b"HTTP/1.1 200 OK\r\n", b"X-Another: y\r\n"), 0.2, 0),
    "interim answers in drips": ((b"HTTP/1.1 102 Processing\r\n\r\n",), 0.2, 0),
    "interim answers all at once": ((b"HTTP/1.1 102 Processing\r\n\r\n" * 100,), 0.0, 0),
    "headers all at once": ((b"HTTP/1.1 200 OK\r\n", b"X-Another: y\r\n" * 100), 0.0, 0),
}


@pytest.mark.parametrize(
    ("name", "streamed"), [(name, False) for name in ENDLESS] + [("error, all at once", True), ("body in drips", True)]
)
@pytest.mark.parametrize("timeout_s", [1.0])
def test_an_answer_without_an_end_is_cut_off(
    name: str, streamed: bool, transport: CurlTransport, faulty: FaultyS3, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds nobody for ever; what it began with counts if that was a whole head, and the handle stays usable."""
    monkeypatch.setattr("s3spool.s3.curl_transport.MAX_ANSWER_PIECES", 10)
    pieces, pause_s, status = ENDLESS[name]
    faulty.script(Endless(pieces, pause_s), times=None)

    answer = put(transport, range_request("a", fd, 0, 3 * MIB) if streamed else put_request("a"))

    assert answer.status == status
    assert len(answer.body) < MIB
    if not status:
        assert answer.error is not None
        assert answer.error.scope is Scope.UNKNOWN
        assert answer.error.code in {"OPERATION_TIMEDOUT", "RECV_ERROR", "TOO_LARGE"}
    faulty.behave()
    faulty.cut()
    assert ok(put(transport, put_request("next")))


def test_waiting_for_the_pace_is_no_silence(kind: str, faulty: FaultyS3, fd: int, transport_at: TransportAt) -> None:
    """A body that waits for its turn longer than timeout_s is not taken for a server that does not answer."""
    transport = transport_at(faulty, kind, timeout_s=1.0, bandwidth=lambda _: threading.Event().wait(1.5) and None)

    answer = put(transport, range_request("a", fd, 0, 100))

    assert ok(answer), answer


def test_without_credentials_nothing_is_sent(
    kind: str, faulty: FaultyS3, store_at: StoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where they vanish later, the last request is not sent once more in the place of this one."""
    store = store_at(faulty, kind)
    transport = store.transport()
    assert ok(put(transport, put_request("a")))
    use({}, monkeypatch)
    store.credentials._forget_cached()

    store.credentials.refresh()
    error = put(transport, put_request("b")).error

    assert error is not None
    assert (error.code, error.scope) == ("NoCredentials", Scope.EVERYBODY)
    assert [request.key for request in faulty.requests] == ["a"]
    transport.close()


def test_new_credentials_and_another_region_are_taken(
    kind: str, faulty: FaultyS3, store_at: StoreAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open transport goes on with what is valid now."""
    store = store_at(faulty, kind)
    transport = store.transport()
    put(transport, put_request("a"))
    use({"AWS_ACCESS_KEY_ID": "AKNEW", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "tok/en+="}, monkeypatch)
    store.credentials._forget_cached()
    store.credentials.refresh()
    assert store._clients.move_to("eu-central-1")

    put(transport, put_request("b"))

    one, two = (request.headers for request in faulty.requests)
    assert "Credential=AKFAULTY/" in one["authorization"]
    assert "/us-east-1/s3/aws4_request" in one["authorization"]
    assert "Credential=AKNEW/" in two["authorization"]
    assert "/eu-central-1/s3/aws4_request" in two["authorization"]
    assert two["x-amz-security-token"] == "tok/en+="
    transport.close()


def test_a_part_is_read_to_its_end_and_no_further(tmp_path: Path) -> None:
    """The bytes of the next part count for that one, also under a bandwidth limit."""
    content = content_of(100, seed=1)
    (tmp_path / "f").write_bytes(content)
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    part = FileRange(range_request("big", fd, 10, 25), None)

    assert [part.read(10) for _ in range(4)] == [content[10:20], content[20:30], content[30:35], b""]
    os.close(fd)


def test_descriptors_are_given_back(kind: str, faulty: FaultyS3, store_at: StoreAt) -> None:
    """Closed transports hold nothing, those that had errors neither."""
    store = store_at(faulty, kind, timeout_s=5.0)
    faulty.script(Reset("after"), times=None, match="bad")

    def rounds(count: int) -> None:
        for _ in range(count):
            transport = store.transport()
            put(transport, put_request("good"))
            put(transport, put_request("bad"))
            transport.close()

    rounds(2)
    before = set(os.listdir("/proc/self/fd"))
    rounds(20)

    # The server's ends of them close when it sees ours closed: it may hold a few at any time.
    assert len(set(os.listdir("/proc/self/fd")) - before) < 10
