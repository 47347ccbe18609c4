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
from support.waiting import eventually


def test_a_walk_that_hangs_is_left_alone_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan beats while it waits, goes on, and begins no second walk of the same mount."""
    monkeypatch.setattr(mount_scan, "WAIT_S", 0.2)
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    slow, go_on = SlowDirectories(), threading.Event()
    slow.refresh(Path("/data"))
    walks: list[str] = []
    beats: list[str] = []

    def walk(mount: str, stopped: Callable[[], bool]) -> None:
        walks.append(mount)
        assert go_on.wait(60)

    scans = MountScans(slow, walk)
    assert scans.start() == {"mount/"}
    scans.wait(lambda: beats.append("beat"))

    assert beats
    assert scans.hanging() == ["mount/"]
    scans.start()
    assert walks == ["mount/"]

    go_on.set()
    eventually(lambda: not scans.hanging())
    scans.start()
    eventually(lambda: walks == ["mount/"] * 2)
    scans.close()
