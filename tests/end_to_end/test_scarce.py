"""Connections and descriptors that are scarce: fewer at once, and none held by a worker that may not send."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.daemon import Daemon, Make
from support.faulty import FaultyS3
from support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FILES = 400
SOON_S = 60.0


def good_files_one_by_one(daemon: Daemon, count: int, within_s: float) -> None:
    for number in range(count):
        name = f"good {number}"
        daemon.drop(name)
        daemon.wait_event("file.uploaded", path=name, timeout_s=within_s)


@pytest.mark.parametrize("limit", [80, 150])
def test_few_descriptors(make: Make, limit: int) -> None:
    """Fewer workers start, one warning says how many, and all files go out."""
    daemon = make()
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


def test_an_idle_daemon_holds_no_connection(make: Make, faulty: FaultyS3) -> None:
    """After some seconds without a file all are closed."""
    with make() as daemon:
        for number in range(200):
            daemon.drop(f"file {number}")
        daemon.wait_uploaded(200)

        def connected() -> int:
            established = "01"
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            return sum(row[3] == established and int(row[2].split(":")[1], 16) == faulty.port for row in rows)

        eventually(lambda: connected() == 0, timeout_s=60)
