"""HTTPS_PROXY, HTTP_PROXY and NO_PROXY: one rule for libcurl and boto3, tried with a real proxy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s3spool.demo.seaweed import Seaweed
from s3spool.errors import ConfigError, Scope, UploadError
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.plain_http import beyond_loopback
from s3spool.s3.proxies import masked, proxy_of
from s3spool.s3.store import look
from support.daemon import Daemon
from support.faulty import FaultyS3, make_certificate
from support.objects import content_of, objects
from support.stores import content, destination, put, put_request, store_of, use
from support.tinyproxy import PASSWORD, USER, Tinyproxy

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PART = 5 * 1024 * 1024
HTTPS, HTTP = "https://b.s3.example.org/", "http://10.1.2.3:9000/b/"
_NAMES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Tinyproxy]:
    with Tinyproxy(tmp_path) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        (HTTPS, {}, ""),
        (HTTPS, {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        (HTTPS, {"HTTP_PROXY": "http://p:3128"}, ""),
        (HTTP, {"HTTP_PROXY": "http://p:3128"}, "http://p:3128"),
        (HTTP, {"HTTPS_PROXY": "http://p:3128"}, ""),
        (HTTPS, {"https_proxy": "http://small:1", "HTTPS_PROXY": "http://large:2"}, "http://small:1"),
        (HTTPS, {"https_proxy": "", "HTTPS_PROXY": "http://large:2"}, ""),
        (HTTPS, {"HTTPS_PROXY": "p:3128"}, "http://p:3128"),
        (HTTPS, {"HTTPS_PROXY": "http://p"}, "http://p:80"),
        (HTTPS, {"HTTPS_PROXY": "https://p/"}, "https://p:443"),
        (HTTPS, {"HTTPS_PROXY": "http://u:p%40ss@p:1"}, "http://u:p%40ss@p:1"),
        (HTTPS, {"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
    ],
)
def test_the_variables(url: str, environment: dict[str, str], expected: str) -> None:
    """By the scheme of the URL; small letters win over capitals."""
    assert proxy_of(url, environment) == expected


@pytest.mark.parametrize(
    ("url", "no_proxy", "direct"),
    [
        (HTTPS, "", False),
        (HTTPS, "*", True),
        (HTTPS, "other.org, b.s3.example.org", True),
        (HTTPS, "B.S3.EXAMPLE.ORG", True),
        (HTTPS, "other.org b.s3.example.org", True),
        (HTTPS, "example.org", True),
        (HTTPS, ".example.org", True),
        (HTTPS, "*.example.org", True),
        (HTTPS, "ample.org", False),
        (HTTPS, "b.s3.example.org:443", True),
        (HTTPS, "b.s3.example.org:80", False),
        (HTTPS, "10.0.0.0/8", False),
        (HTTP, "10.0.0.0/8", True),
        (HTTP, "10.1.2.3", True),
        (HTTP, "10.1.2.3/32", True),
        (HTTP, "10.1.2.3:9000", True),
        (HTTP, "10.1.2.3:80", False),
        (HTTP, "10.1.2", False),
        (HTTP, "192.168.0.0/16,10.1.0.0/16", True),
        ("http://[fd00::5]:9000/", "fd00::/8", True),
        ("http://[fd00::5]:9000/", "[fd00::5]:9000", True),
        ("http://[fd00::5]:9000/", "fd00::6", False),
        ("http://localhost./", "localhost", True),
        (HTTPS, ",, .", False),
    ],
)
def test_no_proxy(url: str, no_proxy: str, direct: bool) -> None:
    """Hosts, domains, networks, ports: what either of libcurl and Python understands."""
    environment = {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:1", "NO_PROXY": no_proxy}

    assert proxy_of(url, environment) == ("" if direct else "http://p:1")


@pytest.mark.parametrize("value", ["socks5://p:1", "http://", "http://p:x", "http://u:secret@p/path", "http://p:99999"])
def test_a_wrong_proxy_is_a_line_without_its_password(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, with the name of the variable."""
    monkeypatch.setenv("HTTPS_PROXY", value)

    with pytest.raises(ConfigError, match=r"^HTTPS_PROXY = .*must be a proxy like") as raised:
        store_of("curl", destination("bucket", "https://s3.example.org"))

    assert "secret" not in str(raised.value)
    assert masked("http://u:secret@p:1") == "http://***@p:1"
    assert masked("u:se@cret@p:1") == "***@p:1"


