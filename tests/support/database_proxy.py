"""A TCP proxy before a PostgreSQL server: cuts one node off, or makes each statement slow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class DatabaseProxy:
    """Listens on loopback while it is entered. Thread-safe."""

    def __init__(self, server: Path) -> None:
        """`server`: the socket of the server, which may change."""
        self.delay_s = 0.0  #: before each message of a client is passed on
        self.server = server  #: of new connections
        self._is_cut = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()  # of the connections that last
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="database-proxy", daemon=True)

    def url(self, database: str) -> str:
        return f"postgresql://s3spool@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def cut(self) -> None:
        """End all connections, and each new one at once, until `mend`."""
        with self._lock:
            self._is_cut = True
            for end in self._sockets:
                _shut(end)

    def mend(self) -> None:
        self._is_cut = False

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._acceptor.join(10)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), name="database-proxy", daemon=True)
                thread.start()
                self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def _serve(self, client: socket.socket) -> None:
        """One connection, until either end closes it."""
        with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
            with self._lock:
                if self._is_cut:
                    return
                self._sockets |= {client, server}
            try:
                server.connect(str(self.server))
                answers = threading.Thread(target=_pump, args=(server, client, lambda: 0.0), daemon=True)
                answers.start()
                _pump(client, server, lambda: self.delay_s)
                answers.join()
            finally:
                with self._lock:
                    self._sockets -= {client, server}


def _pump(source: socket.socket, target: socket.socket, delay_s: Callable[[], float]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            time.sleep(delay_s())
            target.sendall(data)
    _shut(source)
    _shut(target)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
