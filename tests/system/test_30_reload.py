"""A changed configuration, while the daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from s3spool.systemd.units import NOTIFY_RELOAD
from support.waiting import eventually
from system.conftest import BUCKET

if TYPE_CHECKING:
    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service


@pytest.fixture
def running(service: Service, faulty: FaultyS3) -> Service:
    service.configure(faulty.endpoint_url, BUCKET)
    service.start()
    return service


def test_what_can_change_changes_live(running: Service, faulty: FaultyS3, machine: Machine) -> None:
    """Patterns and the log level: the same process goes by the new ones."""
    pid, mark = running.pid, machine.mark()
    running.drop("held.raw")
    running.wait_event("file.uploaded", path="held.raw")
    assert not running.events("file.skipped")

    running.change(watch={"exclude": ["*.raw", ".*"]}, log={"level": "debug"})
    running.systemctl("reload")
    reloaded = running.wait_event("daemon.reloaded", after=mark)
    running.drop("not-sent.raw")
    running.drop("sent.txt")
    running.wait_event("file.uploaded", path="sent.txt")

    assert {"log.level", "watch.exclude"} <= set(reloaded["S3SPOOL_CHANGED"].strip("[]").replace('"', "").split(","))
    assert running.pid == pid
    assert "not-sent.raw" not in faulty.contents()
    assert machine.journal("PRIORITY=7", after=mark)


def test_systemctl_reload_waits_where_systemd_can(running: Service, machine: Machine) -> None:
    """From systemd 253 on the unit is Type=notify-reload; before, `systemctl reload` sends the signal and returns."""
    waits = int(machine.out("systemctl --version").split()[1]) >= NOTIFY_RELOAD
    assert running.show("Type") == ("notify-reload" if waits else "notify")
    mark = machine.mark()
    machine.run("systemctl kill --kill-whom=main --signal=STOP s3spool")
    reload = machine.spawn("systemctl reload s3spool")
    if waits:
        eventually(lambda: running.state() == ("reloading", "reload-signal"), timeout_s=60, message="the signal")
        assert reload.poll() is None
    else:
        reload.wait(60)

    machine.run("systemctl kill --kill-whom=main --signal=CONT s3spool")

    reload.communicate()
    assert reload.returncode == 0
    running.wait_event("daemon.reloaded", after=mark)
    eventually(lambda: running.state() == ("active", "running"), timeout_s=20)


def test_what_cannot_change_is_refused_by_name(running: Service, faulty: FaultyS3, machine: Machine) -> None:
    """One line says which key it is and what to do; uploads go where they went before."""
    mark = machine.mark()
    running.change(destination={"prefix": "elsewhere/"})

    running.systemctl("reload")

    reloaded = running.wait_event("daemon.reloaded", after=mark)
    assert "a restart is needed for destination.prefix" in reloaded["MESSAGE"]
    assert reloaded["PRIORITY"] == "4"
    running.drop("after.txt")
    running.wait_event("file.uploaded", path="after.txt")
    assert "after.txt" in faulty.contents()


@pytest.mark.parametrize("broken", ["[watch\nexclude = 1", '[watch]\nexcluded = ["x"]', "[upload]\nworkers = 0"])
def test_a_broken_file_changes_nothing(running: Service, faulty: FaultyS3, machine: Machine, broken: str) -> None:
    """The daemon says in one line what is wrong and where, and goes on as it was."""
    pid, mark = running.pid, machine.mark()
    machine.write(running.config_file, broken)

    running.systemctl("reload")

    refused = running.wait_event("config.refused", after=mark)
    assert refused["PRIORITY"] == "3"
    assert "\n" not in refused["MESSAGE"]
    assert len(running.events("config.refused", after=mark)) == 1
    running.drop("after.txt")
    running.wait_event("file.uploaded", path="after.txt")
    assert (running.pid, running.state()) == (pid, ("active", "running"))


def test_systemd_sees_the_reload(running: Service, machine: Machine) -> None:
    """RELOADING=1 and READY=1 reach systemd also where nobody said `systemctl reload`."""
    monitor = machine.spawn(
        "busctl monitor org.freedesktop.systemd1 --match=type=signal,interface=org.freedesktop.DBus.Properties"
    )
    try:
        assert monitor.stdout is not None
        while "Monitoring" not in monitor.stdout.readline():
            assert monitor.poll() is None
        mark = machine.mark()
        machine.run("systemctl kill --kill-whom=main --signal=HUP s3spool")
        running.wait_event("daemon.reloaded", after=mark)
        eventually(lambda: running.state() == ("active", "running"), timeout_s=20)
    finally:
        machine.run("pkill -x busctl", check=False)
    heard, _ = monitor.communicate()
    assert 'STRING "reloading"' in heard
