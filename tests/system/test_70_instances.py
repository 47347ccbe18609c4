"""More folders, and folders elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.waiting import eventually
from system.conftest import BUCKET
from system.service import PERSON, Service, names

if TYPE_CHECKING:
    from support.faulty import FaultyS3
    from system.machine import Machine

ELSEWHERE = "[Unit]\nRequiresMountsFor=/srv/incoming\n[Service]\nReadWritePaths=/srv\n"


def test_a_folder_elsewhere_needs_one_drop_in(service: Service, faulty: FaultyS3, machine: Machine) -> None:
    """With the drop-in of docs/howto.md files are taken from there, and removed once they are in S3."""
    machine.run("install -d -o s3spool -g s3spool -m 3770 /srv/incoming")
    service.folder = "/srv/incoming"
    service.drop_in(ELSEWHERE)
    service.configure(faulty.endpoint_url, BUCKET, after={"action": "delete"})
    service.start()

    service.drop_many(50)

    eventually(lambda: set(faulty.contents()) == names(50), timeout_s=60, message="50 files in S3")
    eventually(lambda: not list(machine.path("/srv/incoming").iterdir()), timeout_s=60, message="an empty folder")
    assert service.state() == ("active", "running")


def test_a_folder_out_of_reach_is_named(service: Service, faulty: FaultyS3, machine: Machine) -> None:
    """Without the drop-in it cannot remove files there: it says so, and does not start."""
    machine.run("install -d -o s3spool -g s3spool -m 3770 /srv/other")
    service.configure(faulty.endpoint_url, BUCKET, watch={"directory": "/srv/other"}, after={"action": "delete"})

    service.systemctl("start", check=False)

    assert machine.show("s3spool", "ActiveState", "ExecMainStatus") == {"ActiveState": "failed", "ExecMainStatus": "78"}
    (said,) = machine.journal("SYSLOG_IDENTIFIER=s3spool", after=service.since)
    assert "watch.directory" in said["MESSAGE"]
    assert "/srv/other" in said["MESSAGE"]


def test_an_instance_has_everything_of_its_own(service: Service, faulty: FaultyS3, machine: Machine) -> None:
    """Its configuration, folder, ledger and socket; one stops without the other."""
    second = Service(machine, "second")
    machine.run(f"install -d -o s3spool -g s3spool -m 3770 {second.folder}")
    second.credentials()
    service.configure(faulty.endpoint_url, BUCKET, destination={"prefix": "first/"})
    second.configure(faulty.endpoint_url, BUCKET, destination={"prefix": "second/"})
    service.start()
    machine.run("systemctl enable --now s3spool@second")

    service.drop("same-name", "of the first")
    second.drop("same-name", "of the second")

    expected = {"first/same-name": b"of the first", "second/same-name": b"of the second"}
    eventually(lambda: faulty.contents() == expected, timeout_s=60, message="each in its own place")
    assert machine.path("/var/lib/s3spool-second/ledger.sqlite3").exists()
    assert service.pid != second.pid
    service.systemctl("stop")
    asked = machine.out(f"s3spool status --json --config {second.config_file}", user=PERSON)
    assert f'"pid":{second.pid}' in asked.replace(" ", "")
    second.systemctl("stop")
    service.start()
    assert service.status()["pid"] == service.pid
    machine.run(f"systemctl disable s3spool@second; rm {second.config_file} {second.credentials_file}")


def test_service_install_makes_another_instance(service: Service, faulty: FaultyS3, machine: Machine) -> None:
    """Beside the package it adds what the package does not know: a folder elsewhere, and the way to it."""
    folder = "/srv/third"
    machine.run(f"s3spool service install --name third --directory {folder}")
    third = Service(machine, "third")
    third.folder = folder
    third.credentials()
    third.configure(faulty.endpoint_url, BUCKET, after={"action": "delete"})
    assert machine.run("s3spool service check --name third", check=False).returncode == 0

    machine.run("systemctl enable --now s3spool@third")
    third.drop("one")

    eventually(lambda: faulty.contents() == {"one": b"content"}, timeout_s=60, message="one file in S3")
    eventually(lambda: not list(machine.path(folder).iterdir()), timeout_s=60, message="an empty folder")
    machine.path(third.credentials_file).unlink()
    machine.run("s3spool service uninstall --name third")
    assert not machine.path(folder).exists()
    assert machine.show("s3spool@third", "ActiveState", "DropInPaths") == {"ActiveState": "inactive", "DropInPaths": ""}
    assert machine.path(third.config_file).exists(), "it was changed, so it is the person's"
    machine.path(third.config_file).unlink()
