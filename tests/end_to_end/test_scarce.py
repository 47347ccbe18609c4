"""Connections and descriptors that are scarce: fewer at once, and none held by a worker that may not send."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.daemon import Daemon
from support.faults import Reset
from support.faulty import FaultyS3
from support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FILES = 400
SOON_S = 60.0


class Admitting:
    """A balancer before a server: so many connections at once, and any further one is reset."""

    def __init__(self, port: int, most: int) -> None:
        self._port, self._most = port, most
        self._open = 0
        self._lock = threading.Lock()
        self.reset = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self._closing = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._closing = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._accepting.join()
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._lock:
                full = self._open >= self._most or self._closing
                self._open += not full
                self.reset += full
            if self._closing:
                client.close()
                return
            if full:
                # No lingering: the client gets a RST.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
                continue
            thread = threading.Thread(target=self._serve, args=(client,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            there = threading.Thread(target=_copy, args=(client, server))
            there.start()
            _copy(server, client)
            there.join()
        with self._lock:
            self._open -= 1


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


def good_files_one_by_one(daemon: Daemon, count: int, within_s: float) -> None:
    for number in range(count):
        name = f"good {number}"
        daemon.drop(name)
        daemon.wait_event("file.uploaded", path=name, timeout_s=within_s)


def test_a_server_that_admits_three_connections(tmp_path: Path, server: FaultyS3) -> None:
    """It resets all others: three send, good files pass, and the backlog goes out."""
    with Admitting(server.port, 3) as balancer:
        environment = server.environment() | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{balancer.port}"}
        daemon = Daemon(tmp_path / "home", bucket=server.bucket, environment=environment, retry={"initial_s": 1})
        for number in range(FILES):
            daemon.drop(f"file {number}")
        with daemon:
            daemon.wait_ready()
            good_files_one_by_one(daemon, 5, SOON_S)
            daemon.wait_uploaded(FILES + 5, timeout_s=120)
            assert balancer.reset > 0
            assert not daemon.events("file.parked")


def test_one_file_whose_connection_is_always_lost(tmp_path: Path, server: FaultyS3) -> None:
    """It backs off, though nobody knows whose fault it is: neither server nor workers are busy with it."""
    server.script(Reset("before"), times=None, match="^PUT bad$")
    retry = {"initial_s": 1, "max_s": 300}
    with Daemon(tmp_path / "home", bucket=server.bucket, environment=server.environment(), retry=retry) as daemon:
        daemon.drop("bad")
        for number in range(FILES):
            daemon.drop(f"file {number}")

        daemon.wait_uploaded(FILES, timeout_s=60)

        assert server.count("^PUT bad$") < 30
        assert daemon.events("file.failed", path="bad")
        assert not daemon.events("destination.paused")


@pytest.mark.parametrize("limit", [80, 150])
def test_few_descriptors(tmp_path: Path, server: FaultyS3, limit: int) -> None:
    """Fewer workers start, one warning says how many, and all files go out."""
    daemon = Daemon(tmp_path / "home", bucket=server.bucket, environment=server.environment())
    daemon.program = ("prlimit", f"--nofile={limit}:{limit}", *daemon.program)
    for number in range(FILES):
        daemon.drop(f"file {number}")
    with daemon:
        daemon.wait_ready()
        (line,) = daemon.events("workers.limited")
        assert 1 <= line["workers"] < line["wanted"] == 100
        good_files_one_by_one(daemon, 2, SOON_S)
        daemon.wait_uploaded(FILES + 2, timeout_s=60)
        assert not daemon.events("file.parked")


def test_descriptors_taken_away_while_it_runs(tmp_path: Path, server: FaultyS3) -> None:
    """The limit falls below what is open: fewer send, nothing is parked; once it is raised all go on."""
    with Daemon(tmp_path / "home", bucket=server.bucket, environment=server.environment()) as daemon:
        daemon.wait_ready()
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (40, hard))
        for number in range(FILES):
            daemon.drop(f"file {number}")
        eventually(lambda: daemon.events("destination.slowed") or len(daemon.events("file.uploaded")) > 100)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))

        good_files_one_by_one(daemon, 2, SOON_S)
        daemon.wait_uploaded(FILES + 2, timeout_s=60)
        assert not daemon.events("file.parked")


def test_an_idle_daemon_holds_no_connection(tmp_path: Path, server: FaultyS3) -> None:
    """After some seconds without a file all are closed."""
    with Daemon(tmp_path / "home", bucket=server.bucket, environment=server.environment()) as daemon:
        for number in range(200):
            daemon.drop(f"file {number}")
        daemon.wait_uploaded(200)

        def connected() -> int:
            established = "01"
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            return sum(row[3] == established and int(row[2].split(":")[1], 16) == server.port for row in rows)

        eventually(lambda: connected() == 0, timeout_s=60)
