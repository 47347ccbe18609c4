"""Every way in which a file arrives: its bytes end up in the bucket, once, and the watch alone has found it."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from s3spool.demo.seaweed import Seaweed
from support.daemon import Daemon, Make
from support.faults import HoldUntil
from support.faulty import FaultyS3
from support.objects import content_of, folder_files, objects
from support.s3_messages import md5_hex
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


pytestmark = pytest.mark.integration


@dataclass
class Scene:
    """Where a file arrives: a directory in the watched folder, and one outside of it on the same file system."""

    daemon: Daemon
    folder: Path
    outside: Path

    def path(self, name: str) -> str:
        """As the log and the bucket call it."""
        return str((self.folder / name).relative_to(self.daemon.folder))

    def sent(self, name: str) -> int:
        return len(self.daemon.events("file.uploaded", path=self.path(name)))

    def wait_sent(self, name: str, count: int = 1) -> None:
        eventually(lambda: self.sent(name) >= count, message=f"{name} sent {count} times")


Arrival = Callable[[Scene], None]


def written_in_place(scene: Scene) -> None:
    (scene.folder / "a.bin").write_bytes(content_of(1_000_000))


def written_slowly(scene: Scene) -> None:
    """Each pause lasts until a file that was dropped in it is sent: longer than settle_s."""
    with (scene.folder / "slow.bin").open("wb", buffering=0) as writer:
        for pause in range(3):
            writer.write(content_of(1000, pause))
            (scene.folder / f"witness {pause}").write_bytes(b"settled")
            scene.wait_sent(f"witness {pause}")
            assert scene.sent("slow.bin") == 0, "taken while its writer had it open"


def moved_in(scene: Scene) -> None:
    (scene.outside / "in.bin").write_bytes(content_of(5000, 1))
    (scene.outside / "in.bin").rename(scene.folder / "in.bin")


def renamed_from_an_excluded_name(scene: Scene) -> None:
    (scene.folder / "x.part").write_bytes(content_of(5000, 2))
    (scene.folder / "x.part").rename(scene.folder / "x")


def renamed_directory_from_an_excluded_name(scene: Scene) -> None:
    (scene.folder / ".incoming/deep").mkdir(parents=True)
    (scene.folder / ".incoming/deep/x").write_bytes(content_of(500, 3))
    (scene.folder / ".incoming").rename(scene.folder / "incoming")


def hard_linked_in(scene: Scene) -> None:
    (scene.outside / "linked").write_bytes(content_of(5000, 4))
    (scene.folder / "linked").hardlink_to(scene.outside / "linked")


def a_tree_moved_in(scene: Scene) -> None:
    for number, name in enumerate(("one", "b/two", "b/c/three", "b/c/four")):
        file = scene.outside / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content_of(2000, number))
    (scene.outside / "tree").rename(scene.folder / "tree")


def directories_and_a_file_at_once(scene: Scene) -> None:
    (scene.folder / "a/b/c").mkdir(parents=True)
    (scene.folder / "a/b/c/file").write_bytes(b"deep")


def many_in_a_new_directory(scene: Scene) -> None:
    new = scene.folder / "new"
    new.mkdir()
    for number in range(600):
        (new / f"{number:03d}").write_bytes(b"%d" % number)


def without_a_byte(scene: Scene) -> None:
    (scene.folder / "empty").touch()


def one_name_twice(scene: Scene) -> None:
    scene.daemon.drop(scene.path("again"), b"first")
    scene.wait_sent("again")
    scene.daemon.drop(scene.path("again"), b"other")


ARRIVALS: list[Arrival] = [
    written_in_place,
    written_slowly,
    moved_in,
    renamed_from_an_excluded_name,
    renamed_directory_from_an_excluded_name,
    hard_linked_in,
    a_tree_moved_in,
    directories_and_a_file_at_once,
    many_in_a_new_directory,
    without_a_byte,
    one_name_twice,
]
WHILE_DOWN: list[Arrival] = [written_in_place, hard_linked_in, a_tree_moved_in, many_in_a_new_directory, without_a_byte]


# Scans are an hour apart: what the daemon finds, the watch has told it.
RARE_SCANS: dict[str, Any] = {"watch": {"settle_s": 0.2, "rescan_s": 3600}, "upload": {"workers": 8}}


def finish(daemon: Daemon) -> None:
    """The last file is known when it is sent, and so are all before it; then they are waited for."""
    daemon.drop("last", b"last")
    daemon.wait_event("file.uploaded", path="last")

    def left() -> int:
        files = json.loads(daemon.cli("status", "--json").stdout)["files"]
        return int(files["settling"] + files["queued"] + files["uploading"] + files["waiting"])

    eventually(lambda: left() == 0)
    assert daemon.stop() == 0
    scans = [event["reason"] for event in daemon.events("scan.finished")]
    assert set(scans) == {"start"}, "a scan has helped the watch"


def ours(folder: Path) -> dict[str, bytes]:
    """What has to be in the bucket: the regular files that no exclude holds back."""
    files = folder_files(folder)
    return {path: content for path, content in files.items() if not path.endswith(".part")}


def arrive_all(daemon: Daemon, arrivals: list[Arrival], home: Path) -> Counter[str]:
    """Each in a directory of its own; how often each path has to be sent."""
    for arrive in arrivals:
        scene = Scene(daemon, daemon.folder / arrive.__name__, home / f"outside {arrive.__name__}")
        scene.folder.mkdir()
        scene.outside.mkdir()
        arrive(scene)
    sends = Counter(dict.fromkeys([*ours(daemon.folder), "last"], 1))
    return sends + Counter(["one_name_twice/again"] * (one_name_twice in arrivals))


@pytest.mark.parametrize("when", ["running", "before", pytest.param("stopped", marks=pytest.mark.slow), "killed"])
def test_each_arrival_is_sent_once(when: str, make: Make, tmp_path: Path, faulty: FaultyS3) -> None:
    """However it came, and whenever: the object is the file, after one request and one line in the log."""
    daemon = make(**RARE_SCANS)

    if when != "before":
        daemon.start_scanned()
    if when in {"stopped", "killed"}:
        daemon.drop("early", b"early")
        eventually(lambda: daemon.receipts() == 1)
        daemon.stop() if when == "stopped" else daemon.kill()
    once = arrive_all(daemon, ARRIVALS if when == "running" else WHILE_DOWN, tmp_path)
    if when != "running":
        daemon.start_scanned()
    finish(daemon)

    assert faulty.contents() == ours(daemon.folder)
    assert Counter(request.key for request in faulty.requests if request.method == "PUT") == once
    # A log line that was in memory when the process was killed is gone; the request was not repeated for that.
    logged = Counter(event["path"] for event in daemon.events("file.uploaded")) | Counter(
        ["early"] * (when == "killed")
    )
    assert logged == once


def test_all_arrivals_reach_a_real_s3_server(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """The same ways, and a server that checks what it is sent."""
    daemon = Daemon(tmp_path, seaweed, bucket=bucket, **RARE_SCANS)

    with daemon.start_scanned():
        once = arrive_all(daemon, ARRIVALS, tmp_path)
        finish(daemon)

    assert objects(s3, bucket) == ours(daemon.folder)
    assert Counter(event["path"] for event in daemon.events("file.uploaded")) == once


@pytest.mark.parametrize(
    ("size", "how", "action"),
    [
        pytest.param(10, "in place", "keep", id="small-in place-keep"),
        pytest.param(10, "replaced", "delete", id="small-replaced-delete"),
        pytest.param(300_000, "in place", "delete", id="streamed-in place-delete"),
        pytest.param(300_000, "replaced", "keep", id="streamed-replaced-keep"),
    ],
)
def test_what_is_rewritten_in_flight_is_sent_again(
    size: int, how: str, action: str, make: Make, faulty: FaultyS3
) -> None:
    """The last content wins, and the answer for the one before it removes nothing."""
    held = HoldUntil()
    faulty.script(held, match="^PUT busy")
    daemon = make(**RARE_SCANS, after={"action": action})

    daemon.start_scanned()
    busy = daemon.drop("busy", content_of(size, 1))
    eventually(lambda: faulty.in_flight == 1)
    if how == "in place":
        busy.write_bytes(content_of(size, 2))
    else:
        daemon.drop("busy", content_of(size, 2))
    held.release()
    eventually(lambda: faulty.count("^PUT busy") == 2)
    finish(daemon)

    assert faulty.contents()["busy"] == content_of(size, 2)
    assert faulty.count("^PUT busy") == 2
    assert busy.exists() == (action == "keep")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_thousand_files_at_once(seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """More than the kernel's queue holds: what overflows there, the scan that follows finds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as home:  # noqa: S108
        with Daemon(Path(home), seaweed, bucket=bucket, watch={"rescan_s": 3600}).start_scanned() as daemon:
            md5 = {}
            for number in range(20_000):
                name, content = f"{number % 20:02d}/{number:05d}", b"%0100d" % number
                if number < 20:
                    (daemon.folder / name).parent.mkdir()
                (daemon.folder / name).write_bytes(content)
                md5[name] = f'"{md5_hex(content)}"'
            eventually(lambda: daemon.receipts() == 20_000, timeout_s=90, message="20,000 receipts")
            assert daemon.stop() == 0

        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        assert {entry["Key"]: entry["ETag"] for page in pages for entry in page["Contents"]} == md5
        assert Counter(event["path"] for event in daemon.events("file.uploaded")) == Counter(dict.fromkeys(md5, 1))
