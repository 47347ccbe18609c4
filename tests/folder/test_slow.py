"""Which directories are slow, and how many workers their files may have."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3spool.failure.breaker import Times
from s3spool.folder import slow_directories
from s3spool.folder.mounts import other_devices
from s3spool.folder.slow_directories import MAX_DIRECTORIES, SlowDirectories, max_slow_files
from s3spool.ledger.rows import Failures, Identity, Multipart
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item, Lane
from s3spool.queue.parts import PartQueue, Transfer
from s3spool.queue.selection import RECHECK_S
from s3spool.s3.content import Content
from support.failing import fails
from support.house import Build, a_breaker
from support.waiting import eventually

FAILED = Failures(attempts=1, error_code="EIO")

MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
7 1 8:3 / /data rw - ext4 /dev/sda3 rw
2 7 8:2 / /data rw shared:1 - ext4 /dev/sda2 rw
3 2 8:2 /other /data/spool/bound rw - ext4 /dev/sda2 rw
4 2 0:40 / /data/spool/a\\040b rw - fuse.sshfs host: rw
5 2 0:41 / /data/spool/deep/nfs rw - nfs4 host:/ rw
6 2 0:42 / /data/spoolish rw - nfs4 host:/ rw
"""


class Slow(SlowDirectories):
    """`slow/` is."""

    def __init__(self) -> None:
        super().__init__()
        self.note_slow_file("slow/one", 2.0)


def test_what_is_mounted_inside_on_another_device(tmp_path: Path) -> None:
    """A bind mount of the root's own device is none, and a later mount covers an earlier one. No device is asked."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)

    assert other_devices(Path("/data/spool"), mounts) == ("a b/", "deep/nfs/")


def test_mounts_are_remembered_while_they_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left, for example: files of a mount must not be opened on the threads of the others."""
    slow = SlowDirectories()
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    slow.refresh(Path("/data/spool"))
    fails(monkeypatch, slow_directories, "other_devices", OSError(errno.EMFILE, os.strerror(errno.EMFILE)))

    slow.refresh(Path("/data/spool"))

    assert slow.mounts == ("mount/",)
    assert slow.holds("mount/a")


def test_a_directory_is_slow_for_a_minute(tmp_path: Path) -> None:
    """After a file that hung; each further slow one counts anew."""
    now = 0.0
    slow = SlowDirectories(clock=lambda: now)
    assert not slow.holds("d/a")
    slow.note_slow_file("d/a", 2.0)
    assert slow.holds("d/b")
    assert not slow.holds("d/below/b")
    assert not slow.holds("b")
    now += 59.0
    slow.refresh(tmp_path)
    assert slow.holds("d/b")
    slow.note_slow_file("d/a", 2.0)
    now += 59.0
    slow.refresh(tmp_path)
    assert slow.holds("d/b")
    now += 2.0
    slow.refresh(tmp_path)
    assert not slow.holds("d/b")
    assert not slow.any


def test_a_busy_machine_makes_no_directory_slow() -> None:
    """What is a little slow has to be so three times a minute."""
    now = 0.0
    slow = SlowDirectories(clock=lambda: now)
    for _ in range(10):
        slow.note_slow_file("d/a", 0.3)
        now += 31.0
        assert not slow.holds("d/a")
    for _ in range(2):
        slow.note_slow_file("d/a", 0.3)
    assert slow.holds("d/a")


def test_a_limited_number_of_directories_is_remembered() -> None:
    """The one whose slow file is longest ago is forgotten."""
    slow = SlowDirectories()
    for number in range(MAX_DIRECTORIES + 1):
        slow.note_slow_file(f"{number}/a", 2.0)

    assert not slow.holds("0/a")
    assert slow.holds("1/a")
    assert slow.holds(f"{MAX_DIRECTORIES}/a")


@pytest.mark.parametrize(("workers", "slow"), [(1, 1), (2, 1), (8, 4), (100, 10), (1000, 10)])
def test_never_all_workers(workers: int, slow: int) -> None:
    """But for the only one."""
    assert max_slow_files(workers) == slow


def test_slow_files_wait_in_a_queue_of_their_own() -> None:
    """They take no more workers than they may, nor the room of others; a scan looks for those without room again."""
    rescans: list[str] = []
    inbox = Inbox(5, 4, a_breaker(initial_s=1.0, max_s=1.0), slow=Slow(), rescan=rescans.append)
    inbox.offer([Item(f"slow/{number}") for number in range(5)])
    assert not rescans
    inbox.offer([Item(f"slow/{number}") for number in range(8)])
    inbox.offer([Item(f"{number}") for number in range(5)])

    taken = [item.path for _ in range(9) if (item := inbox.take_nowait())]

    assert set(rescans) == {"full"}
    assert taken == ["slow/0", "slow/1", "0", "1", "2", "3", "4"]
    assert inbox.counts() == (3, 7)
    inbox.done("slow/0")
    assert inbox.take_nowait() == Item("slow/2")


