"""Signatures are those of botocore: SigV4 as a server got it, computed a second time by the reference."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from s3spool.s3.credentials import Snapshot
from s3spool.s3.signing import libcurl_signs, signed
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
    "access",
    [
        "account:user",
        ":",
        "user@example.org",
        "a/b+c=%41;d",
        'with blank "quotes"',
        "az09AZ.d~e_f-g.h",
    ],
)
@pytest.mark.parametrize("secret", [SECRET, "se:cr:et"])
@pytest.mark.parametrize("token", ["", TOKEN])
def test_every_access_key_is_signed_with(
    access: str, secret: str, token: str, server: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that libcurl would cut or percent-encode."""
    use({"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}, monkeypatch)
    transport = store_of("curl", destination(server.bucket, server.endpoint_url, region="eu-central-1")).transport()
    for key, query, headers in (("a b+c&d=e?f#g%h", "", HEADERS), ("plain", PART + "a%2Fb%3D", OBJECT)):
        server.requests.clear()

        answer = put(transport, put_request(key, b"body", headers, query))

        assert answer.error is None
        (request,) = server.requests
        assert request.key == key
        found = _AUTHORIZATION.fullmatch(request.headers["authorization"])
        assert found
        assert found["scope"].startswith(f"{access}/{request.headers['x-amz-date'][:8]}/")
        signed = found["headers"].split(";")
        assert {name for name in request.headers if name.startswith("x-amz-")} | {"host"} <= set(signed)
        keys = Credentials(access, secret, token or None)
        assert found["signature"] == reference(server, request, query, signed, token, keys)
    transport.close()


def test_keys_of_either_kind_follow_one_another(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open transport signs with the keys of now."""
    use({"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}, monkeypatch)
    store = store_of("curl", destination(server.bucket, server.endpoint_url, region="eu-central-1"))
    transport = store.transport()

    for access in (ACCESS, "account:user", ACCESS):
        store.credentials.current = Snapshot(access, SECRET, "")
        server.requests.clear()
        put(transport, put_request("a"))
        (request,) = server.requests
        found = _AUTHORIZATION.fullmatch(request.headers["authorization"])
        assert found
        assert found["scope"].startswith(f"{access}/")
        keys = Credentials(access, SECRET)
        assert found["signature"] == reference(server, request, "", found["headers"].split(";"), "", keys)
    transport.close()


def test_a_multi_region_access_point_gets_sigv4a(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which libcurl cannot make: it holds for all regions."""
    use({"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}, monkeypatch)
    where = destination("arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", "")
    url = store_of("curl", where).endpoint.url
    keys = Snapshot(ACCESS, SECRET, TOKEN)

    headers = signed(f"{url}a", (("x-amz-meta-a", "b"),), "UNSIGNED-PAYLOAD", keys, "us-east-1")

    assert not libcurl_signs(keys, url)
    assert headers["Authorization"].startswith(f"AWS4-ECDSA-P256-SHA256 Credential={ACCESS}/")
    found = {name.lower(): value for name, value in headers.items()}
    assert found["x-amz-region-set"] == "*"
    assert found["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert found["x-amz-security-token"] == TOKEN
    _, _, names = headers["Authorization"].partition("SignedHeaders=")
    assert {"host", "x-amz-meta-a", "x-amz-region-set"} <= {*names.partition(",")[0].split(";")}


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
