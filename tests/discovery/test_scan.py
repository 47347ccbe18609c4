"""Walking the folder: finds what no event told of, in bounded memory, and keeps honest count of it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from s3spool.discovery import directory_files
from s3spool.discovery import scan as scan_module
from s3spool.discovery.directory_watches import DirectoryWatches
from s3spool.discovery.watch import Watch
from s3spool.errors import LedgerError
from s3spool.folder import slow_directories
from s3spool.folder.directories import opened_directory
from s3spool.folder.filters import FileFilter
from s3spool.heartbeat import Heartbeat
from s3spool.ledger.reader import Reader
from s3spool.queue import inbox as inbox_module
from s3spool.queue.item import Item, Lane
from s3spool.queue.settle import SettleReason
from support.failing import fails
from support.house import Build, House
from support.lines import Lines
from support.rows import a_receipt
from support.trees import deep_tree
from support.waiting import eventually


@pytest.fixture
def build(build: Build) -> Build:
    """With a ledger that runs."""

    def house(**settings: Any) -> House:
        made = build(**settings)
        return made.start(made.ledger)

    return house


@pytest.fixture
def house(build: Build) -> House:
    return build()


FIRST_OR_FULL = ("start", "full", "ledger", "poll", "restored")


def scan(house: House, reason: str = "start") -> None:
    """Ask for a scan, and wait for its end."""
    if house.scan not in house._running:
        house.start(house.scan)
    number = house.scan.started + 1
    house.scan.want(reason)
    eventually(lambda: house.scan.finished >= number, timeout_s=60)


def a_watch(house: House) -> Watch:
    """Not started, and heard by nobody."""
    deaf: Any = lambda *_: None  # noqa: E731
    return Watch(house.root, house.scan.names, recursive=True, hint=deaf, rescan=deaf, lost=deaf)


def taken(house: House) -> set[str]:
    """All that is queued, taken and done with."""
    paths = set()
    while (item := house.inbox.take_nowait()) is not None:
        house.inbox.done(item.path)
        paths.add(item.path)
    return paths


def test_finds_every_file_and_nothing_else(house: House, lines: Lines) -> None:
    """Regular files at any depth and of any name; no links, FIFOs or hidden ones."""
    names = {"a", "x/b", "x/y/z/c", "two\nlines", os.fsdecode(b"x/latin-\xff"), "ü/日本"}
    for name in [*names, ".hidden", ".git/config", "x/.git/y/z"]:
        house.drop(name)
    (house.root / "link").symlink_to(house.root / "a")
    (house.root / "circle").symlink_to(house.root)
    os.mkfifo(house.root / "fifo")
    (house.root / "empty").mkdir()

    scan(house)

    assert taken(house) == names
    (line,) = lines.named("scan.finished")
    assert (line["reason"], line["files"], line["offered"], line["files_missed_by_watch"]) == ("start", 6, 6, 0)


def test_a_file_half_removed_gets_its_name_back(house: House) -> None:
    """A process that died between its two steps of a removal has left it under a reserved name."""
    house.drop("d/.s3spool-removing.a", b"half removed")

    scan(house)
    scan(house)

    assert (house.root / "d/a").read_bytes() == b"half removed"
    assert "d/a" in taken(house)


def test_a_file_half_removed_whose_name_is_taken(house: House) -> None:
    """It goes only where it is what S3 has confirmed; another content or a symlink gets a free name."""
    for name in ("sent", "unsent", "kept", "other"):
        house.drop(name, b"new")
        house.drop(f".s3spool-removing.{name}", b"old")
    house.drop("link", b"new")
    (house.root / ".s3spool-removing.link").symlink_to("link")
    for name, after in (("sent", "delete"), ("kept", "keep")):
        house.record(a_receipt(name, identity=house.identity(f".s3spool-removing.{name}"), after=after))
    for name in ("other", "link"):
        house.record(a_receipt(name, identity=house.identity(name), after="delete"))

    scan(house)

    left = {file.name: file.read_bytes() for file in house.root.iterdir()}
    names = ("sent", "unsent", "kept", "other", "link")
    assert left == dict.fromkeys(names, b"new") | dict.fromkeys(("unsent.1", "kept.1", "other.1"), b"old") | {
        "link.1": b"new"
    }


def test_not_recursive(build: Build) -> None:
    """Without `recursive` only the folder itself is looked at."""
    house = build(recursive=False)
    house.drop("a")
    house.drop("sub/b")

    scan(house)

    assert taken(house) == {"a"}


def test_a_new_list_of_names_counts_from_the_next_scan(house: House) -> None:
    """A reload exchanges the patterns."""
    house.drop("a.csv")
    house.drop("a.txt")
    house.scan.apply(FileFilter(["*.csv"], []))

    scan(house)

    assert taken(house) == {"a.csv"}


def test_a_tree_deeper_than_the_stack(house: House) -> None:
    """1,200 directories one in another are walked like any others, and the thread lives."""
    house.scan.apply(FileFilter(["*"], []))  # no directory is too deep for a key
    with deep_tree(house.root, levels=1200) as path:
        scan(house)

        assert taken(house) == {path}
        assert house.scan.alive()


def test_what_is_sent_while_its_batch_waits_for_room_is_not_sent_again(build: Build) -> None:
    """Its event came late, and another lane had room: when the scan comes to it, the ledger was read long ago."""
    house = build(size=1)
    names = house.drop_many(3)
    house.start(house.scan, house.settle_thread)
    house.scan.want("start")
    eventually(lambda: house.inbox._waiting_offers)
    last = max(names)

    house.settle.add(last)
    eventually(lambda: house.inbox.state_of(last))
    first = {item.path for _ in range(2) if (item := house.inbox.take_nowait())}
    assert last in first
    house.record(house.receipt_for(last, read_at=2e9))
    for path in first:
        house.inbox.done(path)

    item = house.inbox.take()
    assert item is not None
    eventually(lambda: house.scan.finished)
    assert {item.path} == set(names) - first
    assert not taken(house)


def test_more_files_of_a_slow_directory_than_there_is_room(build: Build) -> None:
    """A busy machine makes the whole folder slow for a minute: no file waits until the routine scan."""
    house = build(size=5)
    house.scan.use(a_watch(house).watches)  # else scans come every second anyway
    names = set(house.drop_many(30))
    house.components.slow.note_slow_file("slow", 2.0)
    house.start(house.scan)
    house.scan.want("start")

    for _ in range(30):
        item = eventually(house.inbox.take_nowait)
        assert item is not None
        house.record(house.receipt_for(item.path, read_at=2e9))
        house.inbox.done(item.path)
        names.remove(item.path)


def test_a_directory_of_a_mount_that_cannot_be_read(
    build: Build, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    """The files of the others are found, and the log names it."""
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("m/",))
    house = build()
    for directory in "abcdef":
        house.drop(f"m/{directory}/file")
    listed = directory_files.DirectoryFiles.listed

    def refused(self: Any, directory: str, *arguments: Any) -> Iterator[Any]:
        if directory == "m/c/":
            raise PermissionError(errno.EACCES, "Permission denied")
        yield from listed(self, directory, *arguments)

    monkeypatch.setattr(directory_files.DirectoryFiles, "listed", refused)

    scan(house)

    assert taken(house) == {f"m/{directory}/file" for directory in "abdef"}
    assert [(line["path"], line["error"]) for line in lines.named("scan.failed")] == [("m/c/", "Permission denied")]


def test_no_descriptor_in_the_middle_of_a_directory(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan is repeated: the rest of the directory is not taken for renamed."""
    monkeypatch.setattr(scan_module, "ERROR_S", 0.01)
    monkeypatch.setattr(directory_files, "CHECK_ENTRIES", 10)
    house = build()
    names = set(house.drop_many(30))
    calls: list[Any] = []

    def exhausted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened_directory(*arguments)

    monkeypatch.setattr(directory_files, "opened_directory", exhausted)

    scan(house)

    assert taken(house) == names


