"""One request to a running daemon: a JSON line over a Unix socket, and a JSON line back."""

from __future__ import annotations

import contextlib
import grp
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from s3spool.errors import S3SpoolError
from s3spool.logs.text import legible

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # a page of `list` with the longest names and errors
TIMEOUT_S = 30.0  # from connect to the end of the answer
_CHUNK_BYTES = 65536
_CONNECT_PAUSE_S = 0.1


class NoDaemonError(S3SpoolError):
    """No process listens on the control socket."""


class DeniedError(S3SpoolError):
    """This user may not make this request."""


def ask(path: Path, command: str, /, **arguments: Any) -> Any:
    """The daemon's answer. Raises NoDaemonError, DeniedError, or S3SpoolError with the error of the daemon."""
    deadline = time.monotonic() + TIMEOUT_S
    line = b""
    with _connected(path, deadline) as connection:
        try:
            connection.sendall(json_line({"command": command, **arguments}))
            line = _line(connection, deadline)
        except (ConnectionResetError, BrokenPipeError) as exc:
            # The daemon was killed a moment ago: the kernel had accepted the connection.
            raise NoDaemonError(f"no daemon runs: it ended a moment ago at {path}") from exc
        except TimeoutError as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer within {TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer as it should: {exc}") from exc
    if not line.endswith(b"\n") and len(line) <= MAX_ANSWER_BYTES:
        raise S3SpoolError(f"{path}: the daemon went away in the middle of its answer")
    return _answer(path, line)


def json_line(value: Any) -> bytes:
    """JSON in UTF-8, whatever the names in it."""
    try:
        return msgspec.json.encode(value) + b"\n"
    except UnicodeEncodeError:
        return msgspec.json.encode(legible(msgspec.to_builtins(value))) + b"\n"


def _answer(path: Path, line: bytes) -> Any:
    try:
        if len(line) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
        answer = msgspec.json.decode(line, type=dict[str, Any])
        if "error" not in answer:
            return answer["answer"]
    except (msgspec.DecodeError, RecursionError, KeyError, ValueError) as exc:
        raise S3SpoolError(f"{path}: the daemon does not answer as it should: {exc}") from exc
    raise (DeniedError if answer.get("denied") is True else S3SpoolError)(str(answer["error"]))


def _line(connection: socket.socket, deadline: float) -> bytes:
    """Read up to the first newline, the end of the stream, or MAX_ANSWER_BYTES. Raises OSError."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= MAX_ANSWER_BYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        chunk = connection.recv(_CHUNK_BYTES)
        if not chunk:
            break
        line += chunk
    return bytes(line)


@contextlib.contextmanager
def _connected(path: Path, deadline: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            _connect(connection, path, deadline)
        except PermissionError as exc:
            raise S3SpoolError(f"{path}: permission denied; use sudo{_or_join(path)}") from exc
        except (TimeoutError, BlockingIOError) as exc:
            raise S3SpoolError(f"{path}: the daemon does not answer within {TIMEOUT_S:g} s") from exc
        except OSError as exc:
            raise NoDaemonError(f"no daemon runs: nobody answers at {path} ({exc.strerror})") from exc
        yield connection


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    """Raises OSError. A full queue returns EAGAIN at once: the daemon is busy, not missing."""
    while True:
        try:
            return connection.connect(str(path))
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            threading.Event().wait(_CONNECT_PAUSE_S)


def _or_join(path: Path) -> str:
    """The group that may use the socket, if there is one."""
    try:
        gid = path.stat().st_gid
        return f", or join the group {grp.getgrgid(gid).gr_name}" if gid else ""
    except (OSError, KeyError):
        return ", or join the group of the daemon's user (s3spool for the system's service)"
