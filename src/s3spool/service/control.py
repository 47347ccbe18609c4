"""Questions and orders to a running daemon: JSON lines over a Unix socket."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from s3spool.errors import S3SpoolError
from s3spool.service.text import legible

MAX_REQUEST_BYTES = 1024 * 1024
MAX_CLIENTS = 8
TIMEOUT_S = 30.0
_CHUNK_BYTES = 65536
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

        class _Connection(socketserver.StreamRequestHandler):
            timeout = TIMEOUT_S

            def handle(self) -> None:
                # OSError: who asked is gone, or does not read.
                with (
                    contextlib.suppress(OSError),
                    contextlib.closing(_answers(handlers, _request(self.connection, self.timeout))) as lines,
                ):
                    for line in lines:
                        self.wfile.write(line)

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
    request_queue_size = 128
    _stopping = False

    def __init__(self, path: str, handler: type[socketserver.StreamRequestHandler]) -> None:
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        super().__init__(path, handler)

    def serve_forever(self, poll_interval: float = 0.5) -> None:  # noqa: ARG002 - the stock signature
        """Without the stock loop's wake-ups: shutdown() ends the listening socket under accept()."""
        while not self._stopping:
            self._handle_request_noblock()  # type: ignore[attr-defined] # in typeshed's blind spot

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            if not self._stopping:
                threading.Event().wait(ACCEPT_PAUSE_S)
            raise  # the stock code passes over it

    def process_request(self, request: Any, client_address: Any) -> None:
        """Before there is a thread for it: while all places are taken, the others wait in the kernel's queue."""
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown(self) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the stock signature
        _log_exception("a control request failed")


def ask(path: Path, command: str, /, **arguments: Any) -> Any:
    """The daemon's answer. Raises NoDaemonError, or S3SpoolError with what the daemon had to say."""
    rows = list(stream(path, command, **arguments))
    return rows[0] if rows else None


def stream(path: Path, command: str, /, **arguments: Any) -> Iterator[Any]:
    """The rows of the daemon's answer as they come. Raises like `ask`, NoDaemonError only before the first row."""
    answered = False
    with _connected(path) as connection, connection.makefile("rb") as lines:
        try:
            connection.sendall(json_line({"command": command, **arguments}))
            for line in lines:
                answered = True
                answer = msgspec.json.decode(line)
                if "error" in answer:
                    raise S3SpoolError(answer["error"])
                if "end" in answer:
                    return
                yield answer["row"]
        except (ConnectionResetError, BrokenPipeError) as exc:
            if not answered:  # killed a moment ago: the kernel had taken the call on its behalf
                raise NoDaemonError(f"no daemon runs: it ended a moment ago at {path}") from exc
            raise S3SpoolError(f"{path}: the daemon went away in the middle of its answer") from exc
        except (OSError, msgspec.DecodeError) as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer as it should: {exc}") from exc
    raise S3SpoolError(f"{path}: the daemon went away in the middle of its answer")


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            _connect(connection, path)
        except PermissionError as exc:
            raise S3SpoolError(f"{path}: permission denied; use sudo{_or_join(path)}") from exc
        except (TimeoutError, BlockingIOError) as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer within {TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise NoDaemonError(f"no daemon runs: nobody answers at {path} ({exc.strerror})") from exc
        yield connection


def _connect(connection: socket.socket, path: Path) -> None:
    """Raises OSError. A full queue says EAGAIN at once: that is a busy daemon, not a missing one."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return connection.connect(str(path))
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            threading.Event().wait(ACCEPT_PAUSE_S)


def _or_join(path: Path) -> str:
    """The other way to be let in, where there is one."""
    try:
        gid = path.stat().st_gid
        return f", or join the group {grp.getgrgid(gid).gr_name}" if gid else ""
    except (OSError, KeyError):
        return ", or join the group of the daemon's user (s3spool for the system's service)"


def _request(connection: socket.socket, timeout_s: float) -> bytes:
    """The first line. It may come in drips, but has `timeout_s` in all: else eight idlers keep all others out."""
    deadline = time.monotonic() + timeout_s
    line = bytearray()
    while b"\n" not in line[-_CHUNK_BYTES:] and len(line) < MAX_REQUEST_BYTES:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            break
        line += chunk
    connection.settimeout(timeout_s)
    return bytes(line.partition(b"\n")[0])


def _answers(handlers: Mapping[str, Handler], line: bytes) -> Generator[bytes, None, None]:
    """One line a row, and a last one that says how it ended: whoever reads knows whether it is complete."""
    try:
        request = msgspec.json.decode(line, type=dict[str, Any])
        handler = handlers[request.pop("command")]
    except (msgspec.DecodeError, KeyError, TypeError) as exc:
        yield json_line({"error": f"not a request this daemon knows: {exc}"})
        return
    try:
        answer = handler(request)
        for row in answer if isinstance(answer, Iterator) else [answer]:
            yield json_line({"row": row})
    except S3SpoolError as exc:
        yield json_line({"error": str(exc)})
    except Exception as exc:  # noqa: BLE001 - whatever went wrong, the one who asked is told
        _log_exception(str(exc))
        yield json_line({"error": f"{type(exc).__name__}: {exc}"})
    else:
        yield json_line({"end": True})


def json_line(value: Any) -> bytes:
    """JSON in UTF-8, whatever the names in it."""
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        return msgspec.json.encode(legible(value)) + b"\n"


def _log_exception(message: str) -> None:
    import structlog  # noqa: PLC0415 - a tenth of a second that those who only ask need not wait

    structlog.get_logger().exception("library.warning", logger="control", message=message)