def test_a_full_inbox_holds_the_walk_back(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files wait: never more in memory than a batch and an inbox, and none is left out."""
    monkeypatch.setattr(scan_module, "BATCH", 10)
    house = build(size=5)
    names = set(house.drop_many(100))
    listed = []
    look = os.scandir

    @contextlib.contextmanager
    def counted(path: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with look(path) as real:
            yield (listed.append(entry.name) or entry for entry in real)  # type: ignore[func-returns-value]

    monkeypatch.setattr(os, "scandir", counted)
    house.start(house.scan)
    house.scan.want("start")
    eventually(lambda: house.inbox._waiting_offers)
    held_back = len(listed)

    found: set[str] = set()
    while len(found) < 100:
        item = house.inbox.take()
        assert item is not None
        assert house.inbox.counts()[0] <= 5
        house.inbox.done(item.path)
        found.add(item.path)

    assert found == names
    assert held_back == 10
    eventually(lambda: house.scan.finished == 1)


def test_what_is_on_its_way_is_not_offered_again(house: House, lines: Lines) -> None:
    """Queued, in flight or settling: known already, and no miss of the watcher."""
    for name in ("queued", "in flight", "settling"):
        house.drop(name)
    house.offer("in flight")
    house.inbox.take()
    house.offer("queued")
    house.settle.add("settling")

    scan(house, "timer")

    assert house.inbox.counts() == (1, 1)
    assert house.scan.missed == 0
    assert house.inbox.done("in flight")  # it may have changed since it was read


def test_finishes_what_a_dead_process_left(build: Build) -> None:
    """Receipts with after = delete whose files are still here: removed, not sent."""
    house = build(action="delete")
    for name in ("a", "sub/b"):
        house.drop(name)
        house.record(house.receipt_for(name, after="delete", read_at=2e9))
    house.start(house.after)

    scan(house)

    eventually(lambda: not list(house.root.rglob("?")))
    eventually(lambda: house.inbox.counts() == (0, 0))
    assert house.stats.uploaded == 0


def test_more_removals_than_have_room_are_all_finished(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could not be removed for a day, now they can: scans follow each other until none is left."""
    monkeypatch.setattr(inbox_module, "MAX_UNCOMMITTED", 16)
    house = build(action="delete")
    names = house.drop_many(200)
    house.record(*[house.receipt_for(name, after="delete") for name in names])
    monkeypatch.setattr(house.scan, "_interval_s", lambda: 3600.0)
    house.start(house.after, house.scan)

    house.scan.want("request")

    eventually(lambda: not any(house.root.iterdir()))
    assert house.bucket.puts == []


def test_fresh_files_settle_first(build: Build) -> None:
    """A file written a moment ago may still be written to: it waits, and how it looked is remembered."""
    house = build(settle_s=60.0)
    house.drop("old")
    house.drop("fresh", mtime_ns=None)

    scan(house)

    assert taken(house) == {"old"}
    assert house.settle._queues[next(iter(house.settle._queues))]["fresh"][1] == house.identity("fresh")


def test_fresh_files_without_room_to_settle_go_to_the_workers(build: Build) -> None:
    """A full settle does not lose what the scan found."""
    house = build(settle_s=60.0, size=1)
    house.settle.add("other")
    house.drop("fresh", mtime_ns=None)

    scan(house)

    assert taken(house) == {"fresh"}


@pytest.mark.parametrize(
    ("reason", "missed"),
    [*((reason, 0) for reason in FIRST_OR_FULL), *((reason, 2) for reason in ("timer", "overflow", "asked"))],
)
def test_only_what_events_should_have_told_counts_as_missed(
    house: House, lines: Lines, reason: str, missed: int
) -> None:
    """The count measures the watcher's honesty, so a first scan or a full queue is not held against it."""
    house.drop("a")
    house.drop("b")

    scan(house, reason)
    scan(house, reason)

    assert house.scan.missed == missed
    assert [line["files_missed_by_watch"] for line in lines.named("scan.finished")] == [missed, 0]
    found_two = "debug" if reason == "full" else "info"
    nothing_new = "debug" if reason == "full" or reason in scan_module.ROUTINE else "info"
    assert [line["level"] for line in lines.named("scan.finished")] == [found_two, nothing_new]


def test_a_watch_that_is_missing_is_armed(house: House) -> None:
    """Directories the events did not tell of are watched from the scan on."""
    house.drop("sub/deep/a")
    watch = a_watch(house)
    watch.start()
    watch.watches.forget("sub/")
    house.scan.use(watch.watches)

    scan(house)

    assert len(watch.watches.table) == 3
    watch.stop()


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("mount", ["mount", "deep/er/mount"])
def test_a_mount_is_walked_whole(build: Build, mount: str, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk of another device waits for room in the inbox: no file of it is left to the next scan."""
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: (f"{mount}/",))
    house = build(size=2)
    names = {f"{mount}/sub/{house.drop(f'{mount}/sub/{number}').name}" for number in range(10)}
    if watched:
        watch = a_watch(house)
        house.scan.use(watch.watches)
        watch.start()
        watch.watches.forget(f"{mount}/sub/")
    house.start(house.scan)
    house.scan.want("start")

    found: set[str] = set()

    def all_found() -> bool:
        found.update(taken(house))
        return found == names

    eventually(all_found)

    assert house.scan.started == 1
    if watched:
        assert {f"{mount}/", f"{mount}/sub/"} <= set(watch.watches.table._wd_of)
        watch.stop()


def test_a_whole_walk_ends_the_want_of_watches(house: House) -> None:
    """Each directory was asked for, and none was refused."""
    watch = a_watch(house)
    watch.watches.exhausted = "the inotify limit is reached"
    house.scan.use(watch.watches)

    scan(house)

    assert watch.watches.exhausted == ""


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_unreadable_directory_does_not_stop_the_scan(
    house: House, lines: Lines, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be read is found; what cannot is said once, not for each directory or in each scan."""
    for name in ("a/1", "bad/2", "bad too/3", "z/4", "5"):
        house.drop(name)
    look = os.scandir

    def refuse(path: Any) -> Any:
        if "bad" in str(Path(f"/proc/self/fd/{path}").readlink()):
            raise error
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)

    scan(house)
    scan(house)

    assert taken(house) == {"a/1", "z/4", "5"}
    (line,) = [line for line in lines.named("scan.failed") if line["reason"] == "unreadable directory"]
    assert "bad" in line["path"]
    assert line["error"] == error.strerror


def test_a_directory_that_is_renamed_while_it_is_listed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand paths that are wrong by now would keep the workers from the files of others."""
    monkeypatch.setattr(directory_files, "CHECK_ENTRIES", 10)
    for number in range(40):
        house.drop(f"before/{number}")

    with Reader(house.ledger.path) as reader:
        walk = house.scan._walk(reader)
        found = [next(walk)[0]]
        (house.root / "before").rename(house.root / "after")
        found += [path for path, _ in walk]

    assert len(found) == 9
    assert all(path.startswith("before/") for path in found)


def test_what_vanishes_during_the_walk_is_passed_over(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and directories that go between the listing and the look are no trouble."""
    for name in ("gone", "stays", "d/below"):
        house.drop(name)
    look = os.scandir

    @contextlib.contextmanager
    def racing(path: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with look(path) as real:
            listed = list(real)
        (house.root / "gone").unlink(missing_ok=True)
        if (house.root / "d").exists():
            (house.root / "d" / "below").unlink()
            (house.root / "d").rmdir()
        yield iter(listed)

    monkeypatch.setattr(os, "scandir", racing)

    scan(house)

    assert taken(house) == {"stays"}


def test_a_root_that_is_gone_is_tried_again(house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread outlives a vanished folder, and finds what is in it when it is back; that is no miss."""
    monkeypatch.setattr(scan_module, "ERROR_S", 0.01)
    house.drop("a")
    away = house.root.with_name("away")
    house.root.rename(away)
    house.start(house.scan)
    house.scan.want("start")
    eventually(lambda: lines.named("scan.failed"))

    away.rename(house.root)

    eventually(lambda: taken(house) == {"a"})
    eventually(lambda: lines.named("scan.finished"))
    assert house.scan.missed == 0


@pytest.mark.parametrize("where", ["", "below"])
def test_a_scan_without_a_descriptor_begins_again(
    house: House, lines: Lines, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory may be in order: without another scan its files would wait for the timer."""
    monkeypatch.setattr(scan_module, "ERROR_S", 0.01)
    house.drop("below/a")
    look = os.scandir
    refused: list[Any] = []

    def refuse(path: Any) -> Any:
        if not refused and Path(f"/proc/self/fd/{path}").readlink() == house.root / where:
            refused.append(path)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)

    house.start(house.scan)
    house.scan.want("start")

    eventually(lambda: lines.named("scan.finished"))
    assert lines.named("scan.finished")[0]["files"] == 1


def test_a_ledger_that_is_broken_is_tried_again(house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the ledger nothing can be told apart; the scan waits until it can."""
    monkeypatch.setattr(scan_module, "ERROR_S", 0.01)
    house.drop("a")
    fails(monkeypatch, house.ledger, "reader", LedgerError("unable to open database file"), times=3)

    house.start(house.scan)
    house.scan.want("start")

    eventually(lambda: taken(house) == {"a"})
    assert lines.named("scan.failed")


def test_polling_is_as_frequent_as_the_walk_is_short(build: Build) -> None:
    """Without inotify the scan is the only source: often, but never more than a tenth of the time."""
    house = build(rescan_s=300.0, settle_s=2.0)

    idle = house.scan._interval_s()
    house.scan._last_duration_s = 7.0
    busy = house.scan._interval_s()
    house.scan._last_duration_s = 7000.0
    endless = house.scan._interval_s()
    watches = SimpleNamespace(exhausted="")
    house.scan.use(cast("DirectoryWatches", watches))
    watched = house.scan._interval_s()
    watches.exhausted = "the inotify limit is reached"
    house.scan._last_duration_s = 7.0

    assert (idle, busy, endless, watched, house.scan._interval_s()) == (2.0, 70.0, 300.0, 300.0, 70.0)


def test_scans_rest_for_ten_times_their_duration(build: Build, lines: Lines) -> None:
    """More files being written than there is room for ask for scans all the time; a person's wish goes at once."""
    house = build(rescan_s=300.0, size=1)
    house.start(house.scan)
    house.scan.want("start")
    eventually(lambda: house.scan.finished == 1)
    house.scan._last_duration_s = 30.0
    house.settle.add("being written", SettleReason.BUSY)
    assert not house.settle.has_room()

    for _ in range(3):
        house.scan.want("full")
        eventually(lambda: not house.scan._wanted.is_set())
    assert house.scan.started == 1
    house.scan.want("request")
    eventually(lambda: house.scan.finished == 2)

    assert [line["reason"] for line in lines.named("scan.finished")] == ["start", "full,request"]
    house.scan._last_duration_s = 0.01
    house.scan.want("full")
    eventually(lambda: house.scan.finished == 3)


def test_a_scan_does_not_rest_while_the_workers_have_nothing_to_do(build: Build) -> None:
    """Files that found no room in settle wait in the folder: once the queue is empty, they are looked for."""
    house = build(rescan_s=300.0)
    house.scan._last_duration_s = 30.0
    house.inbox.offer_nowait([Item("queued", Lane.FOUND)])
    house.start(house.scan)
    for _ in range(3):
        house.scan.want("full")
        eventually(lambda: not house.scan._wanted.is_set())
    assert house.scan.started == 0

    assert house.inbox.take_nowait() is not None

    eventually(lambda: house.scan.finished == 1)


def test_scans_for_removals_rest(build: Build) -> None:
    """They find only files that are sent: whether the workers have something to do does not matter."""
    house = build(rescan_s=300.0)
    house.scan._last_duration_s = 30.0
    house.start(house.scan)
    for _ in range(3):
        house.scan.want("removals")
        eventually(lambda: not house.scan._wanted.is_set())

    assert house.scan.started == 0


def test_a_large_file_that_waits_delays_no_scan_for_want_of_room(build: Build, lines: Lines) -> None:
    """A large file may wait for hours; the workers have nothing else to do. Nobody wants a line for each such scan."""
    house = build(rescan_s=300.0)
    house.scan._last_duration_s = 30.0
    house.inbox.offer_nowait([Item("large", Lane.FOUND)._replace(large=True)])
    house.start(house.scan)

    house.scan.want("full")

    eventually(lambda: house.scan.finished == 1)
    assert [line["level"] for line in lines.named("scan.finished")] == ["debug"]


def test_scans_rest_while_slow_files_hang(build: Build) -> None:
    """They fill their queue: another scan would find no room for more of them, and the next one none either."""
    house = build(rescan_s=300.0, size=4)
    house.components.slow.note_slow_file("slow/0", 2.0)
    house.scan._last_duration_s = 30.0
    house.inbox.offer_nowait([Item(f"slow/{number}") for number in range(4)])
    house.start(house.scan)
    for _ in range(3):
        house.scan.want("full")
        eventually(lambda: not house.scan._wanted.is_set())

    assert house.scan.started == 0


def test_a_reason_to_scan_never_delays_the_next_scan(build: Build) -> None:
    """A million directories: ten times the duration of their scan is hours, and the timer's scan would come before."""
    house = build(rescan_s=0.2)
    house.scan._last_duration_s = 7000.0
    house.start(house.scan)

    house.scan.want("limit")

    eventually(lambda: house.scan.finished >= 1)


@pytest.mark.parametrize("watched", [True, False])
def test_scans_by_itself_from_time_to_time(build: Build, lines: Lines, watched: bool) -> None:
    """Nobody has to ask: with a watch to check on it, without one to replace it."""
    house = build(rescan_s=0.01)
    house.drop("a")
    if watched:
        house.scan.use(a_watch(house).watches)

    house.start(house.scan)

    eventually(lambda: house.scan.finished >= 2)
    assert lines.named("scan.finished")[0]["reason"] == ("timer" if watched else "poll")
    assert house.scan.missed == (1 if watched else 0)


@pytest.mark.parametrize("waits_for", ["room", "the next time"])
def test_close_does_not_wait(build: Build, waits_for: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a full inbox nor a long interval holds the shutdown up."""
    monkeypatch.setattr(scan_module, "BATCH", 1)
    house = build(size=1)
    if waits_for == "room":
        house.drop_many(5)
        house.start(house.scan)
        house.scan.want("start")
        eventually(lambda: house.inbox._waiting_offers)
    else:
        scan(house)

    house.close()

    assert not house.scan.alive()


def test_a_scan_of_one_huge_directory_beats(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch refreshes the heartbeat: the watchdog must not take a long scan for a hanging one."""
    monkeypatch.setattr(scan_module, "BATCH", 2)
    house = build()
    house.drop_many(7)
    beats, seen = [0], []
    beat, offer = Heartbeat.beat, house.scan._offer

    def counted(heartbeat: Heartbeat) -> None:
        beats[0] += heartbeat is house.scan.heartbeat
        beat(heartbeat)

    def watched(*arguments: Any) -> int:
        seen.append(beats[0])
        return offer(*arguments)

    monkeypatch.setattr(Heartbeat, "beat", counted)
    monkeypatch.setattr(house.scan, "_offer", watched)

    scan(house)

    assert len(seen) == 4
    assert len(set(seen)) == 4
