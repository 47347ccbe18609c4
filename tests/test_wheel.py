"""Small files ride together: who drives, who is woken, and what becomes of the others when one fails."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from s3spool.upload.leader_followers import Wheel
from support.memory_bucket import MemoryCarrier
from support.waiting import eventually

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator


class Sender:
    """Its answer comes when the test says so."""

    def __init__(self) -> None:
        self.answer = threading.Semaphore(0)

    def send(self) -> None:
        assert self.answer.acquire(timeout=60)


class Riders:
    """Workers that board, each with a number of files one after the other, and what they saw."""

    def __init__(self, seats: int, files: int = 1) -> None:
        self.gate = threading.Lock()
        self.carrier = MemoryCarrier()
        self.wheel = Wheel(self.carrier, self.gate, seats, self.arrived)
        self.senders = [Sender() for _ in range(seats)]
        self.left = [files] * seats
        self.judged_by: dict[int, list[str]] = {seat: [] for seat in range(seats)}
        self.mistakes: dict[int, BaseException] = {}
        self.ended: dict[int, Any] = {}
        self.threads: dict[int, threading.Thread] = {}

    def arrived(self, seat: int, sender: Any) -> bool:
        assert self.gate.locked()
        assert sender is self.senders[seat]
        self.judged_by[seat].append(threading.current_thread().name)
        if mistake := self.mistakes.get(seat):
            raise mistake
        self.left[seat] -= 1
        return self.left[seat] > 0

    def board(self, seat: int) -> None:
        def ride() -> None:
            with self.gate:
                self.wheel.board(seat, self.senders[seat])  # type: ignore[arg-type]
            try:
                self.ended[seat] = self.wheel.ride(seat)
            except BaseException as exc:  # noqa: BLE001 - the test looks at it
                self.ended[seat] = exc

        self.threads[seat] = threading.Thread(target=ride, name=f"rider-{seat}", daemon=True)
        self.threads[seat].start()
        eventually(lambda: seat in self.wheel.riders() or seat in self.ended)

    def answer(self, seat: int) -> None:
        self.senders[seat].answer.release()

    def wait(self, *seats: int) -> None:
        for seat in seats:
            self.threads[seat].join(60)
            assert not self.threads[seat].is_alive()


@pytest.fixture
def riders() -> Iterator[Riders]:
    made = Riders(4)
    yield made
    for seat in range(4):
        made.answer(seat)
    made.wait(*made.threads)


def test_the_first_to_board_drives_for_all(riders: Riders) -> None:
    """One thread judges all answers; each worker is woken when its own has come."""
    for seat in range(3):
        riders.board(seat)
    assert riders.wheel.driver == 0

    riders.answer(2)
    riders.wait(2)
    riders.answer(1)
    riders.wait(1)
    riders.answer(0)
    riders.wait(0)

    assert riders.ended == {0: True, 1: True, 2: True}
    assert riders.judged_by == {0: ["rider-0"], 1: ["rider-0"], 2: ["rider-0"], 3: []}
    assert not riders.wheel.riders()


def test_a_driver_whose_ride_is_over_hands_the_wheel_over(riders: Riders) -> None:
    """Its worker is free for other files at once, however long those of the others take."""
    for seat in range(3):
        riders.board(seat)

    riders.answer(0)
    riders.wait(0)
    eventually(lambda: riders.wheel.driver == 1)
    riders.answer(2)
    riders.wait(2)
    riders.answer(1)
    riders.wait(1)

    assert riders.judged_by == {0: ["rider-0"], 1: ["rider-1"], 2: ["rider-1"], 3: []}


def test_the_wheel_stands_still_without_riders_and_starts_again(riders: Riders) -> None:
    """Boarding again after all have left begins with another driver."""
    riders.board(0)
    riders.answer(0)
    riders.wait(0)
    riders.board(3)

    assert riders.wheel.driver == 3
    riders.answer(3)
    riders.wait(3)
    assert riders.ended == {0: True, 3: True}


def test_who_boards_while_another_drives_is_taken_along(riders: Riders) -> None:
    """A driver that waits for answers notices."""
    riders.board(0)
    riders.board(1)

    riders.answer(1)
    riders.wait(1)

    assert riders.judged_by[1] == ["rider-0"]


def test_a_worker_sends_file_after_file_without_being_woken() -> None:
    """Its next file rides on its own sender, in the same turn in which the answer to the last was judged."""
    riders = Riders(2, files=50)
    riders.board(0)
    riders.board(1)
    for _ in range(50):
        riders.answer(0)
        riders.answer(1)
    riders.wait(0, 1)

    assert [len(judged) for judged in riders.judged_by.values()] == [50, 50]
    assert riders.ended == {0: True, 1: True}


def test_what_goes_wrong_with_one_file_is_raised_in_its_own_worker(riders: Riders) -> None:
    """Neither the driver nor the other riders come to harm."""
    riders.mistakes[1] = ValueError("a bug")
    for seat in range(3):
        riders.board(seat)

    riders.answer(1)
    riders.wait(1)
    riders.answer(2)
    riders.wait(2)
    riders.answer(0)
    riders.wait(0)

    assert riders.ended[1] is riders.mistakes[1]
    assert (riders.ended[0], riders.ended[2]) == (True, True)


def test_a_driver_that_dies_of_its_own_file_hands_the_wheel_over(riders: Riders) -> None:
    """The others ride on."""
    riders.mistakes[0] = ValueError("a bug")
    riders.board(0)
    riders.board(1)

    riders.answer(0)
    riders.wait(0)
    riders.answer(1)
    riders.wait(1)

    assert riders.ended == {0: riders.mistakes[0], 1: True}
    assert riders.judged_by[1] == ["rider-1"]


def test_a_driver_that_dies_at_the_wheel_lets_all_know(riders: Riders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for an answer that nobody listens to; the next to board starts afresh."""
    turn = riders.carrier.turn
    broken = threading.Event()

    def breaks(boarding: deque[Any], over: deque[Any], *, wait: bool) -> None:
        turn(boarding, over, wait=wait)
        if broken.is_set():
            broken.clear()
            raise MemoryError

    monkeypatch.setattr(riders.carrier, "turn", breaks)
    for seat in range(3):
        riders.board(seat)
    broken.set()
    riders.carrier.wake()
    riders.wait(0, 1, 2)

    assert isinstance(riders.ended[0], MemoryError)
    assert (riders.ended[1], riders.ended[2]) == (False, False)
    assert (riders.wheel.driver, riders.wheel.riders()) == (None, set())
    riders.senders[2] = Sender()
    riders.board(2)
    riders.answer(2)
    riders.wait(2)
    assert riders.ended[2] is True


def test_many_riders_in_a_crowd_lose_no_call() -> None:
    """Boarding, leaving and handing over at random: each ride ends once, and each answer is judged once."""
    seats, rounds = 16, 60
    riders = Riders(seats, files=10**9)
    rides: Counter[int] = Counter()
    lock = threading.Lock()

    def arrived(seat: int, _sender: Any) -> bool:
        riders.left[seat] -= 1
        return riders.left[seat] % 3 != 0  # every third file is the last of a ride

    wheel = Wheel(riders.carrier, riders.gate, seats, arrived)

    def worker(seat: int) -> None:
        sender = riders.senders[seat]
        for _ in range(rounds):
            for _ in range(3):
                sender.answer.release()
            with riders.gate:
                wheel.board(seat, sender)  # type: ignore[arg-type]
            assert wheel.ride(seat)
            with lock:
                rides[seat] += 1

    riders.left = [3 * rounds] * seats
    threads = [threading.Thread(target=worker, args=(seat,), daemon=True) for seat in range(seats)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert rides == dict.fromkeys(range(seats), rounds)
    assert riders.left == [0] * seats
    assert (wheel.driver, wheel.riders()) == (None, set())