def test_a_slow_file_that_is_tried_again_is_never_left_out() -> None:
    """No scan would find it: its row says that it was handed out."""
    inbox = Inbox(1, 2, a_breaker(initial_s=1.0, max_s=1.0), slow=Slow())
    again = [Item(f"slow/{number}", Lane.RETRY, FAILED) for number in range(10)]

    assert inbox.offer_nowait(again) == 4


def test_files_of_a_directory_that_has_become_slow() -> None:
    """Those that were queued as quick are not opened beyond the limit."""
    slow = SlowDirectories()
    inbox = Inbox(10, 4, a_breaker(initial_s=1.0, max_s=1.0), slow=slow)
    inbox.offer([Item(f"slow/{number}") for number in range(4)])
    taken = [item for _ in range(4) if (item := inbox.take_nowait())]
    slow.note_slow_file("slow/0", 2.0)

    assert [inbox.admit_slow(item.path) for item in taken] == [True, True, False, False]
    for item in taken[2:]:
        inbox.put_back(item, first=False)
    assert inbox.take_nowait() is None
    inbox.done("slow/1")
    assert inbox.take_nowait() == Item("slow/2")


def test_parts_of_slow_files_hold_nobody_up() -> None:
    """They have a limit of their own, and the lanes of the others do not count them."""
    queue = PartQueue(lambda: 0, 9, Slow(), 2)
    for path in ("slow/large", "large"):
        queue.add(a_transfer(path))

    taken = [part.path for _ in range(12) if (part := queue.take())]

    assert taken == ["slow/large", "large", "slow/large", "large", "large", "large"]
    assert queue.waiting() == 6


@pytest.mark.parametrize("where", ["slow/", ""])
def test_large_files_on_their_way_leave_their_shares_to_small_ones(where: str) -> None:
    """Their parts have limits of their own: small files beside them, that failed or are slow, do not wait for hours."""
    inbox = Inbox(10, 8, a_breaker(initial_s=1.0, max_s=1.0), slow=Slow())
    inbox.offer_nowait([Item(f"{where}{number}", Lane.RETRY, FAILED) for number in range(9)])
    share = len([item for _ in range(9) if (item := inbox.take_nowait())])

    inbox.release_body(f"{where}0")
    taken = inbox.take_nowait(), inbox.take_nowait()

    assert share == (4 if where else 2)
    assert taken == (Item(f"{where}{share}", Lane.RETRY, FAILED), None)


def test_files_of_a_directory_that_is_fast_again_wait_no_longer(tmp_path: Path) -> None:
    """A hanging mount holds every share of the slow files, and a thousand files were queued as slow beside its own."""
    now = 0.0
    slow = SlowDirectories(clock=lambda: now)
    inbox = Inbox(1000, 4, a_breaker(initial_s=1.0, max_s=1.0), slow=slow)
    for directory in ("hangs", "busy"):
        slow.note_slow_file(f"{directory}/0", 2.0)
    inbox.offer([Item("hangs/0"), Item("hangs/1"), Item("hangs/2")])
    inbox.offer([*(Item(f"busy/{number}") for number in range(996)), Item("busy/failed", Lane.RETRY, FAILED)])
    assert [inbox.take_nowait(), inbox.take_nowait(), inbox.take_nowait()] == [Item("hangs/0"), Item("hangs/1"), None]
    assert inbox._selection.recheck_s(queued=True, held=False) == RECHECK_S, "nobody else would call a worker"

    now = 59.0
    slow.note_slow_file("hangs/0", 2.0)
    now = 61.0
    slow.refresh(tmp_path)

    taken = set()
    while item := inbox.take_nowait():
        taken.add(item.path)
        inbox.done(item.path)
    assert taken == {f"busy/{number}" for number in range(996)} | {"busy/failed"}
    assert inbox.counts() == (1, 2)


def test_all_idle_workers_are_called_for_files_of_a_directory_that_is_fast_again(
    tmp_path: Path,
) -> None:
    """The one that finds them takes one, and it may take minutes to send it."""
    now = 0.0
    slow = SlowDirectories(clock=lambda: now)
    inbox = Inbox(100, 20, a_breaker(initial_s=1.0, max_s=1.0), slow=slow)
    slow.note_slow_file("busy/0", 2.0)
    inbox.offer([Item(f"busy/{number}") for number in range(30)])
    assert len([item for _ in range(20) if (item := inbox.take_nowait())]) == 10

    with idle_workers(inbox, 10) as taken:
        now = 61.0
        slow.refresh(tmp_path)

        eventually(lambda: len(taken) == 10)


