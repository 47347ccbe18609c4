"""Small files ride together: who drives, who is woken, and what becomes of the others when one fails."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, cast

import pytest

from s3spool.s3.multi_client import MultiClient
from s3spool.upload.leader_followers import LeaderFollowers
from support.memory_bucket import MemoryCarrier
from support.waiting import eventually, in_threads


class Sender:
    """Its answer comes when the test says so."""

    def __init__(self) -> None:
        self.answer = threading.Semaphore(0)

    def send(self) -> None:
        assert self.answer.acquire(timeout=60)


class Riders:
    """Workers that board, each with a number of files one after the other, and what they saw."""

    def __init__(self, slots: int, files: int = 1) -> None:
        self.gate = threading.Lock()
        self.multiplexer = MemoryCarrier()
        self.wheel = LeaderFollowers(cast("MultiClient", self.multiplexer), self.gate, slots, self.arrived)
        self.senders = [Sender() for _ in range(slots)]
        self.left = [files] * slots
        self.judged_by: dict[int, list[str]] = {slot: [] for slot in range(slots)}
        self.mistakes: dict[int, BaseException] = {}
        self.ended: dict[int, Any] = {}
        self.threads: dict[int, threading.Thread] = {}

    def arrived(self, slot: int, sender: Any) -> bool:
        assert self.gate.locked()
        assert sender is self.senders[slot]
        self.judged_by[slot].append(threading.current_thread().name)
        if mistake := self.mistakes.get(slot):
            raise mistake
        self.left[slot] -= 1
        return self.left[slot] > 0

    def submit(self, slot: int) -> None:
        def join() -> None:
            with self.gate:
                self.wheel.submit(slot, self.senders[slot])  # type: ignore[arg-type]
            try:
                self.ended[slot] = self.wheel.join(slot)
            except BaseException as exc:  # noqa: BLE001 - the test looks at it
                self.ended[slot] = exc

        self.threads[slot] = threading.Thread(target=join, name=f"member-{slot}", daemon=True)
        self.threads[slot].start()
        eventually(lambda: slot in self.wheel.members() or slot in self.ended)

    def answer(self, slot: int) -> None:
        self.senders[slot].answer.release()

    def end(self, *slots: int) -> None:
        """One after the other."""
        for slot in slots:
            self.answer(slot)
            self.wait(slot)

    def wait(self, *slots: int) -> None:
        for slot in slots:
            self.threads[slot].join(60)
            assert not self.threads[slot].is_alive()


@pytest.fixture
def members() -> Iterator[Riders]:
    made = Riders(4)
    yield made
    for slot in range(4):
        made.answer(slot)
    made.wait(*made.threads)


@pytest.mark.parametrize(
    ("order", "judges"),
    [
        # The first to board drives for all; each worker is woken when its own answer has come.
        ((2, 1, 0), {0: "member-0", 1: "member-0", 2: "member-0"}),
        # A driver whose ride is over hands the wheel over: its worker is free for other files at once.
        ((0, 2, 1), {0: "member-0", 1: "member-1", 2: "member-1"}),
    ],
)
def test_one_thread_judges_all_answers(members: Riders, order: tuple[int, ...], judges: dict[int, str]) -> None:
    """That of the first to board, as long as its own answer has not come."""
    for slot in range(3):
        members.submit(slot)
    assert members.wheel.leader == 0

    members.end(*order)

    assert members.ended == dict.fromkeys(order, True)
    assert members.judged_by == {slot: [judge] for slot, judge in judges.items()} | {3: []}
    assert not members.wheel.members()


def test_the_wheel_stands_still_without_riders_and_starts_again(members: Riders) -> None:
    """Boarding again after all have left begins with another driver."""
    members.submit(0)
    members.end(0)
    members.submit(3)

    assert members.wheel.leader == 3
    members.end(3)
    assert members.ended == {0: True, 3: True}


def test_a_worker_sends_file_after_file_without_being_woken() -> None:
    """Its next file rides on its own sender, in the same turn in which the answer to the last was judged."""
    members = Riders(2, files=50)
    members.submit(0)
    members.submit(1)
    for _ in range(50):
        members.answer(0)
        members.answer(1)
    members.wait(0, 1)

    assert [len(judged) for judged in members.judged_by.values()] == [50, 50]
    assert members.ended == {0: True, 1: True}


def test_what_goes_wrong_with_one_file_is_raised_in_its_own_worker(members: Riders) -> None:
    """Neither the driver nor the other riders come to harm."""
    members.mistakes[1] = ValueError("a bug")
    for slot in range(3):
        members.submit(slot)

    members.end(1, 2, 0)

    assert members.ended[1] is members.mistakes[1]
    assert (members.ended[0], members.ended[2]) == (True, True)


def test_a_driver_that_dies_of_its_own_file_hands_the_wheel_over(members: Riders) -> None:
    """The others ride on."""
    members.mistakes[0] = ValueError("a bug")
    members.submit(0)
    members.submit(1)

    members.end(0, 1)

    assert members.ended == {0: members.mistakes[0], 1: True}
    assert members.judged_by[1] == ["member-1"]


def test_a_driver_that_dies_at_the_wheel_lets_all_know(members: Riders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for an answer that nobody listens to; the next to board starts afresh."""
    poll = members.multiplexer.poll
    broken = threading.Event()

    def breaks(pending: deque[Any], over: deque[Any], *, wait: bool) -> None:
        poll(pending, over, wait=wait)
        if broken.is_set():
            broken.clear()
            raise MemoryError

    monkeypatch.setattr(members.multiplexer, "poll", breaks)
    for slot in range(3):
        members.submit(slot)
    broken.set()
    members.multiplexer.wake()
    members.wait(0, 1, 2)

    assert isinstance(members.ended[0], MemoryError)
    assert (members.ended[1], members.ended[2]) == (False, False)
    assert (members.wheel.leader, members.wheel.members()) == (None, set())
    members.senders[2] = Sender()
    members.submit(2)
    members.end(2)
    assert members.ended[2] is True


def test_many_riders_in_a_crowd_lose_no_call() -> None:
    """Boarding, leaving and handing over at random: each ride ends once, and each answer is judged once."""
    slots, rounds = 16, 60
    members = Riders(slots, files=10**9)
    rides: Counter[int] = Counter()
    lock = threading.Lock()

    def arrived(slot: int, _sender: Any) -> bool:
        members.left[slot] -= 1
        return members.left[slot] % 3 != 0  # every third file is the last of a ride

    wheel = LeaderFollowers(cast("MultiClient", members.multiplexer), members.gate, slots, arrived)

    def worker(slot: int) -> None:
        sender = members.senders[slot]
        for _ in range(rounds):
            for _ in range(3):
                sender.answer.release()
            with members.gate:
                wheel.submit(slot, sender)  # type: ignore[arg-type]
            assert wheel.join(slot)
            with lock:
                rides[slot] += 1

    members.left = [3 * rounds] * slots
    in_threads(slots, worker)

    assert rides == dict.fromkeys(range(slots), rounds)
    assert members.left == [0] * slots
    assert (wheel.leader, wheel.members()) == (None, set())
