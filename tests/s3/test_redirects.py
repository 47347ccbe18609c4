"""Redirects are not followed, and one line says where they point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from s3.conftest import StoreAt
from s3spool.errors import UploadError
from s3spool.s3.errors import from_code
from s3spool.s3.multipart import MultipartStore
from support.daemon import Daemon, to_toml
from support.faults import Redirect, Status
from support.faulty import FaultyS3
from support.stores import content, put, put_request

PART = 5 * 2**20
PORTAL = b"<html><body>302 <a href=x>Moved</a></body></html>"


@pytest.fixture(scope="module")
def module_server() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def server(module_server: FaultyS3) -> Iterator[FaultyS3]:
    """As new."""
    module_server.requests.clear()
    module_server.objects.clear()
    yield module_server
    module_server.behave()
    module_server.cut()


@pytest.fixture(scope="module")
def anywhere() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def elsewhere(anywhere: FaultyS3) -> Iterator[FaultyS3]:
    """What the redirect points to; nobody may ask it."""
    yield anywhere
    assert not anywhere.requests


@pytest.fixture(scope="module")
def daemon(module_server: FaultyS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all redirects."""
    with Daemon(
        tmp_path_factory.mktemp("redirects"),
        module_server,
        upload={"multipart_threshold": f"{PART}", "part_size": f"{PART}"},
    ) as daemon:
        daemon.wait_ready()
        yield daemon
        assert "Recursion" not in daemon.log_path.read_text()
        assert "Traceback" not in daemon.log_path.read_text()


@pytest.mark.integration
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_each_file_says_where_the_redirect_points(
    daemon: Daemon, server: FaultyS3, elsewhere: FaultyS3, status: int
) -> None:
    """Small or large: one clear line, and the upload once the redirect is gone."""
    to = {"Location": f"{elsewhere.endpoint_url}/login?from=x"}
    for name, body in ((f"small {status}", b"s"), (f"large {status}", b"l" * (PART + 1))):
        daemon.mark()
        server.script(Status(code=status, headers=to, body=PORTAL), times=None)
        before = server.count()
        daemon.drop(name, body)
        # 307 is S3's own word for a bucket that is young, and a file has passed after the first redirect: then it
        # pauses only when eight files in a row have failed.
        at_once = status != 307 and name.startswith("small")
        failed = daemon.wait_event("destination.paused" if at_once else "file.failed")
        assert f"redirects to {elsewhere.endpoint_url}" in failed["error"]
        assert f'"{elsewhere.endpoint_url}"' in failed["hint"]
        assert "endpoint_url" in failed["hint"]
        assert server.count() - before < 20
        server.behave()
        daemon.wait_event("file.uploaded", path=name)


@pytest.mark.integration
def test_check_says_where_the_redirect_points(tmp_path: Path, server: FaultyS3, elsewhere: FaultyS3) -> None:
    """One request, one error, no traceback."""
    server.script(Status(code=301, headers={"Location": elsewhere.endpoint_url}), times=None)
    daemon = Daemon(tmp_path, server)
    daemon.config_path.write_text(to_toml(daemon.config))

    done = daemon.cli("check")

    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert f"redirects to {elsewhere.endpoint_url}" in line
    assert "destination.endpoint_url" in line
    assert not done.stderr
    assert server.count() == 1


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["curl", "carried"])
def test_no_request_follows(
    server: FaultyS3, elsewhere: FaultyS3, store_at: StoreAt, tmp_path: Path, kind: str
) -> None:
    """Neither bodies nor questions, and each is one request."""
    store = store_at(server, kind)
    server.script(Status(code=302, headers={"Location": elsewhere.endpoint_url}, body=PORTAL), times=None)
    transport = store.transport()
    assert put(transport, put_request("a")).status == 302
    transport.close()
    with content(tmp_path / "f", b"f", in_memory=False) as file, pytest.raises(UploadError) as caught:
        MultipartStore(store).create("f", file.identity, 1, PART)

    assert caught.value.operation == "create multipart upload"
    assert f"redirects to {elsewhere.endpoint_url}" in caught.value.cause
    assert server.count() == 2


@pytest.mark.integration
def test_large_files_learn_the_region_as_small_ones_do(tmp_path: Path, server: FaultyS3) -> None:
    """S3 names the region, botocore does not follow, and the next request is signed for it."""

    def signed_for_another(request: object) -> bool:
        return "/eu-central-1/s3/" not in request.headers.get("authorization", "")  # type: ignore[attr-defined]

    server.script(Redirect(), times=None, match=signed_for_another)
    upload = {"multipart_threshold": f"{PART}", "part_size": f"{PART}"}
    with Daemon(tmp_path, server, upload=upload) as daemon:
        daemon.wait_ready()
        daemon.drop("large", b"l" * (PART + 1))

        daemon.wait_event("file.uploaded", path="large")

    assert not daemon.events("destination.paused")
    assert set(server.contents()) == {"large"}


@pytest.mark.parametrize(
    ("location", "where"),
    [
        ("https://s3.example.org/pail/key?X-Amz-Signature=secret", "redirects to https://s3.example.org"),
        ("http://user:secret@portal:8080/login", "redirects to http://portal:8080"),
        ("https://[2001:db8::1]:444/", "redirects to https://[2001:db8::1]:444"),
        ("/login", "redirects to another path"),
        ("ftp://portal/", "redirects to another path"),
        ("javascript:alert(1)", "redirects to another path"),
        ("https://[nonsense/", "redirects elsewhere"),
        ("https://host:99999999/", "redirects elsewhere"),
    ],
)
def test_only_the_host_is_told(location: str, where: str) -> None:
    """A Location may hold secrets, and anything else."""
    error = from_code(302, "", "Found", "f", {"location": location})

    assert error.cause == f"the server {where}"
    assert "destination.endpoint_url" in error.hint
    assert "secret" not in str(error)