def test_http_through_a_proxy_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a signature covers the body there, also where the endpoint has a loopback address."""
    assert not beyond_loopback("http://127.0.0.1:1/")
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    assert beyond_loopback("http://127.0.0.1:1/")


@pytest.mark.integration
def test_a_daemon_uploads_through_a_proxy(
    tmp_path: Path, proxy: Tinyproxy, seaweed: Seaweed, s3: S3Client, bucket: str
) -> None:
    """Bodies by libcurl and all requests of boto3 go through it, with user and password, which no log shows."""
    large = content_of(PART + 1)
    environment = {**seaweed.environment(), "HTTP_PROXY": proxy.url}
    with Daemon(
        tmp_path,
        bucket=bucket,
        environment=environment,
        upload={"multipart_threshold": PART, "part_size": PART},
        destination={"endpoint_url": seaweed.endpoint_url},
        log={"level": "debug"},
    ) as daemon:
        daemon.wait_ready()
        daemon.drop("small", b"small")
        daemon.drop("large", large)
        daemon.wait_uploaded(2)
        checked = daemon.cli("check").stdout

    assert objects(s3, bucket) == {"small": b"small", "large": large}
    for method, what in (("PUT", "/small"), ("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId")):
        assert any(line.startswith(method) and what in line for line in proxy.requests()), proxy.requests()
    assert f"proxy: http://***@127.0.0.1:{proxy.port}" in checked
    for text in (daemon.log_path.read_text(), checked):
        assert PASSWORD not in text
        assert PASSWORD.replace("-", "%2D") not in text


@pytest.mark.integration
def test_no_proxy_holds_for_libcurl_and_boto3(
    tmp_path: Path, proxy: Tinyproxy, seaweed: Seaweed, s3: S3Client, bucket: str
) -> None:
    """A network, which boto3 alone would not understand: nothing goes through the proxy."""
    environment = {**seaweed.environment(), "HTTP_PROXY": proxy.url, "NO_PROXY": "127.0.0.0/8"}
    with Daemon(
        tmp_path,
        bucket=bucket,
        environment=environment,
        upload={"multipart_threshold": PART, "part_size": PART},
        destination={"endpoint_url": seaweed.endpoint_url},
    ) as daemon:
        daemon.wait_ready()
        daemon.drop("small", b"small")
        daemon.drop("large", content_of(PART + 1))
        daemon.wait_uploaded(2)

    assert len(objects(s3, bucket)) == 2
    assert proxy.requests() == []


@pytest.mark.parametrize("kind", ["curl", "carried"])
def test_tls_goes_through_a_tunnel(
    kind: str, tmp_path: Path, proxy: Tinyproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CONNECT, then TLS to S3 itself: small bodies, parts, and what boto3 asks."""
    certificate = make_certificate(tmp_path)
    with FaultyS3(certificate=certificate) as server:
        use(server.environment(), monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        store = store_of(kind, destination(server.bucket, server.endpoint_url, ca_bundle=certificate[0]))
        transport = store.transport()
        assert put(transport, put_request("a", b"body")).status == 200
        assert put(transport, put_request("b", b"body")).status == 200
        parts = MultipartStore(store)
        with content(tmp_path / "large", b"large", in_memory=False) as file:
            upload = parts.create(file.path, file.identity, 1, PART)
            request = parts.part_request(upload, file, 1)
            part = parts.verify_part(upload, request, put(transport, request), 1)
            parts.complete(upload, file, [part])
        assert look(store.client, store.bucket, "large", "large")
        transport.close()

        assert server.contents() == {"a": b"body", "b": b"body", "large": b"large"}
    assert proxy.requests()
    assert {line.split()[0] for line in proxy.requests()} == {"CONNECT"}


@pytest.mark.parametrize(
    ("kind", "scheme", "user"),
    [
        *((kind, "https", f"{USER}:wr0ng-one@") for kind in ("curl", "carried")),
        ("curl", "http", ""),
        ("carried", "http", ""),
    ],
)
def test_a_wrong_password_concerns_everybody(
    kind: str, scheme: str, user: str, tmp_path: Path, proxy: Tinyproxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It pauses the destination at once; the line names the variable and never the password."""
    certificate = make_certificate(tmp_path) if scheme == "https" else None
    with FaultyS3(certificate=certificate) as server:
        use(server.environment(), monkeypatch)
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{user}127.0.0.1:{proxy.port}")
        where = destination(server.bucket, server.endpoint_url, ca_bundle=certificate and certificate[0])
        store = store_of(kind, where)
        transport = store.transport()
        with content(tmp_path / "small", b"small", in_memory=True) as file:
            request = store.request(file)
            with pytest.raises(UploadError) as raised:
                store.verify(file, request, put(transport, request), may_verify=True)
        transport.close()

        assert not server.requests
    error = raised.value
    assert error.scope is Scope.EVERYBODY, (error.code, error.cause)
    assert "PROXY" in error.hint or "proxy" in error.hint
    assert "wr0ng" not in str(error)
