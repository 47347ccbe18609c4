"""The end of `s3spool run --once`."""

from __future__ import annotations

from typing import Any, cast

from s3spool.daemon.file_states import FileStates, OnceDone
from s3spool.discovery.directory_watches import DirectoryWatches
from support.house import Build
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


class _Watches:
    """Enough of them; they report nothing."""

    exhausted = ""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None
