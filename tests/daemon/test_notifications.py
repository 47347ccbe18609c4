"""What a running daemon tells systemd, heard at the socket's other end."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from s3spool.control.status import Files, LargeFile, Rate
from s3spool.daemon.status_line import backlog, paused, running
from s3spool.daemon.supervisor import EXTEND_S
from support.daemon import Daemon, Make
from support.faults import HoldUntil, Status
from support.faulty import FaultyS3
from support.inside import inside, run_until_ready
from support.lines import recorded
from support.waiting import eventually

pytestmark = pytest.mark.integration


class Manager:
    """systemd's end of NOTIFY_SOCKET: all that was said, with the time of its arrival."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def said(self, pattern: str) -> list[str]:
        return [text for _, text in self.heard if re.fullmatch(pattern, text)]

    def wait(self, pattern: str, *, timeout_s: float = 30.0) -> str:
        def there() -> list[str]:
            return self.said(pattern)

        return eventually(there, timeout_s=timeout_s, message=pattern)[0]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while text := self._socket.recv(4096).decode():
            self.heard.append((time.monotonic(), text))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    listening = Manager(tmp_path / "notify")
    yield listening
    listening.close()


@pytest.fixture
def daemon(make: Make, manager: Manager) -> Daemon:
    """Under a manager with a watchdog of one second."""
    watched = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    daemon = make(environment=watched, service={"drain_s": 600}).start()
    manager.wait("READY=1")
    return daemon


def test_a_life_in_order(daemon: Daemon, manager: Manager) -> None:
    """Ready, then alive again and again; a reload has its beginning, with the time, and its end; then stopping."""
    manager.wait("STATUS=0 uploaded, 0 unsent")
    eventually(lambda: len(manager.said("WATCHDOG=1")) > 2)
    daemon.drop("a")
    manager.wait("STATUS=1 uploaded, 0 unsent")
    before_usec = time.monotonic_ns() // 1000
    daemon.signal(signal.SIGHUP)
    reloading = manager.wait("RELOADING=1\nMONOTONIC_USEC=[0-9]+")
    eventually(lambda: len(manager.said("READY=1")) == 2)
    daemon.stop()
    manager.wait("STOPPING=1")

    assert before_usec <= int(reloading.rpartition("=")[2]) <= time.monotonic_ns() // 1000
    order = [text for _, text in manager.heard if text.startswith(("READY", "RELOADING", "STOPPING"))]
    assert order == ["READY=1", reloading, "READY=1", "STOPPING=1"]
    said = manager.said("STATUS=.*")
    assert all(first != second for first, second in pairwise(said)), said


def test_a_refusal_in_the_status(daemon: Daemon, manager: Manager, faulty: FaultyS3) -> None:
    """HTTP's number and S3's word, since when, and when it is tried again; afterwards the counts come back."""
    faulty.script(Status(code=403, error_code="AccessDenied"), times=None)
    daemon.drop("a")

    manager.wait(
        "STATUS=destination paused: 403 AccessDenied since [0-9]{2}:[0-9]{2}, (next try in 1 s|trying now); 1 unsent.*"
    )
    faulty.behave()
    manager.wait("STATUS=1 uploaded, 0 unsent")


def test_what_failed_is_waiting(daemon: Daemon, manager: Manager, faulty: FaultyS3) -> None:
    """A file of the retry list is not forgotten by the status line, nor is its age, nor one that was parked."""
    faulty.script(Status(code=413, error_code="EntityTooLarge"), times=None, match="^PUT parked")
    daemon.drop("parked")

    manager.wait("STATUS=0 uploaded, 1 parked")
    faulty.script(HoldUntil(), times=None, match="^PUT held")
    daemon.drop("held")
    manager.wait("STATUS=0 uploaded, 1 uploading, 1 parked, .*oldest unsent [0-9.]+ s")
    faulty.behave()


def test_a_drain_is_extended_again_and_again(daemon: Daemon, manager: Manager, faulty: FaultyS3) -> None:
    """It may last longer than what was asked for first, and systemd kills one that hangs soon after."""
    faulty.script(HoldUntil(), times=None)
    daemon.drop("held")
    eventually(lambda: faulty.in_flight == 1)

    daemon.signal(signal.SIGTERM)
    asked = f"EXTEND_TIMEOUT_USEC={int(EXTEND_S * 1e6)}"
    eventually(lambda: len(manager.said(asked)) >= 3, timeout_s=30, message="three extensions")
    faulty.behave()
    assert daemon.wait_exit() == 0

    times = [at for at, text in manager.heard if text == asked]
    assert all(later - earlier < EXTEND_S for earlier, later in pairwise(times))
    manager.wait("STATUS=stopping, 1 uploading may finish")
    assert set(faulty.contents()) == {"held"}


def test_ready_means_watching_and_working(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """At READY=1 the folder is watched and each worker lives, though no S3 answers anywhere."""
    daemon = inside(tmp_path, request)
    found: list[object] = []

    def ready() -> None:
        found.extend(
            (
                daemon.components.workers.alive(),
                daemon.watch_manager.watch is not None and daemon.watch_manager.watch.alive(),
            )
        )

    with recorded():
        assert run_until_ready(daemon, ready) == 0
    assert found == [7, True]


def test_the_lines_read_as_people_want_them() -> None:
    """Thousands have commas, what is not there is not mentioned, and a pause of another day has its date."""
    noon = time.mktime((2026, 3, 1, 12, 1, 0, 0, 0, -1))

    some = Files(uploaded=1204, uploading=3, queued=1000, waiting=2)
    large = LargeFile(path="big", bytes=4, bytes_uploaded=1)
    assert running(some, 3 * 2**30, Rate(bytes_per_s=2**26), 4.2, [large]) == (
        "1,204 uploaded, 3 uploading (big 25%), 1,000 queued, 2 waiting, 3 GiB unsent, 64 MiB/s, 48 s left,"
        " oldest unsent 4.2 s"
    )
    assert running(Files(uploaded=1, parked=2), 0, Rate(), 0.0, []) == "1 uploaded, 2 parked"
    assert backlog(some, 2**20) == "1,005 unsent (1 MiB)"
    text = "destination paused: 403 AccessDenied since"
    assert paused("403 AccessDenied", noon, 20.2, noon + 60) == f"{text} 12:01, next try in 20 s"
    assert paused("403 AccessDenied", noon, 0.0, noon + 86400) == f"{text} 2026-03-01 12:01, trying now"
