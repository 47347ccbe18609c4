"""S3 look-alikes on loopback: what a client loses against them is the client's own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_FLIGHT = 100
BUCKET = "bench"
ACCESS_KEY = "benchbenchbench"
SECRET_KEY = "benchbenchbenchbenchbench"  # noqa: S105 - opens nothing but the sinks below
START_TIMEOUT_S = 30.0
# Whoever lists, or looks whether the bucket is there, is content with this.
EMPTY_LISTING = "<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"

NGINX_CONF = """\
load_module {modules}/ngx_http_echo_module.so;
daemon off;
worker_processes {workers};
pid {directory}/nginx.pid;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 0;
    keepalive_requests 100000000;
    keepalive_timeout 600s;
    server {{
        listen 127.0.0.1:{port} backlog=1024 {tls};
        add_header x-amz-bucket-region us-east-1 always;
        add_header x-amz-checksum-crc64nvme $http_x_amz_checksum_crc64nvme always;
        add_header ETag '"00000000000000000000000000000000"' always;
        location / {{
            default_type application/xml;
            if ($request_method != PUT) {{ return 200 '{listing}'; }}
            echo_read_request_body;
            {sleep}
            echo_exec @answer;
        }}
        location @answer {{ return 200 ''; }}
    }}
    server {{
        listen 127.0.0.1:{counters_port};
        location / {{ stub_status; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """Where the files go, and what the sink itself knows of it."""

    endpoint_url: str
    answer_s: float = 0.0
    ca_bundle: Path | None = None
    in_flight: int = IN_FLIGHT
    counters_url: str = ""

    @property
    def ceiling_files_per_s(self) -> float | None:
        """What no client with `in_flight` requests at once can exceed; None where the machine is the limit."""
        return self.in_flight / self.answer_s if self.answer_s else None

    def counters(self) -> tuple[int, int] | None:
        """Connections accepted and requests answered so far, where the sink counts them."""
        if not self.counters_url:
            return None
        with urllib.request.urlopen(self.counters_url, timeout=5) as answer:  # noqa: S310 - our own loopback
            _, accepted, _, requests = re.findall(r"\d+", answer.read().decode())[:4]
        return int(accepted), int(requests)


@contextmanager
def nginx(
    directory: Path, *, answer_s: float, tls: bool = False, port: int = 0, in_flight: int = IN_FLIGHT
) -> Iterator[Sink]:
    """Answer each PUT after `answer_s`, once its body is read; anything else at once."""
    directory.mkdir()
    port, counters_port = port or free_port(), free_port()
    ca_bundle = _certificate(directory) if tls else None
    config = directory / "nginx.conf"
    config.write_text(
        NGINX_CONF.format(
            modules=_modules_directory(),
            workers=os.cpu_count(),
            directory=directory,
            user="user root;" if os.geteuid() == 0 else "",
            port=port,
            counters_port=counters_port,
            tls=f"ssl; ssl_certificate {directory}/sink.pem; ssl_certificate_key {directory}/sink.key" if tls else "",
            listing=EMPTY_LISTING,
            sleep=f"echo_sleep {answer_s};" if answer_s else "",
        ),
    )
    scheme = "https" if tls else "http"
    command = [_nginx(), "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(config)]
    with running(command, port=port, log=directory / "nginx.log"):
        yield Sink(
            endpoint_url=f"{scheme}://127.0.0.1:{port}",
            answer_s=answer_s,
            in_flight=in_flight,
            ca_bundle=ca_bundle,
            counters_url=f"http://127.0.0.1:{counters_port}/",
        )


@contextmanager
def blackhole(directory: Path) -> Iterator[Sink]:
    """A sink for large bodies, which speaks multipart and never copies a byte out of the kernel."""
    directory.mkdir()
    port = free_port()
    with running(
        [sys.executable, "-m", "benchmarks.blackhole", str(port)],
        port=port,
        log=directory / "blackhole.log",
    ):
        yield Sink(endpoint_url=f"http://127.0.0.1:{port}")


@contextmanager
def seaweedfs(directory: Path) -> Iterator[Sink]:
    """A real S3 server, which verifies signatures and checksums and stores what it is given."""
    from s3spool.demo.seaweed import Seaweed  # noqa: PLC0415 - only this row needs it

    directory.mkdir()
    server = Seaweed(directory, access_key=ACCESS_KEY, secret_key=SECRET_KEY)
    server.start()
    try:
        server.create_bucket(BUCKET)
        yield Sink(endpoint_url=server.endpoint_url)
    finally:
        server.stop()


@contextmanager
def running(command: list[str], *, port: int, log: Path) -> Iterator[None]:
    """Run a server from its first accepted connection to the end of the block."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait_for_port(port, process, log)
            yield
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen on port {port}: {log.read_text()[-500:]}")


def _nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        raise FileNotFoundError("nginx is missing: apt-get install nginx-light libnginx-mod-http-echo")
    return found


def _modules_directory() -> str:
    """Raises FileNotFoundError where the one that we need is not installed."""
    options = subprocess.run([_nginx(), "-V"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"--modules-path=(\S+)", options)
    directory = Path(found[1] if found else "modules")
    if not (directory / "ngx_http_echo_module.so").exists():
        raise FileNotFoundError(f"{directory}: nginx's echo module is missing: apt-get install libnginx-mod-http-echo")
    return str(directory)


def _certificate(directory: Path) -> Path:
    """Make a CA and a server certificate; elliptic, so that handshakes cost what they cost on S3."""
    ca, sink = directory / "ca", directory / "sink"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2")
    authority = ["-subj", "/CN=benchmark CA"]
    server = ["-subj", "/CN=sink", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"]
    server += ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
    for path, options in ((ca, authority), (sink, server)):
        output = ("-keyout", f"{path}.key", "-out", f"{path}.pem")
        subprocess.run(["openssl", "req", "-x509", *new_key, *output, *options], check=True, capture_output=True)
    return ca.with_suffix(".pem")
