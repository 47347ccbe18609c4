"""The demo's server answers S3 with a key, and nothing else: not to another user of this machine either."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3spool.demo.seaweed import Seaweed, _find_weed
from s3spool.demo.seaweed_keys import self_signed
from support.processes import finished
from support.users import DROPPER, as_user, becoming, open_place
from support.waiting import eventually

pytestmark = pytest.mark.integration
BODY = b"the demo's own"
HTTP = ("s3", "master", "volume", "filer", "admin")
TRIES = (
    ("GET", "/"),
    ("GET", "/demo/a.txt"),
    ("GET", "/buckets/demo/a.txt"),
    ("GET", "/buckets/?pretty=y"),
    ("PUT", "/demo/evil.txt"),
    ("PUT", "/buckets/demo/evil.txt"),
    ("POST", "/buckets/demo/?op=append"),
    ("DELETE", "/demo/a.txt"),
    ("DELETE", "/buckets/demo/a.txt"),
    ("DELETE", "/buckets/demo?recursive=true"),
    ("GET", "/dir/assign"),
    ("GET", "/dir/lookup?fileId={fid}&read=yes"),
    ("POST", "/submit"),
    ("GET", "/col/delete?collection=demo"),
    ("GET", "/vol/grow?count=1&collection=demo"),
    ("GET", "/{fid}"),
    ("PUT", "/{fid}"),
    ("DELETE", "/{fid}"),
)


@pytest.fixture(scope="module")
def seaweed() -> Iterator[Seaweed]:
    with open_place() as place:
        before = os.umask(0)
        try:
            with Seaweed(place / "data", access_key="demo", secret_key="secret" * 5) as server:
                server.create_bucket("demo")
                server.client().put_object(Bucket="demo", Key="a.txt", Body=BODY)
                yield server
        finally:
            os.umask(before)


@pytest.fixture(autouse=True)
def unharmed(seaweed: Seaweed) -> Iterator[None]:
    """Whatever a test tries: the bucket is as it was."""
    yield
    client = seaweed.client()
    assert [each["Key"] for each in client.list_objects_v2(Bucket="demo")["Contents"]] == ["a.txt"]
    assert client.get_object(Bucket="demo", Key="a.txt")["Body"].read() == BODY
    client.close()


@pytest.mark.parametrize(("method", "path"), TRIES)
def test_http_without_a_key(seaweed: Seaweed, method: str, path: str) -> None:
    """No port gives anything away but a page that says what it is."""
    path = path.format(fid=a_file_id(seaweed))
    for name in HTTP:
        status, answer = requested(seaweed, name, method, path)
        assert BODY not in answer, (name, status, answer)
        if path != "/":
            assert status >= 400 or status == 0, (name, status, answer)


def test_every_port_is_known(seaweed: Seaweed) -> None:
    """What weed listens on is what these tests try: a new version may open more."""
    eventually(lambda: listening(seaweed.pid) == set(seaweed._ports.values()))


@pytest.mark.parametrize("name", HTTP)
def test_grpc_takes_a_certificate(seaweed: Seaweed, name: str) -> None:
    """Neither plain text nor TLS with a certificate of one's own."""
    port = seaweed._ports[f"{name}.port.grpc"]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        assert not plain.recv(100).startswith(bytes([0, 0])), "an HTTP/2 server's settings"

    stranger = seaweed.data_directory / "stranger.pem"
    stranger.write_text("".join(self_signed("s3spool demo")))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(stranger)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection) as secured,
        pytest.raises(ssl.SSLError, match=r"certificate|unknown ca"),
    ):
        secured.recv(100)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_weeds_own_shell_as_another_user(seaweed: Seaweed) -> None:
    """Previously it listed, and removed, what it liked."""
    ports = seaweed._ports
    done = finished(
        *(*becoming(DROPPER), "timeout", "5", str(_find_weed()), "shell"),
        *(f"-{part}=127.0.0.1:{ports[f'{part}.port']}.{ports[f'{part}.port.grpc']}" for part in ("master", "filer")),
        input="fs.ls /buckets/demo\nfs.rm /buckets/demo/a.txt\nexit\n",
        cwd="/",
        env={"HOME": "/nonexistent"},
    )

    assert "a.txt" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_sockets_in_tmp(seaweed: Seaweed) -> None:
    """They are for its own user, whatever the umask of the demo."""
    ports = "|".join(map(str, seaweed._ports.values()))
    sockets = [path for path in Path("/tmp").iterdir() if re.fullmatch(rf"seaweedfs-.*-({ports})\.sock", path.name)]  # noqa: S108
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"

    assert len(sockets) >= 5
    for path in sockets:
        done = as_user(DROPPER, "/usr/bin/env", "python3", "-c", script, path, check=False)
        assert "PermissionError" in done.stderr, path


def requested(seaweed: Seaweed, name: str, method: str, path: str) -> tuple[int, bytes]:
    """Status and body; 0 where nobody speaks HTTP there."""
    body = b"evil" if method in {"PUT", "POST"} else None
    request = urllib.request.Request(
        f"http://127.0.0.1:{seaweed._ports[f'{name}.port']}{path}", data=body, method=method
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read()
    except OSError:
        return 0, b""


def a_file_id(seaweed: Seaweed) -> str:
    """Of a needle that is there: the volume's index begins with the newest of one small object."""
    index = next(path for path in seaweed.data_directory.glob("demo_*.idx") if path.stat().st_size)
    needle = index.read_bytes()[:8].hex().lstrip("0")
    return f"{index.stem.removeprefix('demo_')},{needle}00000000"


def listening(pid: int | None) -> set[int]:
    """The TCP ports of a process."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            inodes.add(str(fd.readlink()))
    found = set()
    for line in [*Path("/proc/net/tcp").read_text().splitlines(), *Path("/proc/net/tcp6").read_text().splitlines()]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            found.add(int(fields[1].rpartition(":")[2], 16))
    return found
