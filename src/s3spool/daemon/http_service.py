"""The HTTP server of a daemon, where `service.http_listen` asks for one, and the answer of `/healthz`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from s3spool.config.validators import split_address
from s3spool.control.peer import Peer
from s3spool.control.server import Handler
from s3spool.daemon.status_line import paused, paused_by_hand
from s3spool.errors import ConfigError

if TYPE_CHECKING:
    from s3spool.daemon.supervisor import Daemon
    from s3spool.http.server import HttpServer


def http_server(daemon: Daemon, handlers: Mapping[str, Handler]) -> HttpServer | None:
    """Started; None where the configuration has no address. Raises ConfigError."""
    service = daemon.config.service
    if not service.http_listen:
        return None
    try:
        from s3spool.http.application import Application  # noqa: PLC0415 - an extra
        from s3spool.http.guard import Guard  # noqa: PLC0415 - the same
        from s3spool.http.metrics import Metrics  # noqa: PLC0415 - the same
        from s3spool.http.server import HttpServer  # noqa: PLC0415 - the same
    except ImportError as exc:
        problem = f"needs the extra http ({exc}): pip install 's3spool[http]'"
        raise ConfigError("service.http_listen", service.http_listen, problem) from exc
    status = partial(handlers["status"], {}, Peer(os.geteuid(), frozenset()))
    metrics = Metrics(status, daemon.components.stats, daemon.config.state.node_name)
    guard = Guard(split_address(service.http_listen)[0], service.http_token)
    server = HttpServer(Application(handlers, partial(health, daemon), metrics, guard), service.http_listen)
    server.start()
    return server


def health(daemon: Daemon) -> dict[str, str]:
    """`unhealthy` and why; a pause by hand is no illness. Any thread."""
    if reason := "; ".join(_reasons(daemon)):
        return {"status": "unhealthy", "reason": reason}
    held = daemon.components.pause.current
    return {"status": "paused", "reason": paused_by_hand(held, time.time())} if held else {"status": "ok"}


def _reasons(daemon: Daemon) -> Iterator[str]:
    """One sentence each; none where all is well."""
    components = daemon.components
    if daemon.state != "running":
        yield f"the daemon is {daemon.state}"
    reason, since = components.breaker.reason, components.breaker.paused_at
    if components.breaker.open and reason is not None and since is not None:
        yield paused(reason.short, since, components.breaker.next_probe_s, time.time())
    if daemon.watch_manager.lost:
        yield f"the folder is gone: {components.folder.root}"
    if components.ledger.failing_since is not None:
        yield f"the ledger cannot be written: {components.ledger.name}"
    elif daemon.state == "running" and (silent := daemon.silent_threads(time.monotonic())):
        yield f"these threads died or hang: {', '.join(silent)}"
