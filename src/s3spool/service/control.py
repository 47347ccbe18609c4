"""Questions and orders to a running daemon: JSON lines over a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from s3spool.errors import S3SpoolError
from s3spool.service.text import legible

MAX_REQUEST_BYTES = 1024 * 1024
MAX_CLIENTS = 8
TIMEOUT_S = 30.0
ACCEPT_PAUSE_S = 0.1  # out of descriptors: do not spin

Handler = Callable[[Mapping[str, Any]], Any]


class NoDaemonError(S3SpoolError):
    """Nobody listens on the control socket."""


class ControlServer:
    """Answers on its own threads. A handler gets the request and returns its answer, or an iterator of rows.

    The socket belongs to the daemon's user and group, mode 0660: who may write to it may control the daemon.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        """Raises OSError. A socket left behind by a dead daemon is replaced (the directory lock is ours by now)."""
        self.path = path
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        slots = threading.BoundedSemaphore(MAX_CLIENTS)

        class _Connection(socketserver.StreamRequestHandler):
            timeout = TIMEOUT_S

            def handle(self) -> None:
                if not slots.acquire(timeout=TIMEOUT_S):
                    return
                try:
                    with contextlib.suppress(OSError):
                        for line in _answers(handlers, self.rfile.readline(MAX_REQUEST_BYTES)):
                            self.wfile.write(line)
                finally:
                    slots.release()

        before = os.umask(0o117)  # mode 0660 from the first moment
        try:
            self._server = _Server(str(path), _Connection)
        finally:
            os.umask(before)
        self._thread = threading.Thread(target=self._server.serve_forever, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        with contextlib.suppress(OSError):
            self.path.unlink()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    _stopping = False

    def serve_forever(self, poll_interval: float = 0.5) -> None:  # noqa: ARG002 - the stock signature
        """Without the stock loop's wake-ups: shutdown() ends the listening socket under accept()."""
        while not self._stopping:
            self._handle_request_noblock()  # type: ignore[attr-defined] # in typeshed's blind spot

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            if not self._stopping:
                time.sleep(ACCEPT_PAUSE_S)
            raise  # the stock code passes over it

    def shutdown(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the stock signature
        _log_exception("a control request failed")


def ask(path: Path, command: str, **arguments: Any) -> Any:
    """The daemon's answer. Raises NoDaemonError, or S3SpoolError with what the daemon had to say."""
    rows = list(stream(path, command, **arguments))
    return rows[0] if rows else None


def stream(path: Path, command: str, **arguments: Any) -> Iterator[Any]:
    """The rows of the daemon's answer as they come. Raises like `ask`, NoDaemonError only before the first row."""
    with _connected(path) as connection, connection.makefile("rb") as lines:
        try:
            connection.sendall(_line({"command": command, **arguments}))
            for line in lines:
                answer = msgspec.json.decode(line)
                if "error" in answer:
                    raise S3SpoolError(answer["error"])
                if "end" in answer:
                    return
                yield answer["row"]
        except (OSError, msgspec.DecodeError) as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer as it should: {exc}") from exc
    raise S3SpoolError(f"{path}: the daemon went away in the middle of its answer")


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
        except PermissionError as exc:
            raise S3SpoolError(f"{path}: permission denied; use sudo, or join the socket's group") from exc
        except TimeoutError as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer within {TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise NoDaemonError(f"no daemon runs: nobody answers at {path} ({exc.strerror})") from exc
        yield connection


def _answers(handlers: Mapping[str, Handler], line: bytes) -> Iterator[bytes]:
    """One line a row, and a last one that says how it ended: whoever reads knows whether it is complete."""
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
        handler = handlers[request.pop("command")]
    except (msgspec.DecodeError, KeyError, TypeError) as exc:
        yield _line({"error": f"not a request this daemon knows: {exc}"})
        return
    try:
        answer = handler(request)
        for row in answer if isinstance(answer, Iterator) else [answer]:
            yield _line({"row": row})
    except S3SpoolError as exc:
        yield _line({"error": legible(str(exc))})
    except Exception as exc:  # noqa: BLE001 - whatever went wrong, the one who asked is told
        _log_exception(str(exc))
        yield _line({"error": legible(f"{type(exc).__name__}: {exc}")})
    else:
        yield _line({"end": True})


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _log_exception(message: str) -> None:
    import structlog  # noqa: PLC0415 - a tenth of a second that those who only ask need not wait

    structlog.get_logger().exception("library.warning", logger="control", message=message)
