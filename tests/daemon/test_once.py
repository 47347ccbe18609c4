"""The end of `s3spool run --once`."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from s3spool.daemon.file_states import LOOKS, FileStates, OnceDone
from s3spool.discovery import mount_scan
from s3spool.discovery.directory_watches import DirectoryWatches
from s3spool.errors import LedgerError
from s3spool.folder import slow_directories
from support.house import Build
from support.lines import Lines
from support.waiting import eventually


def test_files_without_room_are_not_forgotten(build: Build) -> None:
    """A scan is wanted for them: until it has come, the run has not ended, however quiet the queue is."""
    house = build(size=5, workers=8)
    house.scan.use(cast("DirectoryWatches", _Watches()))  # else scans come every second anyway
    house.drop_many(40)
    house.components.slow.note_slow_file("slow", 2.0)
    house.start()
    house.start(house.scan)
    house.scan.want("start")
    once = OnceDone(FileStates(house.components))

    eventually(once.look)

    assert once.left == 0
    assert len(house.bucket.objects) == 40


def test_the_walk_of_a_mount_is_waited_for(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `run --once` and by `wait`, however long it takes: what it has not found yet is not sent yet."""
    monkeypatch.setattr(mount_scan, "WAIT_S", 0.0)
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    house = build(workers=8)
    go_on, walk = threading.Event(), house.scan.mounts._walk
    monkeypatch.setattr(house.scan.mounts, "_walk", lambda *args: walk(*args) if go_on.wait(60) else None)
    house.scan.use(cast("DirectoryWatches", _Watches()))
    names = [f"mount/{number}" for number in range(1000)]
    for name in names:
        house.drop(name)
    house.drop("good")
    house.start()
    house.start(house.scan)
    house.scan.want("start")
    files = FileStates(house.components)
    once = OnceDone(files)
    house.wait_sent("good")
    eventually(lambda: house.scan.finished == 1)

    assert [once.look() for _ in range(LOOKS + 1)] == [False] * (LOOKS + 1)
    assert files.progress()["scan"] == 0

    go_on.set()
    eventually(once.look)
    assert files.progress() == {"scan": house.scan.started, "left": 0, "parked": 0, "folder_there": True}
    assert len(house.bucket.objects) == len(names) + 1


@pytest.mark.parametrize("error", [LedgerError("database is locked"), OSError(errno.EMFILE, "no descriptor")])
def test_a_walk_of_a_mount_that_failed_has_not_ended(
    build: Build, monkeypatch: pytest.MonkeyPatch, error: Exception, lines: Lines
) -> None:
    """It is begun again until it has seen all: what it has not found may be complete, and is not sent."""
    monkeypatch.setattr(mount_scan, "ERROR_S", 0.01)
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    house = build(workers=8)
    house.scan.use(cast("DirectoryWatches", _Watches()))
    listed, failures = house.scan._files.listed, iter(range(3))

    def failing(directory: str, *args: Any) -> Iterator[Any]:
        if directory == "mount/late/" and next(failures, None) is not None:
            raise error
        yield from listed(directory, *args)

    monkeypatch.setattr(house.scan._files, "listed", failing)
    for number in range(100):
        house.drop(f"mount/{number}")
        house.drop(f"mount/late/{number}")
    house.start()
    house.start(house.scan)
    house.scan.want("start")

    eventually(OnceDone(FileStates(house.components)).look)

    assert len(house.bucket.objects) == 200
    assert len(lines.named("scan.failed")) == 1


def test_removals_are_not_waited_for(build: Build) -> None:
    """A sent file that cannot be removed now is sent: the scan that looks for it again is no reason to go on."""
    house = build(rescan_s=3600.0)
    house.scan.use(cast("DirectoryWatches", _Watches()))
    house.start()
    house.start(house.scan)
    house.scan.want("start")
    eventually(lambda: house.scan.finished == 1)
    house.scan._last_duration_s = 3600.0

    house.scan.want("removals")

    once = OnceDone(FileStates(house.components))
    eventually(once.look)
    assert house.scan.reasons == {"removals"}


class _Watches:
    """Enough of them; they report nothing."""

    exhausted = ""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None
