"""A part of the daemon dies or hangs: it heals, or systemd starts another. Never a dead service that looks alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.waiting import eventually
from system.conftest import BUCKET, HERE
from system.sabotage import ORDERS
from system.service import PERSON, names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service

SITE = "/usr/lib/s3spool/lib/python3.*/site-packages"
SHORT = "[Service]\nWatchdogSec=2\nRestartSec=100ms\n"


@pytest.fixture(scope="module")
def _saboteur(machine: Machine, installed: str) -> Iterator[None]:
    """In the daemon's own Python for the tests of this module."""
    site = machine.out(f"echo {SITE}")
    machine.write(f"{site}/sabotage.py", (HERE / "sabotage.py").read_text())
    machine.write(f"{site}/sabotage.pth", "import sabotage\n")
    yield
    machine.run(f"rm -r {site}/sabotage.p* {site}/__pycache__/sabotage.*", check=False)


@pytest.fixture
def victim(service: Service, faulty: FaultyS3, _saboteur: None) -> Service:
    """Runs under a watchdog of two seconds, and sends files."""
    service.drop_in(SHORT)
    service.configure(faulty.endpoint_url, BUCKET)
    service.start()
    service.drop("before")
    service.wait_event("file.uploaded", path="before")
    return service


def sabotage(victim: Service, order: str) -> int:
    """Returns the process it happened to."""
    victim.machine.write(ORDERS, order)
    pid = victim.pid
    victim.machine.run(f"kill -USR1 {pid}")
    return pid


@pytest.mark.parametrize(
    ("order", "room"),
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
        ("after dies", "After"),
        ("retry dies", "RetryThread"),
        ("settle dies", "SettleThread"),
        ("scan dies", "Scan"),
    ],
)
def test_what_cannot_be_replaced_is_restarted(victim: Service, faulty: FaultyS3, order: str, room: str) -> None:
    """The daemon says which part it is and feeds the watchdog no more; the next process sends what was dropped."""
    pid = sabotage(victim, order)
    victim.drop("meanwhile")

    unsound = victim.wait_event("daemon.unsound")
    assert room in unsound["S3SPOOL_ROOMS"]
    victim.wait_restarted(pid)
    # Not its line in the journal: the one that died may have sent it, and not come to saying so.
    eventually(lambda: "meanwhile" in victim.cli("list --state uploaded"), timeout_s=60, message="a receipt")
    assert "meanwhile" in faulty.contents()
    assert victim.show("NRestarts") == "1"


def test_a_stopped_process_is_restarted(victim: Service, machine: Machine) -> None:
    """A daemon that does not run at all cannot say so: the watchdog notices."""
    pid = victim.pid
    machine.run(f"kill -STOP {pid}")
    victim.drop("meanwhile")

    victim.wait_restarted(pid)

    victim.wait_event("file.uploaded", path="meanwhile")


def test_dead_workers_are_replaced(victim: Service, faulty: FaultyS3) -> None:
    """Each has its line; the process goes on, and so do the files that died with them."""
    pid = sabotage(victim, "workers dies")
    victim.drop_many(300)

    victim.wait_event("worker.replaced")
    eventually(lambda: names(300) <= set(faulty.contents()), timeout_s=60, message="300 files in S3")
    assert victim.pid == pid
    assert victim.status()["files"]["uploaded"] == 301


def test_a_dead_watcher_is_replaced(victim: Service, faulty: FaultyS3) -> None:
    """It says so, and what was dropped into the gap is found."""
    pid = sabotage(victim, "watch dies")
    victim.drop("gap")

    victim.wait_event("watch.lost")
    victim.wait_event("file.uploaded", path="gap")
    victim.drop("afterwards")
    victim.wait_event("file.uploaded", path="afterwards")
    assert victim.pid == pid


def test_a_folder_replaced_by_another_is_taken_up(victim: Service, machine: Machine) -> None:
    """As when a disk is mounted over it, or somebody has tidied up; what was in the old one is not sent again."""
    pid = victim.pid
    machine.run(f"mv {victim.folder} {victim.folder}.old")
    victim.wait_event("watch.lost")
    assert victim.state() == ("active", "running")

    machine.run("systemd-tmpfiles --create s3spool.conf")
    victim.wait_event("watch.restored")
    victim.drop("new")
    victim.wait_event("file.uploaded", path="new")
    machine.run(f"ls {victim.folder}.old/before && rm -r {victim.folder}.old", user="root")
    assert victim.pid == pid
    assert machine.run(f"touch {victim.folder}/x && rm {victim.folder}/x", user=PERSON, check=False).returncode == 0
