"""A real HTTP/1.1 server that behaves like a small S3, and misbehaves when told to.

with FaultyS3() as server:
    server.script(Status(code=503, error_code="SlowDown"), times=3, match="^PUT a.txt")
    ...
    assert server.objects["a.txt"].body == b"content"
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config

from support.faults import Fault
from support.http_server import Exchange, HttpServer
from support.s3_messages import Request
from support.s3_store import Store, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@dataclass
class _Script:
    fault: Fault
    times_left: int | None  # None: for ever
    match: str | Callable[[Request], bool]

    def applies(self, request: Request) -> bool:
        if self.times_left == 0:
            return False
        return bool(re.search(self.match, request.line)) if isinstance(self.match, str) else self.match(request)


class FaultyS3:
    """One bucket, path style, any credentials; everything public may be used from any thread."""

    def __init__(
        self,
        bucket: str = "test-bucket",
        *,
        region: str = "us-east-1",
        certificate: tuple[Path, Path] | None = None,
    ) -> None:
        """`certificate` is (certificate, key) in PEM files, and means TLS."""
        self.bucket = bucket
        self.region = region
        self.requests: list[Request] = []  #: in the order in which their headers arrived
        self.store = Store(bucket, region)
        self._scripts: list[_Script] = []
        self._lock = threading.Lock()
        self._unanswered = 0
        self._certificate = certificate
        self._server = HttpServer(self._respond, self.store.now, certificate)
        self._scheme = "https" if certificate else "http"
        self._thread = self._serving()

    @property
    def endpoint_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def objects(self) -> dict[str, StoredObject]:
        return self.store.objects

    @property
    def connections(self) -> int:
        """Accepted so far."""
        return self._server.accepted

    @property
    def in_flight(self) -> int:
        """Requests whose body has arrived and whose answer has not left."""
        return self._unanswered

    def contents(self) -> dict[str, bytes]:
        return {key: stored.body for key, stored in self.objects.copy().items()}

    def environment(self) -> dict[str, str]:
        """What a daemon or a boto3 client needs in its environment to talk to this server."""
        return {
            "AWS_ACCESS_KEY_ID": "AKFAULTY",
            "AWS_SECRET_ACCESS_KEY": "faulty-secret",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
        }

    def client(self, *, ca_bundle: Path | None = None, **config: Any) -> S3Client:
        """A boto3 client which does not retry unless told to."""
        options: dict[str, Any] = {"retries": {"total_max_attempts": 1}, "proxies": {}} | config
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id="AKFAULTY",
            aws_secret_access_key="faulty-secret",  # noqa: S106 - nobody checks it
            verify=str(ca_bundle) if ca_bundle else None,
            config=Config(s3={"addressing_style": "path"}, **options),
        )

    def script(self, fault: Fault, *, times: int | None = 1, match: str | Callable[[Request], bool] = "") -> None:
        """Apply the fault to the next `times` (None: all) requests that match; scripts are tried in order.

        A pattern is searched for in `Request.line`: "PUT a.txt", "PUT a.txt?partNumber&uploadId".
        """
        with self._lock:
            self._scripts.append(_Script(fault, times, match))

    def behave(self) -> None:
        """Forget all scripts, and let go of whom they hold."""
        with self._lock:
            scripts, self._scripts = self._scripts, []
        for script in scripts:
            script.fault.release()

    def cut(self) -> None:
        """Close all connections; who wants to go on opens another one."""
        self._server.cut()

    def count(self, match: str = "") -> int:
        """Requests so far whose line matches."""
        return sum(1 for request in self.requests.copy() if re.search(match, request.line))

    def set_date_skew(self, skew_s: float) -> None:
        """Move the server's clock; past 15 minutes it refuses signatures as S3 does."""
        self.store.date_skew_s = skew_s

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Cut all connections; AssertionError when this server itself failed."""
        self.behave()
        self._end()

    def go_down(self) -> None:
        """Cut all connections and refuse new ones, until `come_up`."""
        port = self.port
        self._end()
        self._server = HttpServer(self._respond, self.store.now, self._certificate, port=port, listening=False)
        self._thread = self._serving()

    def come_up(self) -> None:
        self._server.server_activate()
        self._thread.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serving(self) -> threading.Thread:
        return threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty-s3")

    def _end(self) -> None:
        if self._thread.ident is None:  # it is down
            self._server.server_close()
            return
        self._server.stop()
        self._thread.join()
        assert not self._server.failures, f"FaultyS3 itself failed: {self._server.failures}"

    def _arrived(self, request: Request) -> Fault:
        """Record the request and choose what happens to it."""
        with self._lock:
            self.requests.append(request)
            for script in self._scripts:
                if script.applies(request):
                    if script.times_left is not None:
                        script.times_left -= 1
                    return script.fault
        return Fault()

    def _respond(self, exchange: Exchange) -> None:
        fault = self._arrived(exchange.request)
        fault.on_headers(exchange)
        exchange.read_body()
        with self._lock:
            self._unanswered += 1
        try:
            answer = fault.instead(exchange) or self.store.handle(exchange.request)
            exchange.send_raw(exchange.render(fault.on_answer(exchange, answer)))
        finally:
            with self._lock:
                self._unanswered -= 1


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 which signs itself, so that it is its own CA bundle; and its key."""
    certificate, key = directory / "faulty.crt", directory / "faulty.key"
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    subject = "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    files = ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(["openssl", *kind.split(), *subject.split(), *files], check=True, capture_output=True)
    return certificate, key
