"""Bytes that change on the wire: noticed by the server's checksum, sent again, never an object."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from support.daemon import Daemon
from support.objects import content_of, objects

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mypy_boto3_s3.client import S3Client

    from s3spool.service.seaweed import Seaweed

PART = 5 * 1024 * 1024


class BadWire:
    """A TCP proxy that inverts one byte in the middle of the first long bodies that pass through it."""

    def __init__(self, port: int, *, flips: int, after_bytes: int) -> None:
        self.flips = flips
        self._after_bytes = after_bytes
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="bad-wire", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65536):
                passed += len(data)
                target.sendall(self._spoilt(data) if upwards and passed > self._after_bytes else data)
                if passed > self._after_bytes:
                    passed = 0

    def _spoilt(self, data: bytes) -> bytes:
        with self._lock:
            if self.flips <= 0 or len(data) < 1000:
                return data
            self.flips -= 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.fixture
def wire(seaweed: Seaweed) -> Iterator[BadWire]:
    wire = BadWire(seaweed.port, flips=3, after_bytes=1024 * 1024)
    yield wire
    wire.close()


@pytest.mark.parametrize("size", [2 * 1024 * 1024, 4 * PART + 1], ids=["one request", "parts"])
def test_a_wrong_byte_never_becomes_an_object(
    tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str, wire: BadWire, size: int
) -> None:
    """The server refuses what does not match the checksum; it comes again, and arrives as it is."""
    content = content_of(size)
    upload = {"multipart_threshold": PART, "part_size": PART, "workers": 4}
    endpoint = {"endpoint_url": f"http://127.0.0.1:{wire.port}"}
    with Daemon(
        tmp_path, bucket=bucket, environment=seaweed.environment(), upload=upload, destination=endpoint
    ) as daemon:
        daemon.wait_ready()
        daemon.drop("big", content)
        daemon.wait_uploaded(1, timeout_s=60)

        assert wire.flips == 0
        assert [event["error_code"] for event in daemon.events("file.failed")].count("BadDigest") >= 1
    assert objects(s3, bucket) == {"big": content}
