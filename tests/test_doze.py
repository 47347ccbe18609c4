"""An idle supervisor sleeps, and is told of all that it would otherwise look for."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from s3spool.daemon.idle import DOZE_S, LOST_TICK_S, TICK_S, Doze
from s3spool.daemon.liveness import Pulse
from s3spool.daemon.path_monitor import Tripwire
from s3spool.logs import excepthooks
from support.house import House
from support.rows import a_receipt
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WATCHED = SimpleNamespace(lost=False, watch=object())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    above, link = tmp_path / "above", tmp_path / "link"
    (above / "below").mkdir(parents=True)
    link.symlink_to(above)
    house = House(above / "below")
    house.ledger.path = link / "below" / house.ledger.path.name
    house.start(house.ledger)
    yield house
    house.close()


@pytest.fixture
def doze(house: House) -> Iterator[Doze]:
    doze = Doze(house)  # type: ignore[arg-type] # all that it needs of the rooms
    doze.arm()
    yield doze
    doze.close()


def duration_s(doze: Doze, *, watch_manager: Any = WATCHED, oldest_ns: int = 0, pulse: Pulse | None = None) -> float:
    return doze._duration_s(watch_manager, SimpleNamespace(oldest_ns=oldest_ns), pulse or Pulse({}))  # type: ignore[arg-type]


def asleep(doze: Doze) -> threading.Thread:
    """A thread that sleeps for minutes unless something happens."""
    backlog: Any = SimpleNamespace(oldest_ns=0)
    watch_manager: Any = WATCHED
    thread = threading.Thread(target=doze.sleep, args=(watch_manager, backlog, Pulse({}), DOZE_S))
    thread.start()
    eventually(lambda: doze._rooms.inbox.stirred is not None)
    return thread


def rename_above(house: House) -> None:
    above = house.root.parents[1]
    above.rename(above.with_name("elsewhere"))


def remove_the_folder(house: House) -> None:
    house.root.rmdir()


def link_elsewhere(house: House) -> None:
    link = house.root.parents[2] / "link"
    other = link.with_name("other link")
    other.symlink_to(".")
    other.replace(link)


def delete_the_ledger(house: House) -> None:
    house.ledger.path.unlink()


def delete_its_log(house: House) -> None:
    house.ledger.path.with_name("ledger.sqlite3-wal").unlink()


def replace_the_ledger(house: House) -> None:
    other = house.ledger.path.with_name("other")
    other.write_bytes(house.ledger.path.read_bytes())
    other.rename(house.ledger.path)


def touch_the_ledger(house: House) -> None:
    with house.ledger.path.open("ab"):
        pass


def offer_a_file(house: House) -> None:
    house.offer("a")


def claim_a_file(house: House) -> None:
    assert house.inbox.claim("a")


HAPPENINGS = [
    rename_above,
    remove_the_folder,
    link_elsewhere,
    delete_the_ledger,
    delete_its_log,
    replace_the_ledger,
    touch_the_ledger,
    offer_a_file,
    claim_a_file,
]


@pytest.mark.parametrize("happens", HAPPENINGS, ids=lambda happens: happens.__name__)
def test_what_wakes_it(house: House, doze: Doze, happens: Callable[[House], None]) -> None:
    """No timer does: it would sleep for minutes."""
    thread = asleep(doze)

    happens(house)

    thread.join(30)
    assert not thread.is_alive()
    assert duration_s(doze) == TICK_S, "what has begun is looked at again soon"


def test_a_dead_thread_wakes_it(doze: Doze, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is: the supervisor replaces it, or has systemd restart the service."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    excepthooks.tell(then=doze.wake)
    thread = asleep(doze)

    dying = threading.Thread(target=lambda: 1 / 0)
    dying.start()
    dying.join(10)

    thread.join(30)
    excepthooks.tell_no_more()
    assert not thread.is_alive()


def test_our_own_writing_does_not_wake_it(house: House, doze: Doze) -> None:
    """Commits and checkpoints change the ledger's files, but not which files they are."""
    for number in range(3000):
        house.ledger.record_receipt(a_receipt(f"{number}"))
    assert house.ledger.flush(30)

    assert not doze._tripwire.disturbed(doze._tripwire.readable, [])


def test_while_something_is_under_way_it_looks_every_few_seconds(house: House, doze: Doze) -> None:
    """Or while it is not told of everything: then it has to look for itself."""
    mute = Pulse({"mute": lambda _answer: None})
    assert duration_s(doze) == DOZE_S

    assert duration_s(doze, oldest_ns=1) == TICK_S
    assert duration_s(doze, watch_manager=SimpleNamespace(lost=False, watch=None)) == TICK_S
    assert duration_s(doze, watch_manager=SimpleNamespace(lost=True, watch=None)) == LOST_TICK_S
    house.settle.add("a")
    assert duration_s(doze) == TICK_S
    house.settle.due(1e12)
    assert duration_s(doze) == DOZE_S
    mute.silent(0.0)
    assert duration_s(doze, pulse=mute) == TICK_S
    doze.close()
    doze.arm()
    assert duration_s(doze) == TICK_S


def test_it_does_not_sleep_over_what_it_has_told(house: House, doze: Doze) -> None:
    """A file that was on its way at the last look, and has ended since, is still in the line for `systemctl status`."""
    assert house.inbox.claim("a")
    doze.arm()
    house.inbox.done("a")
    assert duration_s(doze) == TICK_S

    doze.arm()

    assert duration_s(doze) == DOZE_S


def test_what_is_new_under_an_old_name_is_watched(house: House, tmp_path: Path) -> None:
    """After each arming, whatever was there before."""
    house.ledger.path.rename(tmp_path / "first")
    tripwire = Tripwire(house.root, house.ledger.path)
    tripwire.arm()
    assert not tripwire.armed
    (tmp_path / "first").rename(house.ledger.path)

    tripwire.arm()
    assert tripwire.armed
    house.ledger.path.rename(tmp_path / "first")

    assert tripwire.disturbed(tripwire.readable, [])
    tripwire.close()


def test_an_answer_in_time(doze: Doze) -> None:
    """Rooms that were asked a moment ago are given a moment before the supervisor goes to sleep."""
    asked: list[Callable[[], None]] = []
    pulse = Pulse({"slow": asked.append, "quick": lambda answer: answer()})
    pulse.silent(0.0)

    answering = threading.Timer(0.05, asked[0])
    answering.start()

    assert pulse.all_answer(30)
    answering.join(10)
    assert duration_s(doze, pulse=pulse) == DOZE_S


def test_a_mount_somewhere_else_does_not_wake_it(doze: Doze) -> None:
    """A machine that mounts all the time must not keep the supervisor awake."""
    tripwire = doze._tripwire

    assert not tripwire.disturbed([], tripwire.exceptional)

    tripwire._there = [None, None]
    assert tripwire.disturbed([], tripwire.exceptional)


def test_what_is_nothing_to_us_puts_nothing_off(doze: Doze, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that mounts all the time must not make us late for systemd's watchdog."""
    monkeypatch.setattr(Tripwire, "disturbed", lambda *_: False)
    always, other = os.pipe()
    os.write(other, b"!")
    monkeypatch.setattr(Tripwire, "readable", [always])
    backlog: Any = SimpleNamespace(oldest_ns=0)
    watch_manager: Any = WATCHED

    doze.sleep(watch_manager, backlog, Pulse({}), 0.05)

    os.close(always)
    os.close(other)
