"""What the ledger knows already is not sent again; everything else is."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import structlog

from s3spool.discovery import deduplicate as sift_module
from s3spool.discovery.deduplicate import RACY_S, Verdict, verdict
from s3spool.errors import LedgerError
from s3spool.folder import slow_directories
from s3spool.ledger.queries import Known
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Identity, State
from s3spool.queue import inbox as inbox_module
from s3spool.queue.item import Item, Lane
from s3spool.queue.settle import SettleReason
from support.failing import fails
from support.house import Build, House
from support.lines import Lines
from support.rows import SOME, a_receipt, a_retry
from support.waiting import eventually

MTIME_S = SOME.mtime_ns / 1e9
SETTLED = MTIME_S + 60
CHMOD = SOME._replace(ctime_ns=SOME.ctime_ns + 1)
REWRITTEN = SOME._replace(mtime_ns=SOME.mtime_ns + 1, ctime_ns=SOME.ctime_ns + 1)
REPLACED = SOME._replace(inode=SOME.inode + 1, ctime_ns=SOME.ctime_ns + 1)


@pytest.mark.parametrize(
    ("receipt", "retry", "identity", "hinted", "expected"),
    [
        # In the retry list: its turn comes by itself, unless it has changed.
        (None, {}, SOME, False, Verdict.SKIP),
        (None, {}, SOME, True, Verdict.SKIP),
        (None, {"state": State.PARKED}, SOME, True, Verdict.SKIP),
        (None, {"state": State.PARKED}, REWRITTEN, True, Verdict.SEND),
        (None, {"state": State.PARKED}, CHMOD, False, Verdict.SEND),
        (None, {}, REPLACED, False, Verdict.SEND),
        ({}, {}, SOME, False, Verdict.SKIP),
        ({}, {}, REWRITTEN, False, Verdict.SEND),
        # Sent before, to here.
        ({"read_at": SETTLED}, None, SOME, False, Verdict.SKIP),
        ({"read_at": SETTLED}, None, SOME, True, Verdict.SKIP),
        ({"read_at": SETTLED, "after": "delete"}, None, SOME, False, Verdict.FINISH),
        ({"read_at": SETTLED, "after": "archive"}, None, SOME, True, Verdict.FINISH),
        ({"read_at": SETTLED}, None, CHMOD, False, Verdict.CHECK),
        ({"read_at": SETTLED, "after": "delete"}, None, CHMOD, True, Verdict.CHECK),
        ({"read_at": SETTLED}, None, REWRITTEN, False, Verdict.SEND),
        ({"read_at": SETTLED}, None, REPLACED, False, Verdict.SEND),
        # Written while or just before it was read: the clock may have stood still, and a hint says it moved.
        ({"read_at": MTIME_S + RACY_S / 2}, None, SOME, True, Verdict.CHECK),
        ({"read_at": MTIME_S + RACY_S / 2}, None, SOME, False, Verdict.SKIP),
        ({"read_at": MTIME_S - 5, "after": "delete"}, None, SOME, True, Verdict.CHECK),
        ({"read_at": MTIME_S + RACY_S * 2}, None, SOME, True, Verdict.SKIP),
        # Sent before, but elsewhere.
        ({"read_at": SETTLED, "destination": 2}, None, SOME, False, Verdict.SEND),
        ({"read_at": SETTLED, "destination": 2, "after": "delete"}, None, SOME, False, Verdict.SEND),
        ({"read_at": SETTLED, "destination": 2}, None, CHMOD, True, Verdict.SEND),
    ],
)
def test_verdicts(
    receipt: dict[str, Any] | None,
    retry: dict[str, Any] | None,
    identity: Identity,
    hinted: bool,
    expected: Verdict,
) -> None:
    """The whole table of what is known, how the file looks, and whether something happened to it."""
    known = Known(None if receipt is None else a_receipt(**receipt), None if retry is None else a_retry(**retry))

    assert verdict(known, identity, destination=1, hinted=hinted) is expected


@pytest.mark.parametrize("known", [None, Known(None, None)])
def test_the_unknown_is_sent(known: Known | None) -> None:
    """When in doubt a file is sent: at least once is the promise."""
    assert verdict(known, SOME, destination=1, hinted=False) is Verdict.SEND


@pytest.fixture
def house(build: Build) -> House:
    house = build(action="delete")
    return house.start(house.ledger)


def sort(house: House, *paths: str, hinted: bool = False) -> list[Item]:
    with Reader(house.ledger.path) as reader:
        return [*chain(*house.deduplicator.sort([(path, None, None) for path in paths], reader, hinted=hinted))]


def test_sorting_a_mixed_lot(house: House, lines: Lines) -> None:
    """Of many candidates just those are offered that have to be sent, in their order."""
    for name in ("new", "sent", "waiting", "touched", "rewritten"):
        house.drop(name)
    for name in ("sent", "touched", "rewritten"):
        house.record(house.receipt_for(name, read_at=2e9))
    house.record(
        a_receipt("gone", destination=house.ledger.destination),
        a_retry("waiting", identity=house.identity("waiting")),
    )
    (house.root / "touched").chmod(0o600)
    house.drop("rewritten", b"other", mtime_ns=2 * 10**18)
    receipt = house.receipt_for("touched", read_at=2e9)

    items = sort(house, "new", "sent", "waiting", "touched", "rewritten", "gone", "vanished")

    assert [item.path for item in items] == ["new", "touched", "rewritten", "vanished"]
    checked = items[1].receipt
    assert checked is not None
    assert checked._replace(identity=receipt.identity) == receipt
    assert {line["path"]: line["reason"] for line in lines.named("file.skipped")} == {
        "sent": "uploaded",
        "waiting": "waiting",
    }


@pytest.mark.parametrize("level", ["debug", "info"])
def test_what_a_scan_has_found(house: House, lines: Lines, level: str) -> None:
    """The same files are offered, and the same is finished, whether or not each one that is skipped is told of."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    vars(sift_module.log).pop("bind", None)
    for name in ("new", "sent", "removed", "touched", "waiting", "rewritten"):
        house.drop(name)
    for name in ("sent", "removed", "touched"):
        house.record(house.receipt_for(name, read_at=2e9, after="delete" if name == "removed" else "keep"))
    for name in ("waiting", "rewritten"):
        house.record(a_retry(name, identity=house.identity(name)))
    (house.root / "touched").chmod(0o600)
    house.drop("rewritten", b"other", mtime_ns=2 * 10**18)
    found = [(path.name, house.identity(path.name)) for path in sorted(house.root.iterdir())]

    with Reader(house.ledger.path) as reader:
        items = [*chain(*house.deduplicator.sort_found(found, reader, lambda *_: False))]

    assert {item.path: item.receipt and item.receipt.path for item in items} == {
        "new": None,
        "touched": "touched",
        "rewritten": None,
    }
    assert house.inbox.state_of("removed") == "uploading"
    assert {line["path"] for line in lines.named("file.skipped")} == (
        {"sent", "waiting"} if level == "debug" else set()
    )


