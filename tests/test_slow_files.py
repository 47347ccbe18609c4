"""A mount inside the folder that is slow, or hangs, delays its own files and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.arrivals import slowest_arrival_s
from support.daemon import Daemon
from support.faulty import FaultyS3
from support.slow_files import SlowFiles

pytestmark = pytest.mark.integration

PROMPT_S = 5.0  # the slowest of the other files


@pytest.fixture
def faulty() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowFiles]:
    """Mounted in the folder of a daemon in `tmp_path`."""
    with SlowFiles(tmp_path / "spool" / "mount", tmp_path / "fuse") as files:
        yield files


@pytest.fixture
def daemon(tmp_path: Path, faulty: FaultyS3, slow: SlowFiles) -> Iterator[Daemon]:
    """After its files have gone the file system must not be asked by it any more: it could not be killed."""
    daemon = Daemon(tmp_path, bucket=faulty.bucket, environment=faulty.environment(), watch={"rescan_s": 2})
    yield daemon
    slow.release()
    if daemon.alive:
        daemon.kill()


def test_an_open_that_hangs(daemon: Daemon, slow: SlowFiles, faulty: FaultyS3) -> None:
    """Twenty files of a mount cannot be opened: all others go at once; when they can be, they go too."""
    slow.hold("open", ".held")
    for number in range(20):
        (slow.backing / f"{number}.held").write_text("late")
    daemon.start()
    daemon.wait_event("scan.finished")

    assert slowest_arrival_s(daemon, faulty, 4, each_s=0.5) < PROMPT_S

    slow.release()
    daemon.wait_uploaded(24)
    assert faulty.contents()["mount/7.held"] == b"late"
    assert not daemon.events("daemon.unsound")
    assert daemon.stop() == 0
