"""The HTTP server: waitress on a thread of its own, with four threads for answers."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.server import create_server

from s3spool.config.validators import split_address
from s3spool.errors import EXHAUSTED, ConfigError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

THREADS = 4
CONNECTIONS = 64
IDLE_S = 30.0  # an idle or slow connection is closed then
LOOP_S = 30.0  # the longest sleep of the loop
CLOSE_S = 1.0
MAX_BODY_BYTES = 256 * 1024
MAX_HEADER_BYTES = 16 * 1024
EXHAUSTED_PAUSE_S = 0.1
_FIELD = "service.http_listen"


class Listener(socket.socket):
    """A listening socket whose loop does not spin where no descriptor is left."""

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                time.sleep(EXHAUSTED_PAUSE_S)
            raise


def listener(address: str) -> Listener:
    """Raises ConfigError."""
    host, port = split_address(address)
    try:
        # IPv4 first: where `localhost` is both, most clients try it.
        found = sorted(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    except OSError as exc:
        raise ConfigError(_FIELD, address, f"cannot be resolved: {exc.strerror}") from exc
    family, kind, protocol, _, place = found[0]
    made = Listener(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(place)
        made.listen()
    except OSError as exc:
        made.close()
        taken = exc.errno == errno.EADDRINUSE
        problem = "another program listens there; choose another port" if taken else f"cannot listen: {exc.strerror}"
        raise ConfigError(_FIELD, address, problem) from exc
    return made


class HttpServer:
    """Serves a WSGI application until `close`."""

    def __init__(self, application: WSGIApplication, address: str) -> None:
        """Raises ConfigError."""
        self._connections: dict[int, Any] = {}  # only the loop touches it
        self._server = create_server(
            application,
            map=self._connections,
            sockets=[listener(address)],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            channel_timeout=IDLE_S,
            asyncore_loop_timeout=LOOP_S,
            asyncore_use_poll=True,
            max_request_body_size=MAX_BODY_BYTES,
            max_request_header_size=MAX_HEADER_BYTES,
            log_socket_errors=False,
            clear_untrusted_proxy_headers=True,
            ident="s3spool",
        )
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.effective_port)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        # The loop ends when it has no socket left.
        self._server.trigger.pull_trigger(lambda: wasyncore.close_all(self._connections))
        self._thread.join(CLOSE_S)
        self._server.task_dispatcher.shutdown(timeout=CLOSE_S)
