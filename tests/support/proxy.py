"""A TCP proxy before a real S3 server: counts the bytes of bodies, spoils some, cuts connections at a chosen moment."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_HEAD_END = b"\r\n\r\n"
_CHUNK_BYTES = 256 * 1024


@dataclass
class Passed:
    """One request that went through; `line` is its first line as sent: "PUT /bucket/key?partNumber=1... HTTP/1.1"."""

    line: str
    length: int
    body_bytes: int = 0  #: of its body, so far
    answered: bool = False  #: the first bytes of an answer came back (not 100 Continue, which nobody here asks for)


@dataclass
class _Cut:
    match: str
    when: str  # "before" the server has heard of it, "after" it has answered
    times: int


@dataclass
class _Wire:
    """One connection of a client, and its twin to the server."""

    client: socket.socket
    server: socket.socket
    requests: list[Passed] = field(default_factory=list)

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on loopback while it is entered. Thread-safe; knows of HTTP/1.1 what Content-Length says."""

    def __init__(self, port: int) -> None:
        self.flips = 0  #: bytes still to be inverted, each in the middle of another long body
        self.requests: list[Passed] = []
        self._cuts: list[_Cut] = []
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._wires: list[_Wire] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self.port: int = self._listener.getsockname()[1]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def body_bytes(self, match: str = "") -> int:
        """Of all requests whose line matches, whatever became of them."""
        with self._lock:
            return sum(request.body_bytes for request in self.requests if re.search(match, request.line))

    def count(self, match: str = "") -> int:
        with self._lock:
            return sum(1 for request in self.requests if re.search(match, request.line))

    def unanswered(self, match: str = "") -> list[Passed]:
        """Requests to which no answer has come; once nobody is connected, none ever will."""
        with self._lock:
            return [it for it in self.requests if not it.answered and re.search(match, it.line)]

    def connected(self) -> bool:
        """Whether anything may still pass."""
        return any(thread.is_alive() for thread in self._threads.copy())

    def cut(self, match: str, when: str, *, times: int = 1) -> None:
        """End the connection of the next matching requests "before" the server hears of them or "after" it did."""
        with self._lock:
            self._cuts.append(_Cut(match, when, times))

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept(), which close() does not
        self._acceptor.join(10)
        self._listener.close()
        for wire in self._wires:
            wire.cut()
        for thread in self._threads:
            thread.join(10)
        for wire in self._wires:
            wire.client.close()
            wire.server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                wire = _Wire(client, socket.create_connection(self._target))
                self._wires.append(wire)
                for run in (self._upwards, self._downwards):
                    thread = threading.Thread(target=self._until_closed, args=(run, wire), name="proxy", daemon=True)
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _until_closed(run: Callable[[_Wire], None], wire: _Wire) -> None:
        with contextlib.suppress(OSError):
            run(wire)
        wire.cut()

    def _upwards(self, wire: _Wire) -> None:
        rest = b""
        while True:
            while _HEAD_END not in rest:
                data = wire.client.recv(_CHUNK_BYTES)
                if not data:
                    return
                rest += data
            head, _, rest = rest.partition(_HEAD_END)
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            request = Passed(head.split(b"\r\n", 1)[0].decode("latin-1"), int(length[1]) if length else 0)
            with self._lock:
                self.requests.append(request)
                wire.requests.append(request)
            if self._is_cut(request, "before"):
                return
            wire.server.sendall(head + _HEAD_END)
            rest = self._body(wire, request, rest)

    def _body(self, wire: _Wire, request: Passed, rest: bytes) -> bytes:
        """Pass the body on; returns what came behind it."""
        while request.body_bytes < request.length:
            missing = request.length - request.body_bytes
            data = rest[:missing] if rest else wire.client.recv(min(_CHUNK_BYTES, missing))
            rest = rest[missing:]
            if not data:
                return b""
            spoilt = self._spoilt(request, data)
            with self._lock:
                request.body_bytes += len(data)
            wire.server.sendall(spoilt)
        return rest

    def _downwards(self, wire: _Wire) -> None:
        while data := wire.server.recv(_CHUNK_BYTES):
            with self._lock:
                request = next((it for it in reversed(wire.requests) if not it.answered), None)
            if request is not None:
                if self._is_cut(request, "after"):
                    return
                request.answered = True
            wire.client.sendall(data)

    def _is_cut(self, request: Passed, when: str) -> bool:
        with self._lock:
            for cut in self._cuts:
                if cut.times and cut.when == when and re.search(cut.match, request.line):
                    cut.times -= 1
                    return True
        return False

    def _spoilt(self, request: Passed, data: bytes) -> bytes:
        half = request.length // 2 - request.body_bytes
        if request.length < _CHUNK_BYTES or not 0 <= half < len(data):
            return data
        with self._lock:
            if self.flips <= 0:
                return data
            self.flips -= 1
        return data[:half] + bytes([data[half] ^ 0xFF]) + data[half + 1 :]
