"""Two daemons on one folder: who has a file, and what becomes of the claim."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import psycopg
import pytest

from s3spool.config.schema import RetryConfig, StateConfig
from s3spool.daemon.cleaning import DailyCleaning
from s3spool.discovery import deduplicate
from s3spool.errors import Scope, UploadError
from s3spool.failure.breaker import CircuitBreaker
from s3spool.folder.marker import marker_name
from s3spool.ledger.postgresql.backend import PostgresLedger
from s3spool.ledger.rows import State
from s3spool.queue.item import Item
from s3spool.queue.settle import Ripe
from s3spool.upload import missing
from support.house import House
from support.lines import Lines, recorded
from support.rows import SOME, a_retry
from support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from s3spool.ledger.protocol import Claims
    from s3spool.ledger.queries import Known, LedgerReader
    from support.postgres import Postgres

NewHouse = Callable[..., House]


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.database()


@pytest.fixture
def new(tmp_path: Path, url: str) -> Iterator[NewHouse]:
    houses: list[House] = []

    def house(name: str, *, started: bool = True, **options: object) -> House:
        (tmp_path / name).mkdir()
        made = House(tmp_path / name, root=tmp_path / "spool", ledger=url, **options)  # type: ignore[arg-type] # its own
        houses.append(made)
        if started:
            made.start()
        else:
            made.start(made.ledger)
        return made

    yield house
    for each in houses:
        each.close()


@pytest.fixture
def lines() -> Iterator[Lines]:
    with recorded() as lines:
        yield lines


def claims(house: House) -> Claims:
    found: Claims | None = house.ledger.claims
    assert found is not None
    return found


def test_a_file_of_another_daemon_is_left_out(new: NewHouse) -> None:
    """Its scan finds the file, and offers it to nobody; once it is free, the next scan takes it."""
    first, second = new("first", started=False), new("second", started=False)
    second.start(second.scan)
    first.drop("a")
    assert set(claims(first).take(["a"])) == {"a"}

    second.scan.want("request")
    eventually(lambda: second.scan.finished == 1)
    assert second.inbox.counts() == (0, 0)

    claims(first).give_back(["a"])
    assert first.ledger.flush(30)
    second.scan.want("request")
    eventually(lambda: second.inbox.counts() == (1, 0))


def test_a_claimed_file_of_which_an_event_tells_is_offered_again(new: NewHouse) -> None:
    """It may change while it is queued or sent. One that another daemon has claimed is not offered."""
    first, second = new("first", started=False), new("second", started=False)
    assert set(claims(second).take(["other's"])) == {"other's"}
    candidates = [("a", None, SOME), ("other's", None, SOME)]

    with first.ledger.reader() as reader:
        for _ in range(2):
            items = [*chain(*first.deduplicator.sort(candidates, reader, hinted=True))]
            assert items == [Item("a", seen=SOME)]


def test_race_a_claimed_file_of_which_an_event_tells_is_given_back(
    new: NewHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daily sweep had it, or the retry thread, to which its change is no news: the event is not forgotten."""
    house = new("house", started=False)
    assert set(claims(house).take(["a"])) == {"a"}
    take = claims(house).take

    def slow_take(*arguments: Any) -> dict[str, Known]:
        taken = take(*arguments)
        claims(house).give_back(["a"])
        assert house.ledger.flush(30)
        return taken

    monkeypatch.setattr(claims(house), "take", slow_take)
    with house.ledger.reader() as reader:
        items = [*chain(*house.deduplicator.sort([("a", None, SOME)], reader, hinted=True))]

    assert items == [Item("a", seen=SOME)]


def test_a_claimed_file_that_does_not_come_into_the_inbox_is_given_back(new: NewHouse) -> None:
    """Another thread has sent it meanwhile, or there is no room: another daemon may take it."""
    first, second = new("first", started=False), new("second", started=False)
    with first.ledger.reader() as reader:
        for items in first.deduplicator.sort([("in", None, SOME), ("out", None, SOME)], reader, hinted=False):
            first.inbox.offer(items, taken={"out"})
    assert first.ledger.flush(30)

    assert set(claims(second).take(["in", "out"])) == {"out"}