def test_what_was_seen_travels_with_the_item(house: House) -> None:
    """The worker compares with how the file looked one settle time ago."""
    house.drop("a")
    house.drop("b")
    house.record(a_retry("b"))

    with Reader(house.ledger.path) as reader:
        items = [*chain(*house.deduplicator.sort([("a", None, SOME), ("b", None, SOME)], reader, hinted=True))]

    assert items == [Item("a", seen=SOME), Item("b", seen=SOME)]


def test_what_was_sent_but_not_removed_is_finished(house: House) -> None:
    """The process died between receipt and removal: the file is removed now, once, and not sent again."""
    file = house.drop("a")
    house.record(house.receipt_for("a", after="delete", read_at=2e9))

    items = sort(house, "a") + sort(house, "a")
    in_flight = house.inbox.counts()
    house.start(house.after)

    assert items == []
    assert in_flight == (0, 1)
    eventually(lambda: not file.exists())
    eventually(lambda: house.inbox.counts() == (0, 0))
    assert house.stats.uploaded == 0


def test_a_removal_without_room_is_left_to_another_scan(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the room in flight stays free for new files; a scan for removals is asked for, and the file goes then."""
    monkeypatch.setattr(inbox_module, "MAX_UNCOMMITTED", 0)
    house = build(action="delete", workers=2)
    house.start(house.ledger)
    monkeypatch.setattr(house.scan, "_interval_s", lambda: 3600.0)
    for name in ("a", "b"):
        house.drop(name)
        house.record(house.receipt_for(name, after="delete", read_at=2e9))

    assert sort(house, "a", "b") == []
    assert (house.inbox.counts(), house.rescans) == ((0, 1), ["removals"])
    house.start(house.after)
    eventually(lambda: house.inbox.counts() == (0, 0))
    house.start(house.scan)

    eventually(lambda: not any(house.root.iterdir()))
    house.quiet()
    assert house.stats.uploaded == 0


def test_a_file_that_cannot_be_looked_at_goes_to_a_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker finds out what is wrong with it, and says so."""
    house.drop("a")
    house.record(a_receipt("a", destination=house.ledger.destination))
    fails(monkeypatch, house.folder, "identity_of", PermissionError(13, "Permission denied"))

    assert sort(house, "a") == [Item("a", Lane.FOUND)]


def test_files_of_a_mount_are_left_to_the_workers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look may hang there; the worker compares the checksum with the receipt of this destination, if there is one."""
    monkeypatch.setattr(slow_directories, "other_devices", lambda _: ("mount/",))
    house.components.slow.refresh(house.root)
    fails(monkeypatch, house.folder, "identity_of", AssertionError("a look at the mount"))
    here = house.ledger.destination
    sent = a_receipt("mount/sent", destination=here)
    house.record(sent, a_receipt("mount/moved", destination=here + 1), a_retry("mount/failed"))

    items = sort(house, "mount/sent", "mount/moved", "mount/failed")

    assert [(item.path, item.receipt) for item in items] == [
        ("mount/sent", sent),
        ("mount/moved", None),
        ("mount/failed", None),
    ]


def test_the_settle_thread_offers_what_is_ripe(house: House) -> None:
    """From hint to inbox, without what is known."""
    house.drop("sent")
    house.record(house.receipt_for("sent", read_at=2e9))
    house.start(house.settle_thread)

    house.settle.add("sent")
    house.settle.add("a", SettleReason.CHANGED, SOME)

    assert house.inbox.take() == Item("a", seen=SOME)
    eventually(lambda: not len(house.settle))
    assert house.inbox.counts() == (0, 1)


def test_what_a_scan_sends_while_a_hint_waits_for_room_is_not_sent_again(build: Build) -> None:
    """The hint was looked up before the scan came; no second look shows that the file was sent since."""
    house = build(size=1)
    house.start(house.ledger, house.settle_thread)
    house.inbox.offer([Item("before")])
    house.settle.add("a")
    eventually(lambda: house.inbox._waiting_offers)

    house.inbox._queued.add("a")
    house.inbox._queues[Lane.ARRIVED].appendleft(Item("a"))  # as if a scan had queued it
    assert house.inbox.take_nowait() == Item("a")
    house.record(a_receipt("a", read_at=2e9))
    house.inbox.done("a")

    assert house.inbox.take() == Item("before")
    eventually(lambda: not house.settle.pending())
    house.settle.add("b")
    assert house.inbox.take() == Item("b")


@pytest.mark.parametrize("error", [LedgerError, OSError])
@pytest.mark.parametrize("act", ["__init__", "known"])
def test_the_settle_thread_outlives_a_broken_ledger(
    house: House, lines: Lines, act: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hints that cannot be looked up are left to a scan; the next ones are handled again."""
    fails(monkeypatch, Reader, act, error("unable to open database file"))
    house.start(house.settle_thread)
    house.settle.add("lost hint")
    eventually(lambda: house.rescans == ["ledger"])

    house.settle.add("next hint")

    assert house.inbox.take() == Item("next hint")
    assert house.settle_thread.alive()
    assert len(lines.named("ledger.failed")) == 1


def test_closing_ends_the_settle_thread_whatever_it_has(build: Build) -> None:
    """Neither an idle thread nor one that waits for room in the inbox holds the shutdown up."""
    house = build(size=1)
    house.start(house.ledger, house.settle_thread)
    house.settle.add("a")
    eventually(lambda: house.inbox.counts() == (1, 0))
    house.settle.add("b")
    eventually(lambda: house.inbox._waiting_offers)

    house.close()

    assert not house.settle_thread.alive()
