"""Signatures of libcurl are those of botocore: SigV4 as a server got it, computed a second time by the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from s3spool.s3.credentials import Snapshot
from s3spool.s3.store import Store
from support.faulty import FaultyS3
from support.s3_messages import Request
from support.stores import destination, put, put_request, store_of, use

ACCESS, SECRET = "AKSIGNING", "se/cr+et=:with~all"
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<scope>[^,]+), ?SignedHeaders=(?P<headers>[^,]+), ?Signature=(?P<signature>\w+)"
)
HEADERS: tuple[tuple[str, str], ...] = (
    ("x-amz-storage-class", "STANDARD_IA"),
    ("x-amz-tagging", "team=data%20x&b=%2B"),
    ("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="),
    ("x-amz-meta-mtime", "1700000000.000000001"),
    ("If-None-Match", "*"),
    ("Content-MD5", "hBotaJqYa9FhFN+UPsNgbg=="),
)
OBJECT: tuple[tuple[str, str], ...] = (
    ("Content-Type", 'text/html; charset="utf-8"'),
    ("Cache-Control", "public,  max-age=60"),
    ("Content-Disposition", "attachment; filename=\"a b.txt\"; filename*=UTF-8''%e2%82%ac"),
    ("Content-Encoding", "gzip, br"),
    ("Content-Language", "de, pt-BR"),
    ("x-amz-object-lock-mode", "COMPLIANCE"),
    ("x-amz-object-lock-retain-until-date", "2030-01-01T00:00:00Z"),
    ("x-amz-object-lock-legal-hold", "ON"),
    ("x-amz-request-payer", "requester"),
    ("x-amz-meta-path", "%C3%BC  1%25.txt"),
)
PART = "partNumber=7&uploadId="
TOKEN = "IQoJ/b3Jp+Z2lu==" * 60


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as started:
        yield started


@pytest.mark.parametrize(
    ("key", "query", "headers", "token"),
    [
        ("plain", "", (), ""),
        ("plain", "", HEADERS, ""),
        ("plain", "", HEADERS, TOKEN),
        ("plain", "", OBJECT, TOKEN),
        ("plain", PART + "abc", OBJECT[8:9], ""),
        ("plain", PART + "abc", (), TOKEN),
        ("plain", PART + "a%2Fb%2Bc%3D%3D%20d~e.f-g_h", (), ""),
        ("plain", PART + "%25%E6%97%A5%26%3D", HEADERS[:1], ""),
        ("a b+c&d=e?f#g%h;i,j@k", "", HEADERS, TOKEN),
        ('back\\slash"quote<>[]{}|^`', "", (), ""),
        ("日本/ümlaut é/\U0001f600", PART + "1", (), ""),
        ("double//slash//", "", (), ""),
        ("%2E%2E/100%/%25", "", (), ""),
        ("~tilde!*'()$:", "", (), ""),
        ("x" * 1000, "", (), ""),
        ("spaces", "", (("x-amz-meta-a", "two  words   three"), ("x-amz-meta-b", "a\tb")), ""),
        ("order", "", (("x-amz-meta-b", "2"), ("x-amz-meta-a", "1"), ("x-amz-meta-a-b", "3")), ""),
        ("marks", "", (("x-amz-meta-a", ':;,="()<>[]{}?@\\/~'), ("x-amz-meta-x!#$%&'*+.^`|~", "odd name")), ""),
    ],
)
def test_signature_is_that_of_botocore(
    key: str,
    query: str,
    headers: tuple[tuple[str, str], ...],
    token: str,
    server: FaultyS3,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference signs the request that arrived, with the date and the list of headers it named: the same result."""
    use({"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": token}, monkeypatch)
    where = destination(server.bucket, server.endpoint_url, region="eu-central-1")
    transport = store_of("curl", where).transport()
    server.requests.clear()

    answer = put(transport, put_request(key, b"body", headers, query))

    transport.close()
    assert answer.error is None
    (request,) = server.requests
    assert request.key == key
    found = _AUTHORIZATION.fullmatch(request.headers["authorization"])
    assert found
    date = request.headers["x-amz-date"]
    assert found["scope"] == f"{ACCESS}/{date[:8]}/eu-central-1/s3/aws4_request"
    signed = found["headers"].split(";")
    # What has a meaning for S3 must not be open to change on the way; the host neither.
    assert {name for name in request.headers if name.startswith("x-amz-")} | {"host"} <= set(signed)
    assert request.headers.get("x-amz-security-token", "") == token
    assert found["signature"] == reference(server, request, query, signed, token)


@pytest.mark.parametrize(
    ("access", "kind"),
    [
        ("account:user", "boto3"),
        (":", "boto3"),
        ("user@example.org", "boto3"),
        ("a/b+c=%41;d", "boto3"),
        ('with blank "quotes"', "boto3"),
        ("az09AZ.d~e_f-g.h", "curl"),
    ],
)
@pytest.mark.parametrize("secret", [SECRET, "se:cr:et"])
def test_every_access_key_is_signed_with(
    access: str, kind: str, secret: str, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that libcurl would cut or percent-encode go by boto3."""
    use({"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}, monkeypatch)
    store = Store(destination(server.bucket, server.endpoint_url, region="eu-central-1"), timeout_s=20.0)
    transport = store.transport()
    server.requests.clear()

    answer = put(transport, put_request("a"))

    transport.close()
    server.cut()  # boto3 keeps its connection
    assert (answer.status, store.kind) == (200, kind)
    assert (store.multiplexer() is None) == (kind == "boto3")
    (request,) = server.requests
    found = _AUTHORIZATION.fullmatch(request.headers["authorization"])
    assert found
    assert found["scope"].startswith(f"{access}/{request.headers['x-amz-date'][:8]}/")
    signed = found["headers"].split(";")
    assert found["signature"] == reference(server, request, "", signed, "", Credentials(access, secret))


def test_an_access_key_for_boto3_that_comes_later_is_an_error(
    server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a wrong signature: the line says what to do."""
    use({"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}, monkeypatch)
    store = store_of("curl", destination(server.bucket, server.endpoint_url))
    transport = store.transport()
    store.credentials.current = Snapshot("account:user", SECRET, "")
    server.requests.clear()

    answer = put(transport, put_request("a"))

    transport.close()
    assert answer.error is not None
    assert answer.error.code == "NoCredentials"
    assert "restart" in answer.error.cause
    assert not server.requests


def reference(
    server: FaultyS3, request: Request, query: str, signed: list[str], token: str, keys: Credentials | None = None
) -> str:
    """What botocore's signer makes of a request."""
    url = f"{server.endpoint_url}{request.path}" + (f"?{query}" if query else "")
    same = AWSRequest("PUT", url, headers={name: request.headers[name] for name in signed})
    same.context["timestamp"] = request.headers["x-amz-date"]
    signer = S3SigV4Auth(keys or Credentials(ACCESS, SECRET, token or None), "s3", "eu-central-1")
    assert signer.signed_headers(signer.headers_to_sign(same)) == ";".join(signed)
    return str(signer.signature(signer.string_to_sign(same, signer.canonical_request(same)), same))


def test_the_secret_stays_here(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret key is in no header, not even as the password that libcurl takes it for."""
    use({"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}, monkeypatch)
    transport = store_of("curl", destination(server.bucket, server.endpoint_url)).transport()
    server.requests.clear()

    put(transport, put_request("a"))

    transport.close()
    (request,) = server.requests
    assert not [value for value in request.headers.values() if SECRET in value or "Basic" in value]
