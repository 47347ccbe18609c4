"""One daemon for many faults of its server, told apart by the names of the files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from support.daemon import Daemon
from support.faulty import FaultyS3
from support.waiting import eventually

PART = 5 * 1024 * 1024  # S3's least
WORKERS = 8
COUNTER = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture(scope="module")
def running(server: FaultyS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all faults, which also shows that no fault spoils it for the next one."""
    daemon = Daemon(
        tmp_path_factory.mktemp("faults"),
        server,
        watch={"rescan_s": 3600},
        destination={"checksum": "crc64nvme"},  # not auto, which learns from one fault for the next one
        after={"action": "delete"},
        upload={"workers": WORKERS, "timeout_s": 1, "multipart_threshold": PART, "part_size": PART},
        retry={"initial_s": 0.1, "max_s": 0.3},
    )
    with daemon.start_scanned():
        yield daemon
        assert not daemon.events("worker.replaced")
        assert not daemon.events("thread.died")
        assert b"Traceback" not in daemon.log_path.read_bytes()
        assert daemon.stop() == 0


@pytest.fixture
def daemon(running: Daemon, server: FaultyS3) -> Iterator[Daemon]:
    """The same, at its full width, with everything before behind it."""
    running.mark()
    yield running
    server.behave()
    running.cli("retry", "--all")
    if running.events("destination.slowed", this_run=True):
        for number in range(60):  # one more worker for each round that passes
            running.drop(f"round {next(COUNTER)} {number}")
        running.wait_event("destination.throttle_ended")
    eventually(lambda: not os.listdir(running.folder))
    server.cut()  # its threads are the test's
