"""How a daemon with an upload in flight stops."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.daemon import Daemon, Make
from support.faults import HoldUntil
from support.faulty import FaultyS3
from support.preload import lying
from support.waiting import eventually


@pytest.fixture
def hold() -> HoldUntil:
    return HoldUntil()


@pytest.fixture
def busy(make: Make, faulty: FaultyS3, hold: HoldUntil) -> Daemon:
    """With one upload that S3 does not answer until it is told to."""
    faulty.script(hold, times=None, match="^PUT ")
    daemon = make().start_ready()
    daemon.drop("file", b"content")
    eventually(lambda: faulty.in_flight == 1)
    return daemon


def test_signals_that_come_together_are_one(busy: Daemon, hold: HoldUntil, faulty: FaultyS3) -> None:
    """timeout(1) signals the process and then its group, a terminal all that runs: that is no impatience."""
    busy.signal(signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        busy.signal(number)
    busy.wait_event("daemon.draining")
    hold.release()

    assert busy.wait_exit() == 0
    assert busy.wait_event("daemon.stopped")["drained"] is True
    assert faulty.contents() == {"file": b"content"}


def test_a_second_signal_skips_the_drain(busy: Daemon) -> None:
    """What was not sent is still in the folder."""
    busy.signal(signal.SIGTERM)
    busy.wait_event("daemon.draining")
    busy.signal(signal.SIGTERM)

    assert busy.wait_exit() == 0
    assert busy.wait_event("daemon.stopped")["drained"] is False
    assert (busy.folder / "file").read_bytes() == b"content"


@pytest.mark.parametrize("drain_s", [1, 300])
def test_a_name_server_that_does_not_answer_holds_nothing_up(
    make: Make, tmp_path: Path, faulty: FaultyS3, drain_s: int
) -> None:
    """libcurl ends only when the last name is looked up: the drain does not wait for that, nor a second signal."""
    destination = {"endpoint_url": f"http://hangs.test:{faulty.port}", "addressing_style": "path"}
    daemon = make(
        environment=lying(tmp_path),
        destination=destination,
        upload={"timeout_s": 1},
        service={"drain_s": drain_s},
    ).start_ready()
    daemon.drop("file", b"content")
    daemon.wait_event("file.failed", error_code="OPERATION_TIMEDOUT")

    daemon.signal(signal.SIGTERM)
    daemon.wait_event("daemon.draining")
    if drain_s > 60:
        daemon.signal(signal.SIGTERM)

    assert daemon.wait_exit() == 0
    assert (daemon.folder / "file").read_bytes() == b"content"
