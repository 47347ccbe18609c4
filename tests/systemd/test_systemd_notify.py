"""The notifier against a real socket, through systemd-python and without it."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from s3spool.systemd.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["systemd-python", "without"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to speak to systemd have to say the same."""
    if request.param == "without":
        monkeypatch.setitem(sys.modules, "systemd", None)
        monkeypatch.setitem(sys.modules, "systemd.daemon", None)
    else:
        pytest.importorskip("systemd.daemon", reason="systemd-python is an extra")
    return str(request.param)


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
    manager.setblocking(False)
    try:
        manager.recv(4096)
    except BlockingIOError:
        return True
    return False


def test_every_message_arrives_as_documented(manager: socket.socket, library: str) -> None:
    """The datagrams are those of sd_notify(3), with and without the library."""
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

    assert notifier.missing is (library == "without")


@pytest.mark.usefixtures("library")
def test_status_is_sent_only_when_it_changed(manager: socket.socket) -> None:
    """A status line that repeats itself wakes up systemd for nothing."""
    notifier = Notifier()

    notifier.status("3 waiting")
    notifier.status("3 waiting")
    notifier.status("2 waiting")

    assert heard(manager) == "STATUS=3 waiting"
    assert heard(manager) == "STATUS=2 waiting"
    assert is_silent(manager)


@pytest.mark.usefixtures("library")
def test_file_name_in_the_status_cannot_forge_a_message(manager: socket.socket) -> None:
    """A newline ends the assignment, so a name must not bring its own, nor bytes that are not UTF-8."""
    Notifier().status("sending a\nMAINPID=1\udcff")

    assert heard(manager) == r"STATUS=sending a\nMAINPID=1\xff"


@pytest.mark.usefixtures("library")
def test_manager_that_is_gone_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that cannot report goes on uploading."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))

    Notifier().ready()


def test_without_systemd_nothing_is_said_or_missed() -> None:
    """In the foreground the notifier is a null object, and no library is missed."""
    notifier = Notifier({})

    notifier.ready()
    notifier.status("x")

    assert notifier.missing is False
    assert notifier.watchdog_interval_s is None


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
