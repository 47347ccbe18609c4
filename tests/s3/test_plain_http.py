"""Endpoints without TLS: the signature covers the body, and a person is told what stays."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from s3.conftest import TransportAt
from s3spool.demo.seaweed import Seaweed
from s3spool.s3 import plain_http
from s3spool.s3.plain_http import beyond_loopback
from s3spool.s3.transport import Request
from support.daemon import Daemon
from support.faulty import FaultyS3
from support.s3_messages import Request as Seen
from support.stores import destination, put, put_request, store_of, use

pytestmark = pytest.mark.integration

ACCESS, SECRET = "AKSIGNING", "secret"
BODY = b"what was meant"


@pytest.mark.parametrize(
    ("url", "beyond"),
    [
        ("http://s3.example.org/bucket/", True),
        ("http://192.0.2.1:9000/bucket/", True),
        ("http://[2001:db8::1]:9000/bucket/", True),
        ("http://localhost.example.org/", True),
        ("http://127.0.0.1.example.org/", True),
        ("http://127.0.0.1:8333/bucket/", False),
        ("http://127.8.9.10/", False),
        ("http://[::1]:8333/bucket/", False),
        ("http://localhost:8333/", False),
        ("http://LOCALHOST./", False),
        ("http://bucket.localhost:8333/", False),
        ("https://s3.example.org/", False),
        ("", False),
    ],
)
def test_what_crosses_a_network(url: str, beyond: bool) -> None:
    """Loopback does not, nor does TLS count as plain."""
    assert beyond_loopback(url) is beyond


@pytest.mark.parametrize("signer", ["libcurl", "botocore"])
@pytest.mark.parametrize("large", [False, True], ids=["a body", "a range"])
@pytest.mark.parametrize("query", ["", "partNumber=7&uploadId=abc"], ids=["file", "part"])
def test_the_signature_covers_the_body(
    signer: str, large: bool, query: str, faulty: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As botocore signs it; the same request with another body has another signature."""
    monkeypatch.setattr(plain_http, "beyond_loopback", lambda _url: True)
    use_signer(signer, monkeypatch)
    seen = sent(request_of(tmp_path, query, large=large), faulty, monkeypatch)

    assert seen.headers["x-amz-content-sha256"] == hashlib.sha256(BODY).hexdigest()
    assert signature(seen) == reference(faulty, seen, BODY)
    assert signature(seen) != reference(faulty, seen, b"what was put in its place")


def test_loopback_and_tls_pay_nothing_for_it(faulty: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SHA-256 would cost more CPU than all the rest of a large body."""
    for signer in ("libcurl", "botocore"):
        use_signer(signer, monkeypatch)
        seen = sent(request_of(tmp_path, "", large=True), faulty, monkeypatch)
        assert seen.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def request_of(tmp_path: Path, query: str, *, large: bool) -> Request:
    if not large:
        return put_request("key", BODY, (), query)
    path = tmp_path / "file"
    path.write_bytes(b"before" + BODY + b"behind")
    fd = os.open(path, os.O_RDONLY)
    return put_request("key", b"", (), query)._replace(body=None, fd=fd, offset=6, length=len(BODY))


def use_signer(signer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if signer == "botocore":
        monkeypatch.setattr("s3spool.s3.curl_transport.libcurl_signs", lambda *_: False)


def sent(request: Request, faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Seen:
    use({"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}, monkeypatch)
    transport = store_of("curl", destination(faulty.bucket, faulty.endpoint_url, region="eu-central-1")).transport()
    faulty.requests.clear()
    put(transport, request)
    transport.close()
    if request.body is None:
        os.close(request.fd)
    (seen,) = faulty.requests
    return seen


def signature(seen: Seen) -> str:
    return seen.headers["authorization"].rpartition("Signature=")[2]


def reference(faulty: FaultyS3, seen: Seen, body: bytes) -> str:
    """What botocore's signer makes of the request with this body."""
    named = seen.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    query = "?" + "&".join(f"{name}={value}" for name, value in seen.query.items()) if seen.query else ""
    headers = {name: seen.headers[name] for name in named}
    headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
    same = AWSRequest("PUT", f"{faulty.endpoint_url}{seen.path}{query}", headers=headers)
    same.context["timestamp"] = seen.headers["x-amz-date"]
    signer = S3SigV4Auth(Credentials(ACCESS, SECRET), "s3", "eu-central-1")
    return str(signer.signature(signer.string_to_sign(same, signer.canonical_request(same)), same))


def test_the_start_and_check_say_it(tmp_path: Path, faulty: FaultyS3) -> None:
    """One sentence, where the endpoint is beyond this machine; nothing on loopback."""
    daemon = Daemon(tmp_path, faulty)
    with daemon:
        daemon.wait_ready()
        assert not daemon.events("destination.unencrypted")
        assert daemon.stop() == 0
    assert "http beyond this machine" not in daemon.cli("check").stdout

    # A proxy that refuses at once stands for the network: nothing leaves this machine.
    environment = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    daemon.environment |= environment
    daemon.config["destination"]["endpoint_url"] = "http://192.0.2.1:9000"
    with daemon:
        daemon.wait_event("destination.unencrypted", endpoint=f"http://192.0.2.1:9000/{faulty.bucket}/")
        assert daemon.stop() == 0
    said = daemon.cli("check").stdout
    assert f"warning endpoint: http://192.0.2.1:9000/{faulty.bucket}/: http beyond this machine" in said


@pytest.mark.parametrize("signer", ["libcurl", "botocore"])
@pytest.mark.parametrize("large", [False, True], ids=["a body", "a range"])
def test_a_real_server_takes_the_signature(
    signer: str,
    large: bool,
    seaweed: Seaweed,
    bucket: str,
    tmp_path: Path,
    transport_at: TransportAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The object holds the body."""
    monkeypatch.setattr(plain_http, "beyond_loopback", lambda _url: True)
    use_signer(signer, monkeypatch)
    request = request_of(tmp_path, "", large=large)
    assert put(transport_at(seaweed, bucket=bucket), request).status == 200
    if large:
        os.close(request.fd)
    assert seaweed.client().get_object(Bucket=bucket, Key="key")["Body"].read() == BODY
