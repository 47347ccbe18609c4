"""The notifier against a real socket."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3spool.systemd.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of the socket; NOTIFY_SOCKET names it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@s3spool-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield receiver


def heard(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def is_silent(manager: socket.socket) -> bool:
    manager.settimeout(0)
    try:
        manager.recv(4096)
    except BlockingIOError:
        return True
    finally:
        manager.settimeout(5)
    return False


def test_every_message_arrives_as_documented(manager: socket.socket) -> None:
    """The datagrams are those of sd_notify(3)."""
    notifier = Notifier()

    notifier.ready()
    assert heard(manager) == "READY=1"
    notifier.reloading()
    reloading, monotonic = heard(manager).split("\n")
    assert reloading == "RELOADING=1"
    assert monotonic.removeprefix("MONOTONIC_USEC=").isdigit()
    notifier.extend_timeout(1.5)
    assert heard(manager) == "EXTEND_TIMEOUT_USEC=1500000"
    notifier.watchdog()
    assert heard(manager) == "WATCHDOG=1"
    notifier.stopping()
    assert heard(manager) == "STOPPING=1"


def test_status_is_sent_only_when_it_changed(manager: socket.socket) -> None:
    """A status line that repeats itself wakes up systemd for nothing."""
    notifier = Notifier()

    notifier.status("3 waiting")
    notifier.status("3 waiting")
    notifier.status("2 waiting")

    assert heard(manager) == "STATUS=3 waiting"
    assert heard(manager) == "STATUS=2 waiting"
    assert is_silent(manager)


def test_file_name_in_the_status_cannot_forge_a_message(manager: socket.socket) -> None:
    """A newline ends the assignment, so a name must not bring its own, nor bytes that are not UTF-8."""
    Notifier().status("sending a\nMAINPID=1\udcff")

    assert heard(manager) == r"STATUS=sending a\nMAINPID=1\xff"


def test_manager_that_is_gone_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that cannot report goes on uploading."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))

    Notifier().ready()


def test_without_systemd_nothing_is_sent() -> None:
    """In the foreground the notifier does nothing."""
    notifier = Notifier({})

    notifier.ready()
    notifier.status("x")

    assert notifier.watchdog_interval_s is None


def test_a_manager_that_does_not_read_blocks_nothing(manager: socket.socket) -> None:
    """A full queue drops messages at once; READY=1 and the latest status arrive once there is room."""
    notifier = Notifier()
    for number in range(1000):  # the kernel queues ten or so
        notifier.status(str(number))
    notifier.ready()
    while not is_silent(manager):
        pass

    notifier.status("999")

    assert heard(manager) == "READY=1\nSTATUS=999"
    notifier.watchdog()
    assert heard(manager) == "WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_is_fed_twice_as_often_as_asked(environ: dict[str, str], interval_s: float | None) -> None:
    """Half of the time-out leaves room for a slow moment; another process's watchdog is not ours."""
    assert Notifier(environ).watchdog_interval_s == interval_s
