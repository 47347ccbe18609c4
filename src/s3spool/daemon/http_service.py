"""The HTTP server of a daemon, where `service.http_listen` asks for one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from s3spool.config.validators import split_address
from s3spool.control.peer import Peer
from s3spool.control.server import Handler
from s3spool.daemon.health import health
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
