"""A client of the daemon's HTTP server."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support.daemon import Daemon

WAIT_S = 30.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address(daemon: Daemon) -> str:
    return str(daemon.config["service"]["http_listen"])


def ask(
    daemon: Daemon, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; `headers` with `_` for `-`."""
    with closing(http.client.HTTPConnection(address(daemon), timeout=WAIT_S)) as connection:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=names)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def order(daemon: Daemon, command: str, request: dict[str, Any], **headers: str) -> tuple[int, Any]:
    status, _, body = ask(
        daemon, f"/api/{command}", method="POST", body=json.dumps(request).encode(), **{"X_S3Spool": "1"} | headers
    )
    return status, json.loads(body)


def metrics(daemon: Daemon) -> dict[tuple[str, str], float]:
    """Values by name and label values, as Prometheus's own parser reads them."""
    status, headers, body = ask(daemon, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
