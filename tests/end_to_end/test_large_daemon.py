"""Large files through the real daemon: every size, cut off and resumed, faults at each step, nothing left behind."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s3spool.control.protocol import ask
from s3spool.demo.seaweed import Seaweed
from s3spool.ledger.reader import Reader
from support.daemon import Daemon
from support.faults import HoldUntil, LoseAnswer, Status, WrongChecksum, WrongEtag
from support.faulty import FaultyS3
from support.objects import content_of, objects
from support.s3_messages import Request
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


PART = 5 * 1024 * 1024  # S3's least
UPLOAD = {"multipart_threshold": PART, "part_size": PART, "workers": 4}


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def daemon(tmp_path: Path, server: FaultyS3) -> Iterator[Daemon]:
    """Not yet started."""
    daemon = Daemon(tmp_path, bucket=server.bucket, environment=server.environment(), upload=UPLOAD)
    yield daemon
    if daemon.alive:
        daemon.kill()


def parts_sent(server: FaultyS3) -> list[Request]:
    return [request for request in server.requests.copy() if request.method == "PUT" and "partNumber" in request.line]


def nothing_is_left(daemon: Daemon, server: FaultyS3) -> None:
    """No upload at the server, none in the ledger."""
    eventually(lambda: server.store.uploads == {}, message="no upload at the server")
    with Reader(daemon.state_directory / "ledger.sqlite3") as reader:
        eventually(lambda: reader.multiparts() == [], message="no upload in the ledger")


def test_every_size_arrives_as_it_is(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """Around the threshold and the part size, zeros, holes: byte for byte, into a server that verifies checksums."""
    sizes = [PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 7 * PART - 1]
    dropped = {f"{size}": content_of(size, seed=size) for size in sizes} | {"zeros": bytes(3 * PART)}
    with Daemon(tmp_path, bucket=bucket, environment=seaweed.environment(), upload=UPLOAD) as daemon:
        daemon.wait_ready()
        for name, content in dropped.items():
            daemon.drop(name, content)
        hole = tmp_path / "hole"
        with hole.open("wb") as file:
            file.truncate(4 * PART + 3)
            file.seek(2 * PART)
            file.write(b"in the middle")
        dropped["hole"] = hole.read_bytes()
        hole.rename(daemon.folder / "hole")
        daemon.wait_uploaded(len(dropped), timeout_s=60)

        assert objects(s3, bucket) == dropped
        started = {event["path"]: event["parts"] for event in daemon.events("multipart.started")}
    assert started == {name: -(-len(body) // PART) for name, body in dropped.items() if len(body) > PART}
    assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_killed_five_times_it_sends_nothing_twice(daemon: Daemon, server: FaultyS3) -> None:
    """At most the parts in flight at each kill are sent again; one upload from beginning to end."""
    content = content_of(20 * PART)
    daemon.drop("big", content)
    in_flight = 0
    for kill in range(5):
        stop = len(parts_sent(server)) + 2
        passed = functools.partial(lambda stop, *_: len(parts_sent(server)) > stop, stop)
        server.script(HoldUntil(), times=None, match=passed)
        daemon.start()
        eventually(passed, timeout_s=30, message=f"parts held at kill {kill}")
        in_flight += UPLOAD["workers"]
        daemon.kill()
        server.behave()
    daemon.start()
    daemon.wait_uploaded(1, timeout_s=60)

    assert server.contents() == {"big": content}
    sent_bytes = sum(len(request.body) for request in parts_sent(server))
    assert sent_bytes <= len(content) + in_flight * PART
    assert server.count("POST big.uploads") == 1
    assert len(daemon.events("multipart.resumed")) >= 1
    nothing_is_left(daemon, server)


def test_a_stop_keeps_the_upload_for_the_next_start(daemon: Daemon, server: FaultyS3) -> None:
    """The drain is over before the file is: what S3 has stays there."""
    content = content_of(6 * PART)
    daemon.config["service"]["drain_s"] = 0.2
    server.script(HoldUntil(), times=None, match=lambda _: len(parts_sent(server)) > 3)
    daemon.drop("big", content)
    daemon.start()
    eventually(lambda: len(parts_sent(server)) > 4, timeout_s=20)

    assert daemon.stop() == 0
    assert len(server.store.uploads) == 1
    server.behave()
    daemon.start()
    daemon.wait_uploaded(1)

    assert server.contents() == {"big": content}
    assert server.count("POST big.uploads") == 1
    nothing_is_left(daemon, server)


FAULTS = [
    (Status(code=500), r"PUT {key}\?.*partNumber"),
    (LoseAnswer(), r"PUT {key}\?.*partNumber"),
    (WrongEtag(), r"PUT {key}\?.*partNumber"),
    (WrongChecksum(), r"PUT {key}\?.*partNumber"),
    (Status(code=404, error_code="NoSuchUpload"), r"PUT {key}\?.*partNumber"),
    (Status(code=500), r"POST {key}\?uploads"),
    (Status(code=500), r"POST {key}\?.*uploadId"),
    (LoseAnswer(), r"POST {key}\?.*uploadId"),
    (Status(code=404, error_code="NoSuchUpload"), r"POST {key}\?.*uploadId"),
    (Status(code=503, error_code="SlowDown"), r"POST {key}\?.*uploadId"),
]


def test_a_fault_at_each_step(daemon: Daemon, server: FaultyS3) -> None:
    """Side by side: each ends with the right bytes, one success, and nothing left behind."""
    files = {f"big{number}": content_of(2 * PART + 1, seed=number) for number in range(len(FAULTS))}
    for key, (fault, match) in zip(files, FAULTS, strict=True):
        server.script(fault, times=2, match=match.format(key=key))
    daemon.start().wait_ready()
    for key, content in files.items():
        daemon.drop(key, content)

    daemon.wait_uploaded(len(files), timeout_s=60)

    assert server.contents() == files
    assert sorted(line["path"] for line in daemon.events("file.uploaded")) == sorted(files)
    assert daemon.events("file.parked") == []
    assert not [script for script in server._scripts if script.times_left]
    nothing_is_left(daemon, server)


def test_a_lost_answer_to_complete_is_no_second_upload(daemon: Daemon, server: FaultyS3) -> None:
    """Complete had worked, nobody said so: a HEAD shows it, and no part is sent again."""
    content = content_of(3 * PART)
    server.script(LoseAnswer(), times=None, match="POST big.*uploadId")
    daemon.start().wait_ready()
    daemon.drop("big", content)

    daemon.wait_uploaded(1, timeout_s=60)

    assert server.contents() == {"big": content}
    assert len(parts_sent(server)) == 3
    nothing_is_left(daemon, server)


@pytest.mark.parametrize("ours", [True, False])
def test_overwrite_never_holds_for_parts(daemon: Daemon, server: FaultyS3, ours: bool) -> None:
    """Another object is never replaced and parks the file; one with our content counts as success."""
    daemon.config["destination"]["overwrite"] = "never"
    content, there = content_of(3 * PART), content_of(3 * PART if ours else 100)
    server.client().put_object(Bucket=server.bucket, Key="big", Body=there, ChecksumAlgorithm="CRC64NVME")
    daemon.start().wait_ready()
    daemon.drop("big", content)

    event = "file.uploaded" if ours else "file.parked"
    daemon.wait_event(event, path="big", timeout_s=60)

    assert server.contents() == {"big": there}
    nothing_is_left(daemon, server)


def test_what_s3_cannot_take_is_parked(daemon: Daemon, server: FaultyS3) -> None:
    """One byte above 5 TiB, which a sparse file has at no cost: said at once, and nothing is begun."""
    daemon.start().wait_ready()
    hole = daemon.home / "hole"
    with hole.open("wb") as file:
        file.truncate(5 * 1024**4 + 1)

    hole.rename(daemon.folder / "big")

    parked = daemon.wait_event("file.parked", path="big", timeout_s=20)
    assert parked["error_code"] == "EntityTooLarge"
    assert "5 TiB" in parked["error"]
    assert server.count() == 0
    daemon.drop("small")
    daemon.wait_uploaded(1)


def test_what_s3_cannot_take_says_nothing_of_a_paused_destination(daemon: Daemon, server: FaultyS3) -> None:
    """It may well be the probe: it is parked without asking S3, and whether that works again another file finds out."""
    server.script(Status(code=403, error_code="AccessDenied"), times=None)
    daemon.start().wait_ready()
    daemon.drop("small")
    daemon.wait_event("destination.paused", timeout_s=20)
    hole = daemon.home / "hole"
    with hole.open("wb") as file:
        file.truncate(5 * 1024**4 + 1)

    hole.rename(daemon.folder / "big")

    daemon.wait_event("file.parked", path="big", timeout_s=30)
    refused = server.count("PUT small")
    eventually(lambda: server.count("PUT small") > refused, timeout_s=20, message="the next probe")
    assert daemon.events("destination.resumed") == []
    server.behave()
    daemon.wait_uploaded(1)


def test_giving_up_aborts_the_upload(daemon: Daemon, server: FaultyS3) -> None:
    """Parked with its reason; S3 keeps no parts of it."""
    server.script(Status(code=400, error_code="EntityTooSmall"), times=None, match="POST big.*uploadId")
    daemon.start().wait_ready()
    daemon.drop("big", content_of(2 * PART))

    daemon.wait_event("file.parked", path="big", timeout_s=30)

    nothing_is_left(daemon, server)
    assert server.contents() == {}


def test_uploads_of_others_stay(daemon: Daemon, server: FaultyS3) -> None:
    """What the sweep at the start aborts is what the ledger knows, not what somebody else began, even for this key."""
    server.script(HoldUntil(), times=None, match=lambda _: len(parts_sent(server)) > 3)
    file = daemon.drop("big", content_of(6 * PART))
    daemon.start()
    eventually(lambda: len(parts_sent(server)) > 4, timeout_s=20)
    daemon.kill()
    server.behave()
    (ours,) = server.store.uploads
    others = {
        server.client().create_multipart_upload(Bucket=server.bucket, Key=key)["UploadId"] for key in ("big", "other")
    }
    for upload in server.store.uploads.values():
        upload.started -= timedelta(days=100)
    file.unlink()

    daemon.start()

    aborted = daemon.wait_event("multipart.aborted", path="big", timeout_s=20)
    assert aborted["upload_id"] == ours
    assert set(server.store.uploads) == others


@pytest.mark.parametrize("how", ["removed", "rewritten"])
def test_changed_under_way(daemon: Daemon, server: FaultyS3, how: str) -> None:
    """The upload is aborted; nothing torn is ever an object."""
    hold = HoldUntil()
    server.script(hold, times=None, match=lambda _: len(parts_sent(server)) > 2)
    daemon.start().wait_ready()
    file = daemon.drop("big", content_of(8 * PART))
    eventually(lambda: server.in_flight >= 1, timeout_s=20)
    new = content_of(7 * PART, seed=1)
    if how == "removed":
        file.unlink()
    else:
        daemon.drop("big", new)
    server.behave()

    if how == "removed":
        daemon.wait_event("file.vanished", path="big", timeout_s=30)
        assert server.contents() == {}
    else:
        daemon.wait_uploaded(1, timeout_s=60)
        assert server.contents() == {"big": new}
    daemon.wait_event("multipart.aborted", path="big", timeout_s=30)
    nothing_is_left(daemon, server)


def test_progress_is_shown(daemon: Daemon, server: FaultyS3) -> None:
    """How far each large file is: in the status of programs, and as a bar in that of people."""
    server.script(HoldUntil(), times=None, match=lambda _: len(parts_sent(server)) > 4)
    daemon.start().wait_ready()
    daemon.drop("big", content_of(8 * PART))

    def done() -> int:
        (file,) = ask(daemon.socket_path, "status")["large_files"] or [{"bytes_uploaded": 0}]
        return int(file["bytes_uploaded"])

    # Four parts are confirmed; those that the server does not answer were sent all the same.
    eventually(lambda: done() >= 4 * PART, timeout_s=20)
    (file,) = json.loads(daemon.cli("status", "--json").stdout)["large_files"]
    assert (file["path"], file["bytes"]) == ("big", 8 * PART)
    (row,) = [json.loads(line) for line in daemon.cli("list", "--json", "--state", "uploading").stdout.splitlines()]
    assert {"bytes_uploaded", "bytes_per_s", "left_s"} <= row.keys()
    assert re.search(r"\[#{10,20}\.{0,10}\] +\d+% of 40 MiB.* big\n", daemon.cli("status").stdout)
    assert re.search(r"^uploading +40 MiB .* big  \d+%", daemon.cli("list").stdout)
    server.behave()
    daemon.wait_uploaded(1)
