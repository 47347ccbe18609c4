"""A part of the daemon dies or hangs: it heals, or systemd starts another. Never a dead service that looks alive."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from support.waiting import eventually
from system.conftest import HERE, fresh
from system.sabotage import ORDERS
from system.service import PERSON, names
from system.test_20_uploads import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3.client import S3Client

    from s3spool.demo.seaweed import Seaweed
    from system.machine import Machine
    from system.service import Service

SITE = "/usr/lib/s3spool/lib/python3.*/site-packages"
SHORT = "[Service]\nWatchdogSec=2\nRestartSec=100ms\n"
LONG = "[Service]\nWatchdogSec=30\n"


@pytest.fixture(scope="module")
def _saboteur(machine: Machine, installed: str) -> Iterator[None]:
    """In the daemon's own Python for the tests of this module."""
    site = machine.out(f"echo {SITE}")
    machine.write(f"{site}/sabotage.py", (HERE / "sabotage.py").read_text())
    machine.write(f"{site}/sabotage.pth", "import sabotage\n")
    yield
    machine.run(f"rm -r {site}/sabotage.p* {site}/__pycache__/sabotage.*", check=False)


@pytest.fixture(scope="module")
def place(seaweed: Seaweed) -> str:
    """A bucket for all tests of this module."""
    seaweed.create_bucket("watchdog")
    return "watchdog"


@pytest.fixture(scope="module")
def started(machine: Machine, seaweed: Seaweed, place: str, _saboteur: None) -> Service:
    """Runs under a watchdog of two seconds for all tests of this module: each leaves it well again."""
    service = fresh(machine)
    service.drop_in(SHORT)
    service.configure(seaweed.endpoint_url, place)
    service.start()
    return service


@pytest.fixture
def victim(started: Service) -> Service:
    """Sends files."""
    started.since = started.machine.mark()
    name = f"before-{uuid.uuid4().hex}"
    started.drop(name)
    started.wait_event("file.uploaded", path=name)
    return started


@pytest.fixture
def healing(started: Service) -> Service:
    """Under a watchdog that a busy machine does not wake: what heals must not be a restart."""
    started.since = started.machine.mark()
    started.drop_in(LONG)
    started.start()
    return started


def sabotage(victim: Service, order: str) -> int:
    """Returns the process it happened to."""
    victim.machine.write(ORDERS, order)
    pid = victim.pid
    victim.machine.run(f"kill -USR1 {pid}")
    return pid


@pytest.mark.parametrize(
    ("order", "component"),
    [
        ("gate hangs", "workers"),
        ("sending hangs", "upload-"),
        ("watch hangs", "watch"),
        ("settle hangs", "settle"),
        ("scan hangs", "scan"),
        ("retry hangs", "retry"),
        ("ledger hangs", "ledger"),
        ("ledger dies", "Ledger"),
        ("after hangs", "after"),
        ("after dies", "PostUpload"),
        ("retry dies", "RetryThread"),
        ("settle dies", "SettleThread"),
        ("scan dies", "Scan"),
    ],
)
def test_what_cannot_be_replaced_is_restarted(
    victim: Service, s3: S3Client, place: str, order: str, component: str
) -> None:
    """The daemon says which part it is and feeds the watchdog no more; the next process sends what was dropped."""
    restarts, name = int(victim.show("NRestarts")), f"meanwhile-{order}".replace(" ", "-")
    pid = sabotage(victim, order)
    victim.drop(name)

    unhealthy = victim.wait_event("daemon.unhealthy")
    assert component in unhealthy["S3SPOOL_COMPONENTS"]
    victim.wait_restarted(pid)
    # Not its line in the journal: the one that died may have sent it, and not come to saying so.
    eventually(lambda: name in victim.cli("list --state uploaded"), timeout_s=60, message="a receipt")
    assert name in keys(s3, place)
    assert int(victim.show("NRestarts")) == restarts + 1


def test_a_stopped_process_is_restarted(victim: Service, machine: Machine) -> None:
    """A daemon that does not run at all cannot say so: the watchdog notices."""
    pid = victim.pid
    machine.run("systemctl kill --kill-whom=main --signal=STOP s3spool")
    victim.drop("meanwhile-stopped")

    victim.wait_restarted(pid)

    victim.wait_event("file.uploaded", path="meanwhile-stopped")


def test_dead_workers_are_replaced(healing: Service, s3: S3Client, place: str) -> None:
    """Each has its line; the process goes on, and so do the files that died with them."""
    uploaded = healing.status()["files"]["uploaded"]
    pid = sabotage(healing, "workers dies")
    healing.drop_many(300)

    healing.wait_event("worker.replaced")
    healing.machine.run("s3spool wait --timeout 60")
    assert names(300) <= keys(s3, place)
    assert healing.pid == pid
    assert healing.status()["files"]["uploaded"] == uploaded + 300


def test_a_dead_watcher_is_replaced(healing: Service) -> None:
    """It says so, and what was dropped into the gap is found."""
    pid = sabotage(healing, "watch dies")
    healing.drop("gap")

    healing.wait_event("watch.lost")
    healing.wait_event("file.uploaded", path="gap")
    healing.drop("afterwards")
    healing.wait_event("file.uploaded", path="afterwards")
    assert healing.pid == pid


def test_a_folder_replaced_by_another_is_taken_up(healing: Service, machine: Machine) -> None:
    """As when a disk is mounted over it, or somebody has tidied up; what was in the old one is not sent again."""
    pid = healing.pid
    healing.drop("old")
    healing.wait_event("file.uploaded", path="old")
    machine.run(f"mv {healing.folder} {healing.folder}.old")
    healing.wait_event("watch.lost")
    assert healing.state() == ("active", "running")

    machine.run("systemd-tmpfiles --create s3spool.conf")
    healing.wait_event("watch.restored")
    healing.drop("new")
    healing.wait_event("file.uploaded", path="new")
    machine.run(f"ls {healing.folder}.old/old && rm -r {healing.folder}.old")
    assert healing.pid == pid
    assert machine.run(f"touch {healing.folder}/x && rm {healing.folder}/x", user=PERSON, check=False).returncode == 0
