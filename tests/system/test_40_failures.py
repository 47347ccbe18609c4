"""What goes wrong in a service's life, and who has to do something about it: mostly nobody."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from support.faults import Status
from support.waiting import eventually
from system.conftest import BUCKET
from system.service import names

if TYPE_CHECKING:
    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service

QUICK_RESTART = "[Service]\nRestartSec=100ms\n"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"upload": {"workers": 0}}, "upload.workers"),
        ({"watch": {"directroy": "/tmp"}}, "did you mean directory"),  # noqa: S108 - never made
        ({"watch": {"directory": "/var/spool/not-there"}}, "watch.directory"),
    ],
)
def test_a_wrong_configuration_is_not_tried_again(
    machine: Machine, service: Service, wrong: dict[str, dict[str, object]], named: str
) -> None:
    """Exit code 78, no restart, one line that names the key."""
    service.configure("http://127.0.0.1:9", BUCKET, **wrong)
    mark = machine.mark()

    service.systemctl("start", check=False)

    machine.wait_for("systemctl is-failed s3spool")
    shown = machine.show("s3spool", "ExecMainStatus", "NRestarts")
    assert shown == {"ExecMainStatus": "78", "NRestarts": "0"}
    said = [str(entry["MESSAGE"]) for entry in machine.journal("SYSLOG_IDENTIFIER=s3spool", after=mark)]
    assert len(said) == 1, said
    assert named in said[0]


def test_a_dead_store_holds_nothing_up(machine: Machine, service: Service, faulty: FaultyS3) -> None:
    """READY comes, the status line says what is wrong, and when the store is back nobody has to do anything."""
    faulty.script(Status(code=503, error_code="ServiceUnavailable"), times=None)
    service.configure(faulty.endpoint_url, BUCKET)
    service.start()
    service.drop_many(200)

    paused = service.wait_event("destination.paused")
    assert paused["PRIORITY"] == "3"
    eventually(lambda: "paused" in service.status_text, timeout_s=30, message="STATUS says that it is paused")
    assert service.status()["state"] == "paused"
    assert service.state() == ("active", "running")
    assert not service.events("file.parked")
    faulty.behave()

    service.wait_event("destination.resumed")
    machine.run("s3spool wait --timeout 60")
    assert set(faulty.contents()) == names(200)
    eventually(lambda: "200 uploaded" in service.status_text, timeout_s=30, message="STATUS is well again")
    assert len(service.events("destination.paused")) == 1


def test_nobody_listens_where_the_store_should_be(machine: Machine, service: Service) -> None:
    """A refused connection at start-up is the destination's matter, not the service's."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, but nobody listens
        service.configure(f"http://127.0.0.1:{reserved.getsockname()[1]}", BUCKET)
        service.start()
        service.drop("waits")
        service.wait_event("destination.paused")
        assert service.state() == ("active", "running")
        assert service.status()["files"]["uploaded"] == 0


def test_without_credentials_it_starts_and_says_so(machine: Machine, service: Service, faulty: FaultyS3) -> None:
    """A machine with a role has no such file; one without is told what is missing."""
    machine.path(service.credentials_file).unlink()
    service.drop_in("[Service]\nEnvironment=AWS_EC2_METADATA_DISABLED=true\n")
    service.configure(faulty.endpoint_url, BUCKET)

    service.start()
    service.drop("waits")

    paused = service.wait_event("destination.paused")
    assert "credentials" in paused["MESSAGE"]
    assert service.state() == ("active", "running")
    service.credentials()
    service.start()
    service.wait_event("file.uploaded", path="waits")


def test_a_start_that_fails_is_tried_until_it_works(machine: Machine, service: Service, faulty: FaultyS3) -> None:
    """Exit code 1 is for what may pass, here a ledger that is in use: tried more often than systemd would by itself."""
    service.drop_in(QUICK_RESTART)
    service.configure(faulty.endpoint_url, BUCKET)
    holder = machine.spawn("flock /var/lib/s3spool/daemon.lock sleep 1000", user="s3spool")
    try:
        machine.wait_for("test -e /var/lib/s3spool/daemon.lock && ! flock -n /var/lib/s3spool/daemon.lock true")
        service.systemctl("start", check=False)
        eventually(lambda: int(service.show("NRestarts")) > 6, timeout_s=60, message="seven attempts")
        assert len(machine.journal("EXIT_STATUS=1", after=service.since)) > 6
    finally:
        machine.run("pkill -x sleep", check=False)
        holder.communicate()

    machine.wait_for("systemctl is-active s3spool")
    service.drop("at-last")
    service.wait_event("file.uploaded", path="at-last")


def test_ten_kills_end_in_ten_restarts(machine: Machine, service: Service, faulty: FaultyS3) -> None:
    """No number of deaths makes systemd give up, and no file is lost over them."""
    service.drop_in(QUICK_RESTART)
    service.configure(faulty.endpoint_url, BUCKET)
    service.start()
    pid = service.pid
    for number in range(10):
        service.drop_many(20, first=20 * number)
        machine.run(f"kill -9 {pid}")
        pid = service.wait_restarted(pid)

    assert machine.show("s3spool", "NRestarts", "Result") == {"NRestarts": "10", "Result": "success"}
    eventually(lambda: set(faulty.contents()) == names(200), timeout_s=60, message="200 files in S3")
