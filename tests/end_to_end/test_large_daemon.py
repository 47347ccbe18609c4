"""Large files through the real daemon: every size, cut off and resumed, faults at each step, nothing left behind."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s3spool.control.protocol import ask
from s3spool.demo.seaweed import Seaweed
from support.daemon import Daemon, Make
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
def daemon(make: Make) -> Daemon:
    """Not yet started."""
    return make(upload=UPLOAD)


def parts_sent(faulty: FaultyS3) -> list[Request]:
    return [request for request in faulty.requests.copy() if request.method == "PUT" and "partNumber" in request.line]


def nothing_is_left(daemon: Daemon, faulty: FaultyS3) -> None:
    """No upload at the server, none in the ledger."""
    eventually(lambda: faulty.store.uploads == {}, message="no upload at the server")
    with daemon.ledger() as reader:
        eventually(lambda: reader.multiparts() == [], message="no upload in the ledger")


def test_every_size_arrives_as_it_is(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """Around the threshold and the part size, zeros, holes: byte for byte, into a server that verifies checksums."""
    sizes = [PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 7 * PART - 1]
    dropped = {f"{size}": content_of(size, seed=size) for size in sizes} | {"zeros": bytes(3 * PART)}
    with Daemon(tmp_path, seaweed, bucket=bucket, upload=UPLOAD) as daemon:
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


def test_a_stop_keeps_the_upload_for_the_next_start(daemon: Daemon, faulty: FaultyS3) -> None:
    """The drain is over before the file is: what S3 has stays there."""
    content = content_of(6 * PART)
    daemon.config["service"]["drain_s"] = 0.2
    faulty.script(HoldUntil(), times=None, match=lambda _: len(parts_sent(faulty)) > 3)
    daemon.drop("big", content)
    daemon.start()
    eventually(lambda: len(parts_sent(faulty)) > 4, timeout_s=20)

    assert daemon.stop() == 0
    assert len(faulty.store.uploads) == 1
    faulty.behave()
    daemon.start()
    daemon.wait_uploaded(1)

    assert faulty.contents() == {"big": content}
    assert faulty.count("POST big.uploads") == 1
    nothing_is_left(daemon, faulty)


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


def test_a_fault_at_each_step(daemon: Daemon, faulty: FaultyS3) -> None:
    """Side by side: each ends with the right bytes, one success, and nothing left behind."""
    files = {f"big{number}": content_of(2 * PART + 1, seed=number) for number in range(len(FAULTS))}
    for key, (fault, match) in zip(files, FAULTS, strict=True):
        faulty.script(fault, times=2, match=match.format(key=key))
    daemon.start_ready()
    for key, content in files.items():
        daemon.drop(key, content)

    daemon.wait_uploaded(len(files), timeout_s=60)

    assert faulty.contents() == files
    assert sorted(line["path"] for line in daemon.events("file.uploaded")) == sorted(files)
    assert daemon.events("file.parked") == []
    assert not [script for script in faulty._scripts if script.times_left]
    nothing_is_left(daemon, faulty)


@pytest.mark.parametrize("ours", [True, False])
def test_overwrite_never_holds_for_parts(daemon: Daemon, faulty: FaultyS3, ours: bool) -> None:
    """Another object is never replaced and parks the file; one with our content counts as success."""
    daemon.config["destination"]["overwrite"] = "never"
    content, there = content_of(3 * PART), content_of(3 * PART if ours else 100)
    faulty.client().put_object(Bucket=faulty.bucket, Key="big", Body=there, ChecksumAlgorithm="CRC64NVME")
    daemon.start_ready()
    daemon.drop("big", content)

    event = "file.uploaded" if ours else "file.parked"
    daemon.wait_event(event, path="big", timeout_s=60)

    assert faulty.contents() == {"big": there}
    nothing_is_left(daemon, faulty)


def test_what_s3_cannot_take_is_parked(daemon: Daemon, faulty: FaultyS3) -> None:
    """One byte above 5 TiB, which a sparse file has at no cost: said at once, and nothing is begun."""
    daemon.start_ready()
    daemon.drop_hole("big", 5 * 1024**4 + 1)

    parked = daemon.wait_event("file.parked", path="big", timeout_s=20)
    assert parked["error_code"] == "EntityTooLarge"
    assert "5 TiB" in parked["error"]
    assert faulty.count() == 0
    daemon.drop("small")
    daemon.wait_uploaded(1)


def test_what_s3_cannot_take_says_nothing_of_a_paused_destination(daemon: Daemon, faulty: FaultyS3) -> None:
    """It may well be the probe: it is parked without asking S3, and whether that works again another file finds out."""
    faulty.script(Status(code=403, error_code="AccessDenied"), times=None)
    daemon.start_ready()
    daemon.drop("small")
    daemon.wait_event("destination.paused", timeout_s=20)

    daemon.drop_hole("big", 5 * 1024**4 + 1)

    daemon.wait_event("file.parked", path="big", timeout_s=30)
    refused = faulty.count("PUT small")
    eventually(lambda: faulty.count("PUT small") > refused, timeout_s=20, message="the next probe")
    assert daemon.events("destination.resumed") == []
    faulty.behave()
    daemon.wait_uploaded(1)


def test_uploads_of_others_stay(daemon: Daemon, faulty: FaultyS3) -> None:
    """What the sweep at the start aborts is what the ledger knows, not what somebody else began, even for this key."""
    faulty.script(HoldUntil(), times=None, match=lambda _: len(parts_sent(faulty)) > 3)
    file = daemon.drop("big", content_of(6 * PART))
    daemon.start()
    eventually(lambda: len(parts_sent(faulty)) > 4, timeout_s=20)
    daemon.kill()
    faulty.behave()
    (ours,) = faulty.store.uploads
    others = {
        faulty.client().create_multipart_upload(Bucket=faulty.bucket, Key=key)["UploadId"] for key in ("big", "other")
    }
    for upload in faulty.store.uploads.values():
        upload.started -= timedelta(days=100)
    file.unlink()

    daemon.start()

    aborted = daemon.wait_event("multipart.aborted", path="big", timeout_s=20)
    assert aborted["upload_id"] == ours
    assert set(faulty.store.uploads) == others


def test_progress_is_shown(daemon: Daemon, faulty: FaultyS3) -> None:
    """How far each large file is: in the status of programs, and as a bar in that of people."""
    faulty.script(HoldUntil(), times=None, match=lambda _: len(parts_sent(faulty)) > 4)
    daemon.start_ready()
    daemon.drop("big\n1", content_of(8 * PART))

    def done() -> int:
        (file,) = ask(daemon.socket_path, "status")["large_files"] or [{"bytes_uploaded": 0}]
        return int(file["bytes_uploaded"])

    # Four parts are confirmed; those that the server does not answer were sent all the same.
    eventually(lambda: done() >= 4 * PART, timeout_s=20)
    (file,) = json.loads(daemon.cli("status", "--json").stdout)["large_files"]
    assert (file["path"], file["bytes"]) == ("big\n1", 8 * PART)
    (row,) = [json.loads(line) for line in daemon.cli("list", "--json", "--state", "uploading").stdout.splitlines()]
    assert {"bytes_uploaded", "bytes_per_s", "left_s"} <= row.keys()
    assert re.search(r'\[#{10,20}\.{0,10}\] +\d+% of 40 MiB.* "big\\n1"\n', daemon.cli("status").stdout)
    assert re.search(r'^uploading +40 MiB .* "big\\n1"  \d+%', daemon.cli("list").stdout)
    faulty.behave()
    daemon.wait_uploaded(1)
