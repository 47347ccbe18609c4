"""`systemctl stop` while files are on their way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from s3spool.daemon.supervisor import EXTEND_S
from support.faults import HoldUntil
from support.waiting import eventually
from system.conftest import BUCKET
from system.service import PERSON, names

if TYPE_CHECKING:
    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service

WORKERS = 100


@pytest.fixture
def holding(service: Service, faulty: FaultyS3) -> Service:
    """The store takes the requests and does not answer yet."""
    faulty.script(HoldUntil(), times=None, match="^PUT .*dat")
    service.configure(faulty.endpoint_url, BUCKET, service={"drain_s": 600})
    service.start()
    return service


def stop_without_waiting(service: Service) -> None:
    service.machine.run("systemctl stop --no-block s3spool")
    service.wait_event("daemon.draining")


def wait_stopped(service: Service) -> None:
    """In good order: not by force, not too late."""
    eventually(lambda: service.state() == ("inactive", "dead"), timeout_s=60, message="the service has stopped")
    assert service.machine.show("s3spool", "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}


def in_flight(faulty: FaultyS3, count: int) -> None:
    eventually(lambda: faulty.in_flight >= count, timeout_s=60, message=f"{count} requests at the store")


def test_what_is_in_flight_ends_well(holding: Service, faulty: FaultyS3) -> None:
    """A hundred uploads finish and are not sent again; those that had not begun are sent after the next start."""
    holding.drop_many(150)
    in_flight(faulty, WORKERS)

    stop_without_waiting(holding)
    assert holding.state() == ("deactivating", "stop-sigterm")
    assert faulty.contents() == {}
    faulty.behave()
    wait_stopped(holding)

    stopped = holding.wait_event("daemon.stopped")
    assert stopped["S3SPOOL_UPLOADED"] == str(WORKERS)
    assert len(faulty.contents()) == WORKERS
    holding.start()
    eventually(lambda: set(faulty.contents()) == names(150), timeout_s=60, message="150 files in S3")
    holding.machine.run("s3spool wait --timeout 60")
    assert faulty.count("^PUT .*dat") == 150


def test_a_second_signal_skips_the_drain(holding: Service, faulty: FaultyS3) -> None:
    """Who is in a hurry gets out long before drain_s; the files are still in the folder, and sent later."""
    holding.drop_many(20)
    in_flight(faulty, 20)
    stop_without_waiting(holding)

    holding.machine.run("systemctl kill --kill-whom=main --signal=TERM s3spool")
    wait_stopped(holding)

    assert faulty.contents() == {}
    faulty.behave()
    holding.start()
    eventually(lambda: set(faulty.contents()) == names(20), timeout_s=60, message="20 files in S3")


def test_a_drain_ends_before_systemd_loses_patience(holding: Service, faulty: FaultyS3) -> None:
    """Nobody answers: after drain_s the daemon goes by itself, and systemd has no reason to kill it."""
    holding.change(service={"drain_s": 1})
    holding.start()
    holding.drop_many(5)
    in_flight(faulty, 5)

    stop_without_waiting(holding)
    wait_stopped(holding)

    assert [entry["S3SPOOL_DRAINED"] for entry in holding.events("daemon.stopped")] == ["true", "false"]


def test_a_long_drain_is_granted(holding: Service, faulty: FaultyS3) -> None:
    """drain_s beyond TimeoutStopSec: the daemon asks systemd for the time that it needs."""
    holding.drop_in("[Service]\nTimeoutStopSec=1\n")
    holding.start()
    holding.drop_many(5)
    in_flight(faulty, 5)

    stop_without_waiting(holding)
    # Longer than what it asks for at first: only asking again keeps it alive.
    over = time.monotonic() + EXTEND_S + 1
    eventually(lambda: time.monotonic() > over, timeout_s=60)
    assert holding.state() == ("deactivating", "stop-sigterm")
    faulty.behave()
    wait_stopped(holding)

    assert set(faulty.contents()) == names(5)


def test_large_files_leave_no_orphans(holding: Service, faulty: FaultyS3, machine: Machine) -> None:
    """All workers stopped in the middle of files and parts: nothing is lost, each large file has one upload.

    Not all ten are begun by then: part concurrency limits the parts (queue/part_concurrency.py).
    """
    holding.change(upload={"multipart_threshold": "5MiB", "part_size": "5MiB"})
    holding.start()
    large = {f"big-{number}.dat" for number in range(10)}
    for name in large:
        machine.run(f"head -c 12M /dev/urandom >.{name} && mv .{name} {name}", user=PERSON, cwd=holding.folder)
    eventually(lambda: unfinished(faulty), timeout_s=60, message="uploads in parts")
    holding.drop_many(WORKERS)
    in_flight(faulty, WORKERS)

    stop_without_waiting(holding)
    machine.run("systemctl kill --kill-whom=main --signal=TERM s3spool")
    wait_stopped(holding)
    begun = unfinished(faulty)
    assert begun
    assert faulty.contents() == {}
    faulty.behave()
    holding.start()

    eventually(lambda: set(faulty.contents()) == large | names(WORKERS), timeout_s=60, message="all files in S3")
    machine.run("s3spool wait --timeout 60")
    assert unfinished(faulty) == []
    for name, content in faulty.contents().items():
        assert content == machine.path(f"{holding.folder}/{name}").read_bytes()
    assert faulty.count("^POST .*[?]uploads") == len(large)
    assert 0 < len(holding.events("multipart.resumed")) <= len(begun)


def unfinished(faulty: FaultyS3) -> list[str]:
    client = faulty.client()
    try:
        uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["UploadId"] for upload in uploads]
    finally:
        client.close()