def test_settled_files_are_claimed_in_pieces(new: NewHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece is queued, and none is left to the next scan."""
    monkeypatch.setattr(deduplicate, "CLAIMED_ROWS", 2)
    house = new("house", started=False)
    for name in "abcde":
        house.settle.add(name)

    house.start(house.settle_thread)

    eventually(lambda: house.inbox.counts() == (5, 0))


def test_a_lost_claim_removes_nothing(new: NewHouse, url: str, lines: Lines) -> None:
    """Another daemon has taken the file over while this one was sending it: no receipt, no removal, one line."""
    house = new("house", action="delete")
    file = house.drop("a")

    def taken_over(_: str) -> None:
        house.bucket.before_put = lambda _: None
        with psycopg.connect(url, autocommit=True) as db:
            other = db.execute(
                "INSERT INTO nodes (destination, name, alive_until)"
                " VALUES (1, 'other', now() + interval '1 h') RETURNING id"
            ).fetchone()
            assert other
            db.execute("UPDATE files SET owner = %s WHERE path = 'a'", other)

    house.bucket.before_put = taken_over
    house.settle.add("a")
    eventually(lambda: lines.named("file.claim_lost"))
    house.quiet()

    assert file.exists()
    assert house.stats.uploaded == 0
    with house.ledger.reader() as reader:
        assert reader.counts()["uploaded"] == 0


def test_a_file_without_a_claim_is_claimed_before_it_is_sent(new: NewHouse) -> None:
    """What waited in the queue while the lease ran out goes back to settle; another daemon may have it by now."""
    first, second = new("first", started=False), new("second")
    first.drop("a")
    assert set(claims(first).take(["a"])) == {"a"}

    second.inbox.offer([Item("a")])
    second.quiet()
    assert second.bucket.puts == []

    claims(first).give_back(["a"])
    assert first.ledger.flush(30)
    second.inbox.offer([Item("a")])
    eventually(lambda: second.stats.uploaded == 1)


def test_nothing_starts_while_the_lease_is_over(new: NewHouse) -> None:
    """Files and parts wait in the queue; the ledger's thread wakes the workers when there is a lease again."""
    house = new("house", started=False)
    lease = cast("Any", house.ledger).lease
    assert set(claims(house).take(["a"])) == {"a"}
    house.offer("a")
    until, lease._until = lease._until, 0.0

    assert house.inbox.take_nowait() is None

    lease._until = until
    assert house.inbox.take_nowait() == Item("a")


def test_a_retry_that_may_not_start_is_found_again_without_settle(
    new: NewHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away for a moment, and settle is full: a scan leaves out what waits for its retry."""
    house = new("house", started=False)
    house.drop("a")
    assert set(claims(house).take(["a"])) == {"a"}
    house.record(a_retry("a", identity=house.identity("a"), next_attempt=time.time()))
    assert set(claims(house).take(["a"])) == {"a"}
    house.offer("a")
    assert house.inbox.take_nowait() == Item("a")
    monkeypatch.setattr(house.settle, "add", lambda *_: False)
    with monkeypatch.context() as away:
        away.setattr(claims(house), "may_start", lambda: False)
        assert not house.results.may_start(Item("a"))
    assert house.ledger.flush(30)

    assert not claims(house).holds("a")
    house.start(house.after, house.workers, house.retry)
    house.wait_sent("a")


def whole_ticks(house: House) -> threading.Event:
    """Set when the retry thread has looked at its list."""
    tick, ticked = house.retry.tick, threading.Event()

    def watched(reader: LedgerReader, now: float) -> float | None:
        wait_s = tick(reader, now)
        ticked.set()
        return wait_s

    house.retry.tick = watched  # type: ignore[method-assign]
    return ticked


def test_race_a_retry_comes_due_while_its_event_is_looked_at(new: NewHouse) -> None:
    """The retry thread leaves it out, because it is claimed, and looks again soon."""
    house = new("house", started=False, policy=RetryConfig(initial_s=1, max_s=300, max_attempts=0))
    house.drop("a")
    assert set(claims(house).take(["a"])) == {"a"}
    house.record(a_retry("a", identity=house.identity("a"), next_attempt=0.0))
    items, ticked = house.deduplicator._items, whole_ticks(house)

    def slow_look(*arguments: Any, **options: Any) -> list[Item]:
        house.start(house.retry)
        assert ticked.wait(20)
        return items(*arguments, **options)

    house.deduplicator._items = slow_look  # type: ignore[method-assign]
    with house.ledger.reader() as reader:
        house.settle_thread._step([Ripe("a")], reader)

    eventually(lambda: house.inbox.counts() == (1, 0), timeout_s=20)


def test_a_file_that_a_command_on_another_host_releases_is_sent(new: NewHouse, url: str) -> None:
    """`s3spool retry` finds no daemon on its host: nothing but the ledger tells those of the others."""
    house = new("house", started=False, policy=RetryConfig(initial_s=1, max_s=300, max_attempts=0))
    house.drop("a")
    assert set(claims(house).take(["a"])) == {"a"}
    house.record(a_retry("a", identity=house.identity("a"), state=State.PARKED, next_attempt=0.0))
    ticked = whole_ticks(house)
    house.start(house.retry)
    assert ticked.wait(20)
    with psycopg.connect(url) as db:
        name = db.execute("SELECT name FROM destinations").fetchone()
        assert name
    command = PostgresLedger(url, destination=name[0], node=None)
    command.start()
    command.release(["a"])
    assert command.close(30)

    eventually(lambda: house.inbox.counts() == (1, 0), timeout_s=20)


def test_a_failed_file_that_is_gone_is_looked_for_until_it_is_forgotten(
    new: NewHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else wakes the retry thread of an idle daemon."""
    monkeypatch.setattr(missing, "LATE_S", 3.0)  # more than the pause between two ticks
    monkeypatch.setattr(missing, "PAUSE_S", 0.1)
    house = new("house", policy=RetryConfig(initial_s=0.1, max_s=300, max_attempts=0))
    vanished, ticked = house.results.vanished, whole_ticks(house)

    def late(item: Item) -> None:
        """The retry thread looks once more while the file is claimed."""
        for _ in range(2):  # the first of them may have begun before the claim
            ticked.clear()
            house.retry.wake()
            assert ticked.wait(20)
        vanished(item)

    monkeypatch.setattr(house.results, "vanished", late)
    failing_file(house)

    eventually(lambda: house.stats.vanished == 1, timeout_s=20)


def test_a_retry_of_a_slow_directory_without_room_is_given_back(new: NewHouse) -> None:
    """An event tells of it while the directory hangs and its lane is full: the retry thread has to find it again."""
    house = new("house", started=False, size=1)
    house.components.slow.any, house.components.slow._mounts = True, ("nfs/",)
    house.drop("nfs/a")
    assert set(claims(house).take(["nfs/a"])) == {"nfs/a"}
    house.record(a_retry("nfs/a", identity=house.identity("nfs/a"), next_attempt=0.0))
    house.offer("nfs/other")
    with house.ledger.reader() as reader:
        house.settle_thread._step([Ripe("nfs/a")], reader)
        assert house.ledger.flush(30)

        assert house.inbox.listing(2) == (["nfs/other"], [])
        assert [row.path for row in reader.due(time.time(), 2)] == ["nfs/a"]


def test_a_success_releases_what_a_daemon_that_is_gone_has_parked_without_proof(new: NewHouse) -> None:
    """Each daemon releases its own such files; those of one that has ended have nobody else."""
    first, second = new("first"), new("second", started=False)
    lease = cast("Any", first.ledger).lease
    first.drop("sent")
    first.settle.add("sent")
    eventually(lambda: first.stats.uploaded == 1)
    lease.renewed = 0.0
    assert first.ledger.flush(30)
    second.drop("a")
    assert set(claims(second).take(["a"])) == {"a"}
    second.record(a_retry("a", identity=second.identity("a"), state=State.PARKED, next_attempt=0.0, provisional=True))
    second.close()
    lease.renewed = 0.0
    assert first.ledger.flush(30)

    first.drop("more")
    first.settle.add("more")

    eventually(lambda: first.stats.uploaded == 3, timeout_s=20)


def test_race_the_destination_is_well_again_while_files_are_left_to_others(
    new: NewHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either they are not left out after all, or a scan looks for them."""
    house = new("house", started=False)
    listener = cast("Any", house.ledger)._membership.listener
    looks = iter([True])

    def closes_after_a_look() -> bool:
        was_open = next(looks, False)
        if was_open:
            listener.destination_changed()
        return was_open

    monkeypatch.setattr(CircuitBreaker, "open", property(lambda _: closes_after_a_look()), raising=False)

    assert listener.room() is None or house.rescans == ["takeover"]


def test_the_claim_of_a_file_that_is_gone_is_given_back(new: NewHouse) -> None:
    """No row is left of it."""
    first, second = new("first"), new("second", started=False)
    first.settle.add("gone")
    eventually(lambda: first.stats.vanished == 1)
    first.quiet()
    assert first.ledger.flush(30)

    assert set(claims(second).take(["gone"])) == {"gone"}


def test_a_due_file_is_tried_by_one_daemon(new: NewHouse) -> None:
    """Both see that it is due; one claims it."""
    first, second = new("first"), new("second", started=False)
    first.drop("a")
    first.bucket.down = UploadError("put", "a", "Odd", "no", Scope.FILE)
    first.settle.add("a")
    eventually(lambda: first.stats.failed == 1)
    first.bucket.down = None
    second.start(second.retry)

    eventually(lambda: first.stats.uploaded == 1 or second.inbox.counts() == (1, 0))
    second.retry.wake()
    assert first.ledger.flush(30)
    with first.ledger.reader() as reader:
        assert reader.due(2e9, 10) == []


@pytest.mark.parametrize("lives", [True, False])
def test_a_removal_of_a_living_daemon_is_left_alone(new: NewHouse, lives: bool) -> None:
    """That of a dead one is undone: the file may never have been sent."""
    first, second = new("first", started=False), new("second", started=False)
    aside = f".s3spool-removing-{first.ledger.owner}.a"
    first.drop(aside)
    if not lives:
        first.close()
    second.start(second.scan)

    second.scan.want("request")
    eventually(lambda: second.scan.finished == 1)

    left = set(os.listdir(second.root)) - {marker_name(os.uname().nodename)}
    assert left == {aside if lives else "a"}


def test_a_removal_carries_the_number_of_its_daemon(new: NewHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that others can see whether that daemon lives."""
    house = new("house", started=False)
    house.drop("a")
    seen: list[str] = []
    unlink = os.unlink

    def watched(name: str, *, dir_fd: int | None = None) -> None:
        seen.append(name)
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", watched)
    assert house.folder.unlink_if_same("a", house.identity("a"))

    assert seen == [f".s3spool-removing-{house.ledger.owner}.a"]


def test_a_file_that_was_sent_elsewhere_is_not_sent_again(new: NewHouse) -> None:
    """Its identity leaves out the number of the device, which each host gives itself."""
    first, second = new("first"), new("second", started=False)
    second.start(second.scan)
    first.drop("a")
    first.settle.add("a")
    eventually(lambda: first.stats.uploaded == 1)
    assert first.ledger.flush(30)

    second.scan.want("request")
    eventually(lambda: second.scan.finished == 1)

    assert second.inbox.counts() == (0, 0)
    with second.ledger.reader() as reader:
        known = reader.known(["a"])["a"]
        assert known.receipt is not None
        assert known.receipt.identity == second.identity("a")


def failing_file(house: House) -> None:
    """`a` waits for its next try, and is no longer where this daemon looks."""
    house.drop("a")
    house.bucket.down = UploadError("put", "a", "Odd", "no", Scope.FILE)
    house.settle.add("a")
    eventually(lambda: house.stats.failed >= 1)
    assert house.ledger.flush(30)
    (house.root / "a").unlink()


def waiting(house: House) -> list[str]:
    with house.ledger.reader() as reader:
        return [row.path for row in reader.retries()]


def test_a_failed_file_that_is_not_found_keeps_its_retry_for_a_minute(
    new: NewHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This host may see the folder late, and another daemon may see the file: it is offered to that daemon."""
    house = new("house")
    failing_file(house)
    eventually(lambda: house.retry.missing._missed)
    house.quiet()
    assert waiting(house) == ["a"]
    assert house.stats.vanished == 0

    monkeypatch.setattr(missing, "LATE_S", 3.0)  # more than the pause between two ticks
    monkeypatch.setattr(missing, "PAUSE_S", 0.1)
    eventually(lambda: house.stats.vanished == 1)
    assert house.ledger.flush(30)
    assert waiting(house) == []


def test_a_daemon_in_another_folder_ends_no_retry_upload_or_receipt(
    new: NewHouse, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker of another node is not here: what this daemon does not find, that one may see."""
    monkeypatch.setattr(missing, "LATE_S", 0.0)
    monkeypatch.setattr(missing, "PAUSE_S", 0.1)
    house = new("house")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "INSERT INTO nodes (destination, name, alive_until, marker)"
            " VALUES (1, 'other', now() + interval '1 h', 'its content')"
        )
    house.drop("sent")
    house.settle.add("sent")
    eventually(lambda: house.stats.uploaded == 1)
    (house.root / "sent").unlink()
    failing_file(house)
    looks = mock.Mock(wraps=house.retry.missing.is_gone)
    monkeypatch.setattr(house.retry.missing, "is_gone", looks)
    eventually(lambda: looks.call_count >= 3)
    state = StateConfig(directory=house.root, receipt_days=0)
    sees_all = house.components.marker.sees_all
    large = mock.Mock()
    DailyCleaning(house.folder, large, house.ledger, state, lambda _: False, sees_all).clean()
    assert house.ledger.flush(30)

    assert waiting(house) == ["a"]
    assert house.stats.vanished == 0
    assert not large.sweep.called
    with house.ledger.reader() as reader:
        assert reader.known(["sent"])


def test_a_scan_ends_the_claims_of_dead_daemons(new: NewHouse, url: str) -> None:
    """On files that are gone: no row is left of them."""
    dead, house = new("dead", started=False), new("house", started=False)
    assert set(claims(dead).take(["gone"])) == {"gone"}
    dead.close()
    house.start(house.scan)
    house.scan.want("request")
    eventually(lambda: house.scan.finished >= 1)
    assert house.ledger.flush(30)

    with psycopg.connect(url) as db:
        assert db.execute("SELECT path FROM files").fetchall() == []
