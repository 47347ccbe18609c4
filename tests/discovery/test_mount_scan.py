"""Other devices are walked on threads of their own: one that hangs is not waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from s3spool.discovery import mount_scan
from s3spool.discovery.mount_scan import MountScans
from s3spool.folder import slow_directories
from s3spool.folder.slow_directories import SlowDirectories
from support.failing import fails
from support.waiting import eventually


def test_a_walk_that_hangs_is_left_alone_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan beats while it waits, and goes on; what a later scan asks for is walked once that walk has ended."""
    monkeypatch.setattr(mount_scan, "WAIT_S", 0.2)
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    slow, go_on, again = SlowDirectories(), threading.Event(), threading.Event()
    slow.refresh(Path("/data"))
    walks: list[str] = []
    beats: list[str] = []

    def walk(mount: str, stopped: Callable[[], bool]) -> None:
        walks.append(mount)
        assert (go_on if len(walks) == 1 else again).wait(60)

    scans = MountScans(slow, walk)
    assert scans.start(1) == {"mount/"}
    scans.wait(lambda: beats.append("beat"))

    assert beats
    assert scans.hanging() == ["mount/"]
    for number in range(2, 5):
        scans.start(number)
    scans.start(5, again=False)
    assert walks == ["mount/"]
    assert scans.ended(5) == 0, "the first walk lasts still"

    go_on.set()
    eventually(lambda: len(walks) == 2)
    assert scans.ended(5) == 1, "nor has that of the scans 2, 3 and 4"
    again.set()
    eventually(lambda: scans.ended(5) == 5)
    assert walks == ["mount/"] * 2
    scans.start(6)
    eventually(lambda: scans.ended(6) == 6)
    assert walks == ["mount/"] * 3
    scans.close()


def test_a_mount_that_has_gone_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a scan does not wait for the hanging walk of what is no longer in the folder."""
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    slow, go_on = SlowDirectories(), threading.Event()
    slow.refresh(Path("/data"))

    def walk(mount: str, stopped: Callable[[], bool]) -> None:
        assert go_on.wait(60)

    scans = MountScans(slow, walk)
    scans.start(1)
    assert scans.ended(1) == 0

    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ())
    slow.refresh(Path("/data"))

    assert scans.ended(1) == 1
    go_on.set()
    scans.close()


def test_a_mount_without_a_thread_is_not_walked_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread was left: nobody may take that scan for ended, and the next one walks the mount."""
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    slow, walks = SlowDirectories(), list[str]()
    slow.refresh(Path("/data"))
    scans = MountScans(slow, lambda mount, _: walks.append(mount))
    with monkeypatch.context() as scarce:
        fails(scarce, threading.Thread, "start", RuntimeError("can't start new thread"))
        scans.start(1)
    assert scans.ended(1) == 0

    scans.start(2)

    eventually(lambda: scans.ended(2) == 2)
    assert walks == ["mount/"]
    scans.close()


def test_a_walk_of_a_mount_that_breaks_off_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody expected ends the thread; the next scan starts another one."""
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    slow, walks = SlowDirectories(), list[str]()
    slow.refresh(Path("/data"))

    def walk(mount: str, stopped: Callable[[], bool]) -> None:
        walks.append(mount)
        if len(walks) == 1:
            raise MemoryError

    scans = MountScans(slow, walk)
    scans.start(1)
    scans.wait(lambda: None)

    scans.start(2)

    eventually(lambda: scans.ended(2) == 2)
    assert walks == ["mount/"] * 2
    scans.close()
