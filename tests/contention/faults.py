"""Servers that are short of something."""

from __future__ import annotations

import threading
from pathlib import Path

from support.faults import Fault
from support.http_server import Exchange, HangUp

_ESTABLISHED = "01"  # in /proc/net/tcp
STEPS = 20


class AdmitConnections(Fault):
    """So many at a time; all others are reset."""

    def __init__(self, port: int, limit: int) -> None:
        self._port = port
        self._limit = limit
        self._lock = threading.Lock()
        self._admitted: set[int] = set()  # the client's ports

    def on_headers(self, exchange: Exchange) -> None:
        port = exchange.request.connection
        with self._lock:
            self._admitted &= self._established()
            if port not in self._admitted and len(self._admitted) >= self._limit:
                raise HangUp(reset=True)
            self._admitted.add(port)

    def _established(self) -> set[int]:
        """The clients' ports of the connections that are open."""
        found = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            local, remote, state = line.split()[1:4]
            if state == _ESTABLISHED and int(local.partition(":")[2], 16) == self._port:
                found.add(int(remote.partition(":")[2], 16))
        return found


class SlowLine(Fault):
    """Each connection takes so many bytes a second."""

    def __init__(self, bytes_s: int) -> None:
        self._bytes_s = bytes_s

    def on_headers(self, exchange: Exchange) -> None:
        length = int(exchange.request.headers.get("content-length", "0"))
        for step in range(1, STEPS):
            exchange.read_body(step / STEPS)
            exchange.pause(length / STEPS / self._bytes_s)
