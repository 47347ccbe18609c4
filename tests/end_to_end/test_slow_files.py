"""A mount inside the folder that is slow, or hangs, delays its own files and nothing else."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.arrivals import slowest_arrival_s
from support.daemon import Daemon
from support.faulty import FaultyS3
from support.slow_files import SlowFiles
from support.waiting import eventually

pytestmark = pytest.mark.integration

PROMPT_S = 30.0  # the slowest of the other files: what hangs, hangs for longer
SLOW_S = 15.0  # below what a hundred slow ones take one by one


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowFiles]:
    """Mounted in the folder of a daemon in `tmp_path`."""
    with SlowFiles(tmp_path / "spool" / "mount", tmp_path / "fuse") as files:
        yield files


@pytest.fixture
def daemon(tmp_path: Path, faulty: FaultyS3, slow: SlowFiles) -> Iterator[Daemon]:
    """After its files have gone the file system must not be asked by it any more: it could not be killed."""
    daemon = Daemon(tmp_path, faulty, watch={"rescan_s": 2})
    yield daemon
    slow.release()
    if daemon.alive:
        daemon.kill()


@pytest.mark.parametrize("operation", ["open", "read", "getattr", "readdir"])
def test_a_mount_that_hangs(daemon: Daemon, slow: SlowFiles, faulty: FaultyS3, operation: str) -> None:
    """Whatever of it does not answer, at the start or later: all others go, and scans still find them."""
    (slow.backing / "below").mkdir()
    (slow.backing / "below" / "held").write_text("late")
    slow.hold(operation, {"readdir": "below"}.get(operation, "held"))
    missed = daemon.folder / "missed"
    daemon.start()
    daemon.wait_ready()
    missed.mkdir()
    (missed / "deep").mkdir()
    (missed / "deep" / "file").write_text("found")

    assert slowest_arrival_s(daemon, faulty, 3, each_s=0.2) < PROMPT_S

    daemon.wait_event("scan.finished", 2 * PROMPT_S)
    eventually(lambda: "missed/deep/file" in faulty.objects)
    slow.release()
    eventually(lambda: faulty.contents().get("mount/below/held") == b"late")
    assert not daemon.events("daemon.unhealthy")
    assert daemon.stop() == 0


def test_a_removal_that_hangs(daemon: Daemon, slow: SlowFiles) -> None:
    """Files of the root are removed meanwhile."""
    slow.hold("unlink")
    (slow.backing / "held").write_text("content")
    daemon.config["after"] = {"action": "delete"}
    daemon.start()
    daemon.wait_event("file.uploaded", path="mount/held")

    path = daemon.drop("other")
    eventually(lambda: not path.exists(), timeout_s=PROMPT_S)

    slow.release()
    eventually(lambda: not os.listdir(slow.backing))
    assert daemon.stop() == 0


def test_what_hangs_is_named_and_not_waited_for(daemon: Daemon, slow: SlowFiles) -> None:
    """`status` and the log say which file it is; the drain is over long before its time, and says that it left some."""
    slow.hold("open", "held")
    (slow.backing / "held").write_text("late")
    daemon.config["service"]["drain_s"] = 60
    daemon.start()
    daemon.wait_event("file.hanging", path="mount/held")
    status = json.loads(daemon.cli("status", "--json").stdout)
    assert status["hanging"] == ["mount/held"]
    assert "hanging        mount/held" in daemon.cli("status").stdout

    daemon.signal(signal.SIGTERM)

    stopped = daemon.wait_event("daemon.stopped", 15)
    assert not stopped["drained"]
    assert stopped["ledger_flushed"]
    slow.release()  # a process ends once the kernel has its answer
    assert daemon.wait_exit() == 0


def test_a_large_file_that_hangs(daemon: Daemon, slow: SlowFiles, faulty: FaultyS3) -> None:
    """Its parts hold few workers: other large files and small ones go."""
    slow.hold("read", "held")
    (slow.backing / "held").write_bytes(bytes(20 * 2**20))
    daemon.config["upload"] = {"multipart_threshold": 6 * 2**20, "part_size": 5 * 2**20}
    daemon.start()
    daemon.wait_event("multipart.started")

    daemon.drop("large", bytes(12 * 2**20))
    assert slowest_arrival_s(daemon, faulty, 3, each_s=0.2) < PROMPT_S
    eventually(lambda: "large" in faulty.objects, timeout_s=PROMPT_S)

    slow.release()
    eventually(lambda: "mount/held" in faulty.objects)
    assert daemon.stop() == 0


def test_a_directory_that_was_slow(tmp_path: Path, faulty: FaultyS3) -> None:
    """On the root's own device too: after the first slow file of a directory the others hold nobody up."""
    with SlowFiles(tmp_path / "spool", tmp_path / "fuse") as slow:
        (slow.backing / "slow").mkdir()
        slow.hold("open", ".late", seconds=0.3)
        for number in range(100):
            (slow.backing / "slow" / f"{number}.late").write_text("late")
        with Daemon(tmp_path, faulty, watch={"rescan_s": 2}) as daemon:
            daemon.wait_event("file.uploaded")
            assert slowest_arrival_s(daemon, faulty, 3, each_s=0.2) < SLOW_S
            daemon.wait_uploaded(103)
            assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_systemds_watchdog_is_fed_while_a_file_hangs(daemon: Daemon, slow: SlowFiles, tmp_path: Path) -> None:
    """For longer than a worker may be silent: a restart would not help, and would interrupt all others."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    daemon.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}
    daemon.config["upload"] = {"timeout_s": 1}
    slow.hold("open", "held")
    slow.hold("readdir", "below")
    (slow.backing / "below").mkdir()
    (slow.backing / "held").write_text("late")
    daemon.start()
    daemon.wait_event("file.hanging")
    pings: list[float] = []

    def fed_for_longer() -> bool:
        notify.settimeout(30)
        if b"WATCHDOG=1" in notify.recv(4096):
            pings.append(time.monotonic())
        return bool(pings) and pings[-1] - pings[0] > 80

    eventually(fed_for_longer, timeout_s=150)
    assert max(later - earlier for earlier, later in itertools.pairwise(pings)) < 8
    assert not daemon.events("daemon.unhealthy")
    notify.close()
