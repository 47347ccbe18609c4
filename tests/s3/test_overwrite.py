"""`destination.overwrite = "never"` on servers that refuse to replace an object, and on those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3.conftest import StoreAt
from s3spool.s3.overwrite import Condition, OverwriteGuard, is_aws
from support.daemon import Daemon, Make
from support.faults import Fault
from support.faulty import FaultyS3
from support.http_server import Exchange
from support.stores import content, put
from support.waiting import eventually

SMALL, MEDIUM, LARGE = 100, 300_000, 11 * 2**20
PART = 5 * 2**20


class IgnoresConditions(Fault):
    """As rclone serve s3 and s3rver: If-None-Match is one header among others."""

    def on_headers(self, exchange: Exchange) -> None:
        exchange.request.headers.pop("if-none-match", None)


@pytest.fixture
def daemon(make: Make) -> Daemon:
    upload = {"multipart_threshold": f"{PART}", "part_size": f"{PART}"}
    return make(destination={"overwrite": "never"}, upload=upload).start_ready()


def put_there(faulty: FaultyS3, key: str, body: bytes) -> None:
    faulty.client().put_object(Bucket=faulty.bucket, Key=key, Body=body, ChecksumAlgorithm="CRC64NVME")


@pytest.mark.integration
@pytest.mark.parametrize("size", [SMALL, MEDIUM, LARGE])
def test_an_object_stays_on_a_server_that_ignores_the_condition(daemon: Daemon, faulty: FaultyS3, size: int) -> None:
    """Other content parks the file, equal content is its success; neither object is written again."""
    faulty.script(IgnoresConditions(), times=None)
    put_there(faulty, "theirs", b"other")
    put_there(faulty, "ours", b"o" * size)
    before = {key: stored.modified for key, stored in faulty.objects.items()}

    daemon.drop("theirs", b"o" * size)
    daemon.drop("ours", b"o" * size)
    daemon.drop("new", b"n" * size)

    assert daemon.wait_event("file.parked", path="theirs")["error_code"] == "PreconditionFailed"
    daemon.wait_event("file.uploaded", path="ours")
    daemon.wait_event("file.uploaded", path="new")
    assert faulty.contents() == {"theirs": b"other", "ours": b"o" * size, "new": b"n" * size}
    assert {key: faulty.objects[key].modified for key in before} == before
    assert not faulty.store.uploads


@pytest.mark.integration
def test_a_server_that_ignores_the_condition_is_tried_once(daemon: Daemon, faulty: FaultyS3) -> None:
    """With an object that the daemon has just written; it says so, and asks with HEAD from then on."""
    faulty.script(IgnoresConditions(), times=None)
    for number in range(5):
        daemon.drop(f"f{number}", b"content")
        daemon.wait_event("file.uploaded", path=f"f{number}")

    assert len(daemon.events("destination.condition_ignored")) == 1
    assert faulty.count("^PUT ") == 6
    assert faulty.count("^HEAD ") == 5
    assert set(faulty.contents().values()) == {b"content"}


@pytest.mark.integration
def test_a_server_that_refuses_is_believed(daemon: Daemon, faulty: FaultyS3) -> None:
    """After its first 412 nothing more is asked with HEAD before an upload."""
    daemon.drop("first", b"content")
    daemon.wait_event("file.uploaded", path="first")
    assert faulty.count("^PUT first") == 2

    for number in range(5):
        daemon.drop(f"f{number}", b"content")
        daemon.wait_event("file.uploaded", path=f"f{number}")

    assert faulty.count("^HEAD ") == 1
    assert faulty.count("^PUT f[0-9]") == 5
    put_there(faulty, "theirs", b"other")
    daemon.drop("theirs", b"content")
    daemon.wait_event("file.parked", path="theirs")
    assert faulty.contents()["theirs"] == b"other"


@pytest.mark.integration
def test_one_thread_tries_while_others_go_on(faulty: FaultyS3, tmp_path: Path, store_at: StoreAt) -> None:
    """A trial under way is not begun again; one without a clear answer leaves the question open."""
    store = store_at(faulty, overwrite="never")
    with content(tmp_path / "a", b"a", in_memory=True) as file:
        request = store.request(file)
        answer = put(store.transport(), request)
        assert store.guard.begin_trial()
        store.verify(file, request, answer, may_verify=True)
        assert faulty.count("^PUT ") == 1

        store.guard.end_trial(503)
        assert store.guard.wants_trial
        store.verify(file, request, answer, may_verify=True)

    eventually(lambda: faulty.count("^PUT ") == 2)
    assert store.guard.condition is Condition.HONOURED
    assert not store.asks_first


@pytest.mark.parametrize(
    ("url", "aws"),
    [
        ("https://pail.s3.eu-central-1.amazonaws.com/", True),
        ("https://s3.cn-north-1.amazonaws.com.cn/pail/", True),
        ("https://pail.s3express-use1-az4.us-east-1.amazonaws.com/", True),
        ("https://door-1111.op-01.s3-outposts.us-east-1.amazonaws.com/", False),
        ("https://s3.example.org/amazonaws.com/", False),
        ("https://amazonaws.com.example.org/", False),
        ("http://127.0.0.1:9000/pail/", False),
    ],
)
def test_aws_is_known_by_its_host_name(url: str, aws: bool) -> None:
    """Everywhere else the server has to show it."""
    assert is_aws(url) is aws
    assert OverwriteGuard(never=True, url=url).asks_first is not aws
    assert not OverwriteGuard(never=False, url=url).asks_first