def test_a_mount_that_comes_and_goes_fills_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """During a pause, say: its names move to the queue of quick files only where that has room."""
    slow = SlowDirectories()
    inbox = Inbox(100, 4, a_breaker(initial_s=1.0, max_s=1.0), slow=slow)
    inbox.hold(True)
    for cycle in range(5):
        monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
        slow.refresh(tmp_path)
        inbox.offer([Item(f"mount/{cycle}/{number}") for number in range(100)])
        monkeypatch.setattr(slow_directories, "other_devices", lambda _: ())
        slow.refresh(tmp_path)
        assert inbox.take_nowait() is None

    assert inbox.counts() == (200, 0)
    assert inbox.untried() == 100


def test_a_directory_is_slow_as_long_as_its_files_hang(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than its strikes count: otherwise the names that wait behind them would hold up all other files."""
    house = build(workers=20)
    slow, opened, late_s = house.components.slow, house.folder.open, 0.0
    monkeypatch.setattr(slow, "_clock", lambda: time.monotonic() + late_s)
    slow.note_slow_file("hangs/0", 2.0)
    late_s = 58.0
    go_on, hung = threading.Event(), list[str]()

    def hanging(path: str, *args: Any, **options: Any) -> Any:
        if path.startswith("hangs/"):
            hung.append(path)
            assert go_on.wait(60)
        return opened(path, *args, **options)

    monkeypatch.setattr(house.folder, "open", hanging)
    names = [f"hangs/{number}" for number in range(200)]
    for name in [*names, "good"]:
        house.drop(name)
    house.start()
    house.offer(*names)
    eventually(lambda: len(hung) == 10)

    late_s = 61.0
    slow.refresh(house.root)
    house.offer("good")

    eventually(lambda: "good" in house.bucket.objects)
    assert len(hung) == 10
    go_on.set()
    house.wait_sent(*names)
    slow.refresh(house.root)
    assert not slow.holds("hangs/0")


@pytest.mark.parametrize("kind", ["body", "large", "parts"])
def test_idle_workers_find_by_themselves_what_may_go_again(kind: str, tmp_path: Path) -> None:
    """In a quiet folder no event calls them when the directory of a large file is fast again."""
    now = 0.0
    slow = SlowDirectories(clock=lambda: now)
    inbox = Inbox(100, 20, a_breaker(initial_s=1.0, max_s=1.0), slow=slow)
    for directory in ("hangs", "busy"):
        slow.note_slow_file(f"{directory}/0", 2.0)
    inbox.offer([Item(f"hangs/{number}") for number in range(10)])
    assert len([item for _ in range(20) if (item := inbox.take_nowait())]) == 10
    if kind == "parts":
        for path in ("hangs/large", "busy/large"):
            inbox.parts.add(a_transfer(path))
        for _ in range(10):
            assert inbox.parts.take()
    else:
        inbox.offer([Item("busy/large")._replace(body=kind == "body", large=kind == "large")])

    with idle_workers(inbox, 4) as taken:
        now = 59.0
        slow.note_slow_file("hangs/0", 2.0)
        now = 61.0
        slow.refresh(tmp_path)

        eventually(lambda: taken)


@contextlib.contextmanager
def idle_workers(inbox: Inbox, count: int) -> Iterator[list[object]]:
    """So many threads that wait for one item each; yields what they get."""
    taken: list[object] = []
    workers = [threading.Thread(target=lambda: taken.append(inbox.take())) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        eventually(lambda: len(inbox._idle_workers.waiting) == count)
        yield taken
    finally:
        inbox.close()
        for worker in workers:
            worker.join()


def a_transfer(path: str) -> Transfer:
    """Of ten parts."""
    identity = Identity(1, 2, 3, 4, 5)
    upload = Multipart(path, identity, 1, "bucket", "key", "id", 10, "", 0.0)
    content = Content(path, identity, None, -1)
    return Transfer(Item(path), content, upload, 10, Times(0.0, 0.0), {}, deque(range(1, 11)))


def test_parts_of_a_file_whose_directory_is_fast_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave the few shares of slow ones, which others may hold for ever."""
    slow = Slow()
    queue = PartQueue(lambda: 0, 9, slow, 1)
    for path in ("slow/hangs", "slow/large"):
        queue.add(a_transfer(path))
    before = [part.path for _ in range(3) if (part := queue.take())]

    monkeypatch.setattr(slow, "holds", lambda path: path == "slow/hangs")

    part = queue.take()
    assert before == ["slow/hangs"]
    assert part is not None
    assert part.path == "slow/large"
