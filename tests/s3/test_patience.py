"""When a request is given up: after a silence of upload.timeout_s, and not while bytes move."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from s3spool.s3.curl_transport import CurlTransport
from support.objects import content_of
from support.stores import destination, put, put_request, range_request, store_of, use

KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
LATEST_S = {
    "carried": 4.0,  # timeout_s, two seconds for two looks at the progress, and some for a busy machine
    "curl": 10.0,  # libcurl averages over some seconds before it counts a silence
}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Line:
    """A server that reads `piece` bytes of each body every `pause_s`, `most` at most, and answers complete ones."""

    def __init__(self, piece: int, pause_s: float, most: int, *, answers: bool) -> None:
        self.piece, self.pause_s, self.most, self.answers = piece, pause_s, most, answers
        self.closing = threading.Event()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.listener.settimeout(0.1)
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while not self.closing.is_set():
            with suppress(TimeoutError):
                thread = threading.Thread(target=self.serve, args=self.listener.accept()[:1])
                self.threads.append(thread)
                thread.start()

    def serve(self, connected: socket.socket) -> None:
        with connected, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connected.recv(1)
            left = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            most = self.most
            while left and most and not self.closing.wait(self.pause_s):
                received = len(connected.recv(min(left, most, self.piece)))
                left -= received
                most -= received
            if self.answers and not left:
                connected.sendall(ANSWER)
            self.closing.wait()


@contextmanager
def line(piece: int, pause_s: float, most: int = 2**40, *, answers: bool = True) -> Iterator[Line]:
    made = Line(piece, pause_s, most, answers=answers)
    try:
        yield made
    finally:
        made.closing.set()
        for thread in made.threads:
            thread.join(30)
        made.listener.close()
    assert not any(thread.is_alive() for thread in made.threads)


@contextmanager
def sender_to(server: Line, kind: str, monkeypatch: pytest.MonkeyPatch, timeout_s: float) -> Iterator[CurlTransport]:
    use(KEYS, monkeypatch)
    url = f"http://127.0.0.1:{server.listener.getsockname()[1]}"
    made = store_of(kind, destination("b", url), timeout_s=timeout_s).transport()
    yield made
    made.close()


# A MultiClient sends bodies in memory only.
ways = pytest.mark.parametrize(("kind", "in_memory"), [("curl", True), ("carried", True), ("curl", False)])


@ways
@pytest.mark.parametrize("most", [50_000, 120_000], ids=["half", "all"])
def test_a_silence_ends_it(
    kind: str, in_memory: bool, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half or all of the body; the next request goes over another connection and starts anew."""
    body = content_of(120_000)[:120_000]
    (tmp_path / "file").write_bytes(body)
    with (
        (tmp_path / "file").open("rb") as file,
        line(8192, 0.01, most, answers=False) as server,
        sender_to(server, kind, monkeypatch, 1.0) as sender,
    ):
        request = put_request("a", body) if in_memory else range_request("a", file.fileno(), 0, len(body))
        begun = time.monotonic()

        error = put(sender, request).error

        assert error is not None
        assert error.code == "OPERATION_TIMEDOUT"
        assert 1.0 <= time.monotonic() - begun < LATEST_S[kind]
        server.most, server.answers = 2**40, True
        assert put(sender, request).status == 200


@ways
def test_a_slow_body_may_take_its_time(
    kind: str, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes several times timeout_s; now and then some of it leaves this machine, and the kernel holds the rest."""
    body = content_of(300_000)[:300_000]
    (tmp_path / "file").write_bytes(body)
    with (
        (tmp_path / "file").open("rb") as file,
        line(10_000, 0.5) as server,
        sender_to(server, kind, monkeypatch, 4.0) as sender,
    ):
        begun = time.monotonic()
        answer = put(sender, put_request("a", body) if in_memory else range_request("a", file.fileno(), 0, len(body)))

        assert answer.status == 200, answer
        assert time.monotonic() - begun > 12.0
