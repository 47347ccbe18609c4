"""HTTP/1.1 on real sockets, one thread a connection, with all the ways to end one badly."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from http.client import responses
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from support.s3_messages import Answer, Request, read_chunked, unwrap_aws_chunked

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s


class HangUp(Exception):  # noqa: N818 - a decision, not an error
    """Close the connection; `reset` sends RST instead of FIN."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class Exchange:
    """One request and the connection it came on."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        url = urlsplit(handler.path)
        bucket, _, key = url.path.lstrip("/").partition("/")
        self.request = Request(
            method=handler.command,
            path=url.path,
            bucket=unquote(bucket),
            key=unquote(key),
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in handler.headers.items()},
            at_s=time.monotonic(),
            connection=handler.client_address[1],
        )

    def read_body(self, share: float = 1.0) -> None:
        """Read the rest, or a share of it."""
        request, stream = self.request, self._handler.rfile
        if request.headers.get("transfer-encoding") == "chunked":
            request.body, _, request.received_bytes = read_chunked(stream)
        else:
            wanted = int(int(request.headers.get("content-length", "0")) * share) - len(request.body)
            request.body += stream.read(wanted)
            request.received_bytes = len(request.body)
            if len(request.body) < wanted:
                raise HangUp  # the client went away
        request.complete = share == 1.0
        if request.complete:
            unwrap_aws_chunked(request)

    def pause(self, duration_s: float) -> None:
        """Do nothing for a while, but let the server stop."""
        if self._handler.server.closing.wait(duration_s):
            raise HangUp

    def wait_for_hangup(self) -> None:
        """Until the client closes, or the server stops."""
        while self._handler.connection.recv(1):
            pass

    def send_raw(self, raw: bytes) -> None:
        self._handler.wfile.write(raw)

    def render(self, answer: Answer) -> bytes:
        headers = {
            "Date": self._handler.server.now().strftime("%a, %d %b %Y %H:%M:%S GMT"),
            "Server": "FaultyS3",
            "x-amz-request-id": "FAULTY",
            "Content-Length": str(len(answer.body)),
        } | answer.headers
        reason = responses.get(answer.status, "Unknown")
        lines = [f"HTTP/1.1 {answer.status} {reason}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        return head if self.request.method == "HEAD" else head + answer.body


class HttpServer(socketserver.ThreadingTCPServer):
    """Threads are joined at the end, so that no request outlives its test."""

    daemon_threads = False
    request_queue_size = 1024
    allow_reuse_address = True

    def __init__(
        self,
        respond: Callable[[Exchange], None],
        now: Callable[[], datetime],
        certificate: tuple[Path, Path] | None,
        *,
        port: int = 0,
        listening: bool = True,
    ) -> None:
        """Not `listening`: the port is ours, but who connects is refused until `server_activate()`."""
        self.respond = respond
        self.now = now
        self.closing = threading.Event()
        self.accepted = 0  # only the accepting thread writes it
        self.failures: list[BaseException] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        if certificate:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate)
        super().__init__(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self.server_bind()
        if listening:
            self.server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:  # the handshake belongs to the connection's thread: it happens at the first read
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.accepted += 1
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error and not isinstance(error, OSError):  # clients come and go
            self.failures.append(error)

    def cut(self) -> None:
        """Close all connections that there are."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.cut()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpServer

    def _exchange(self) -> None:
        try:
            self.server.respond(Exchange(self))
        except HangUp as decision:
            self._hang_up(reset=decision.reset)
        except OSError:  # the client went away
            self._hang_up(reset=False)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _exchange  # noqa: N815 - http.server's names

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.rfile.close()  # it holds the socket open
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass
