"""Large files by turns: neither a huge file nor a user with many large ones holds up the others."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from s3spool.failure.breaker import Times
from s3spool.ledger.rows import Identity, Multipart, Part
from s3spool.queue import parts
from s3spool.queue.item import Item
from s3spool.queue.parts import (
    COMPLETE,
    OPEN_OF_ONE_OWNER,
    OPEN_TRANSFERS,
    SLOW_BEGIN_S,
    PartItem,
    PartQueue,
    Transfer,
)
from s3spool.s3.content import Content
from support.daemon import Make
from support.faults import Fault
from support.faulty import FaultyS3
from support.http_server import Exchange, HangUp
from support.s3_messages import Answer
from support.waiting import eventually

MIB = 2**20
ALICE, BOB = 64_002, 64_003


def transfer(path: str, owner: int, count: int = 100) -> Transfer:
    identity = Identity(1, 2, 3, 4, 5)
    upload = Multipart(path, identity, 1, "b", path, "id", 5 * MIB, "crc64nvme", 0.0)
    content = Content(path, identity, None, -1)
    return Transfer(Item(path), content, upload, count, Times(0.0, 0.0), {}, deque(range(1, count + 1)), owner)


def sent(queue: PartQueue, item: PartItem) -> str:
    queue.done(item, Part("id", item.number, 5, "e", "c"))
    queue.release(item)
    return f"{item.path}{item.number}"


def taken(queue: PartQueue, count: int) -> list[str]:
    items = (queue.take() for _ in range(count))
    return [sent(queue, item) for item in items if item is not None]


def test_parts_that_workers_hold_are_counted() -> None:
    """They share nine tenths of the workers with other bodies."""
    queue = queue_of(transfer("a", ALICE), transfer("b", BOB))

    held = [item for item in (queue.take() for _ in range(3)) if item is not None]
    assert queue.in_flight == 3
    for item in held:
        sent(queue, item)

    assert queue.in_flight == 0


def queue_of(*transfers: Transfer, limit: int = OPEN_TRANSFERS) -> PartQueue:
    queue = PartQueue(lambda: 0, 25, limit=limit)
    for each in transfers:
        queue.add(each)
    return queue


def test_transfers_of_an_owner_by_turns() -> None:
    """One part of each, then again."""
    queue = queue_of(transfer("a", ALICE), transfer("b", ALICE), transfer("c", ALICE, 2))
    assert taken(queue, 9) == ["a1", "b1", "c1", "a2", "b2", "c2", "c0", "a3", "b3"]


def test_owners_by_turns() -> None:
    """One with three files gets no more than one with a single file, and a newcomer is next."""
    queue = queue_of(*(transfer(name, ALICE) for name in "abc"), transfer("x", BOB))
    assert taken(queue, 6) == ["a1", "x1", "b1", "x2", "c1", "x3"]
    queue.add(transfer("n", 7))
    assert taken(queue, 4) == ["n1", "a2", "x4", "n2"]


def test_no_lane_is_needed_by_an_owner_of_whom_nothing_goes() -> None:
    """The parts of a huge file may hold all lanes for minutes; another user's file begins all the same, narrowly."""
    queue = queue_of(transfer("huge", ALICE))
    held = [queue.take() for _ in range(20)]
    assert sum(item is not None for item in held) < 20
    queue.add(transfer("small", BOB, 2))

    item = queue.take()
    assert item is not None
    assert queue.take() is None
    assert sent(queue, item) == "small1"
    assert taken(queue, 2) == ["small2", f"small{COMPLETE}"]


def test_how_many_may_be_under_way() -> None:
    """Twelve of an owner, and so many in all, but for an owner who has none; files that are aside wait."""
    queue = queue_of(*(transfer(f"a{number}", ALICE, 1) for number in range(OPEN_OF_ONE_OWNER)))
    assert not queue.reserve(ALICE)
    assert queue.reserve(BOB)
    queue.defer("later", ALICE)
    assert queue.waiting() > 0
    items = [queue.take() for _ in range(4)]
    assert queue.waiting() > 0
    queue.defer("other", BOB)
    assert queue.waiting() == 0
    queue.deferred_taken("other")
    queue.deferred_taken("never put aside")
    assert queue.waiting() > 0
    for item in items:
        assert item is not None
        sent(queue, item)
        item.transfer.over = "complete"
    end = queue.take()
    assert end is not None
    assert queue.release(end)
    assert queue.waiting() == 0
    assert queue.reserve(ALICE)

    transfers = [transfer(f"{number}", number, 1) for number in range(OPEN_TRANSFERS)]
    assert not queue_of(*transfers).reserve(BOB)
    crowd = queue_of(*transfers, limit=OPEN_TRANSFERS + 1)
    assert not crowd.reserve(0)
    assert crowd.reserve(BOB)


def test_those_that_are_about_to_begin_count() -> None:
    """A hundred workers that take a large file each at the same moment begin no more than one after the other."""
    queue = PartQueue(lambda: 0, 25)
    reservations = [it for it in (queue.reserve(ALICE) for _ in range(100)) if it is not None]
    assert len(reservations) == OPEN_OF_ONE_OWNER
    queue.end_reservation(reservations[0])
    assert queue.reserve(ALICE)
    assert not queue.reserve(ALICE)


def test_what_s3_does_not_begin_holds_up_no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve that are never answered: after a second others may begin, and somebody looks at them then."""
    now = [1000.0]
    monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=lambda: now[0]))
    queue = PartQueue(lambda: 0, 25)
    assert all(queue.reserve(ALICE) for _ in range(OPEN_OF_ONE_OWNER))
    assert queue.next_in_s() is None
    queue.defer("good", ALICE)
    assert queue.waiting() > 0
    assert queue.next_in_s() == SLOW_BEGIN_S

    now[0] += SLOW_BEGIN_S

    assert queue.waiting() == 0
    assert queue.next_in_s() is None
    assert queue.reserve(ALICE)


def test_nothing_is_left_to_do_while_all_parts_are_taken() -> None:
    """A file that is aside is not taken and put aside again, round and round, while all parts are in flight."""
    queue = queue_of(*(transfer(f"{number}", number, 1) for number in range(OPEN_TRANSFERS)))
    items = [queue.take() for _ in range(OPEN_TRANSFERS)]
    assert all(items)
    queue.defer("later", 0)
    for each in queue.transfers():
        each.owner = 0
    assert queue.waiting() == 1


class Swallow(Fault):
    """Take a part of any size, keep nothing of it, and confirm it."""

    def on_headers(self, exchange: Exchange) -> None:
        left = int(exchange.request.headers["content-length"])
        buffer = bytearray(MIB)
        while left:
            count = exchange._handler.rfile.readinto(memoryview(buffer)[: min(left, MIB)])
            if not count:
                raise HangUp  # the client went away
            left -= count
        headers = {
            name: value for name, value in exchange.request.headers.items() if name.startswith("x-amz-checksum-")
        }
        exchange.send_raw(exchange.render(Answer(headers={"ETag": '"0123"', **headers})))
        raise HangUp


@pytest.mark.integration
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("count", "size"), [(3, 10**11), pytest.param(10, 5 * 10**12, marks=pytest.mark.slow)], ids=["100 GB", "5 TB"]
)
def test_huge_files_hold_nobody_up(count: int, size: int, make: Make, faulty: FaultyS3) -> None:
    """Sparse ones of one user: files of 20 MiB of that user and of another pass them; removed, their uploads end."""
    faulty.script(Swallow(), times=None, match=r"^PUT hole-.*partNumber")
    with make(watch={"rescan_s": 5}).start_ready() as daemon:
        for number in range(count):
            daemon.drop_hole(f"hole-{number}", size)
        eventually(lambda: len(daemon.events("multipart.started")) == count)
        body = os.urandom(20 * MIB)
        daemon.drop("same-user", body)
        if os.getuid() == 0:
            (daemon.folder / ".other-user").write_bytes(body)
            os.chown(daemon.folder / ".other-user", BOB, BOB)
            (daemon.folder / ".other-user").rename(daemon.folder / "other-user")
            daemon.wait_event("file.uploaded", path="other-user")
        daemon.wait_event("file.uploaded", path="same-user")
        assert faulty.contents()["same-user"] == body
        assert daemon.process_status("VmHWM") < 200 * 1024

        for number in range(count):
            (daemon.folder / f"hole-{number}").unlink()
        eventually(lambda: len(daemon.events("multipart.aborted")) == count)
        assert daemon.stop() == 0


@pytest.mark.integration
def test_a_removed_file_sends_no_further_part(make: Make, faulty: FaultyS3) -> None:
    """Not even one that is tried again after an error: the file is looked for before each part."""
    daemon = make(upload={"part_size": "5MiB", "multipart_threshold": "5MiB", "workers": 1})
    removed = Removed(daemon.folder / "big")
    faulty.script(removed, times=None, match=r"^PUT big.*partNumber")
    daemon.start_ready()
    daemon.drop("big", bytes(30 * MIB))
    daemon.wait_event("multipart.aborted", path="big")
    daemon.wait_event("file.vanished", path="big")
    assert removed.met == 1
    assert daemon.stop() == 0


class Removed(Fault):
    """The file goes away while its first part is sent, which fails as if that part alone were refused."""

    def __init__(self, path: Path) -> None:
        self.met = 0
        self._path = path

    def instead(self, exchange: Exchange) -> Answer:
        self.met += 1
        self._path.unlink(missing_ok=True)
        return Answer.error(503, "SlowDown")


@pytest.mark.integration
def test_a_file_above_the_limit_is_parked(make: Make, faulty: FaultyS3) -> None:
    """With its reason, unread, and alone; one of exactly that size is sent."""
    daemon = make(watch={"max_size": "1MiB", "rescan_s": 5}).start_ready()
    daemon.drop("over", bytes(MIB + 1))
    daemon.drop("exact", bytes(MIB))
    daemon.wait_event("file.uploaded", path="exact")
    parked = daemon.wait_event("file.parked", path="over")
    assert parked["error_code"] == "FileTooLarge"
    assert f"{MIB + 1} bytes, watch.max_size is {MIB}" in daemon.cli("why", "over").stdout
    assert daemon.stop() == 0
    assert set(faulty.contents()) == {"exact"}
