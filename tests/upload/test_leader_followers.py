"""One worker leads: who is woken, how many requests are in flight, and what becomes of the others when one fails."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, cast

import pytest

from s3spool.s3.multi_client import MultiClient
from s3spool.upload.leader_followers import BATCH, LeaderFollowers
from support.memory_bucket import MemoryCarrier
from support.waiting import eventually, in_threads


class Sender:
    """Its answer comes when the test says so."""

    def __init__(self) -> None:
        self.answer = threading.Semaphore(0)

    def send(self) -> None:
        assert self.answer.acquire(timeout=60)


class Members:
    """Workers with a number of files each, one after the other, and what they saw."""

    def __init__(self, slots: int, files: int = 1) -> None:
        self.gate = threading.Lock()
        self.multiplexer = MemoryCarrier()
        self.pool = LeaderFollowers(
            cast("MultiClient", self.multiplexer), self.gate, slots, self.arrived, lambda slot: self.left[slot] > 0
        )
        self.senders = [Sender() for _ in range(slots)]
        self.left = [files] * slots
        self.handled_by: dict[int, list[str]] = {slot: [] for slot in range(slots)}
        self.mistakes: dict[int, BaseException] = {}
        self.ended: dict[int, Any] = {}
        self.threads: dict[int, threading.Thread] = {}

    def arrived(self, slot: int, sender: Any) -> bool:
        assert self.gate.locked()
        assert sender is self.senders[slot]
        self.handled_by[slot].append(threading.current_thread().name)
        if mistake := self.mistakes.get(slot):
            raise mistake
        self.left[slot] -= 1
        return True

    def submit(self, slot: int) -> None:
        def join() -> None:
            with self.gate:
                self.pool.submit(slot, self.senders[slot])  # type: ignore[arg-type]
            try:
                self.ended[slot] = self.pool.join(slot)
            except BaseException as exc:  # noqa: BLE001 - the test looks at it
                self.ended[slot] = exc

        self.threads[slot] = threading.Thread(target=join, name=f"member-{slot}", daemon=True)
        self.threads[slot].start()
        eventually(lambda: slot in self.pool.members() or slot in self.ended)

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
def members() -> Iterator[Members]:
    made = Members(4)
    yield made
    for slot in range(4):
        made.answer(slot)
    made.wait(*made.threads)


@pytest.mark.parametrize(
    ("order", "handlers"),
    [
        # The first leads for all; each worker is woken when its own answer has come.
        ((2, 1, 0), {0: "member-0", 1: "member-0", 2: "member-0"}),
        # A leader without a next file promotes another: its worker is free for other work at once.
        ((0, 2, 1), {0: "member-0", 1: "member-1", 2: "member-1"}),
    ],
)
def test_one_thread_handles_all_answers(members: Members, order: tuple[int, ...], handlers: dict[int, str]) -> None:
    """That of the first, as long as its own answer has not come."""
    for slot in range(3):
        members.submit(slot)
    assert members.pool.leader == 0

    members.end(*order)

    assert members.ended == dict.fromkeys(order, True)
    assert members.handled_by == {slot: [handler] for slot, handler in handlers.items()} | {3: []}
    assert not members.pool.members()


def test_the_first_after_a_pause_leads(members: Members) -> None:
    """Whoever it is."""
    members.submit(0)
    members.end(0)
    members.submit(3)

    assert members.pool.leader == 3
    members.end(3)
    assert members.ended == {0: True, 3: True}


def test_a_worker_sends_file_after_file_without_being_woken() -> None:
    """Its next file goes with its own sender, right after the answer to the last."""
    members = Members(2, files=50)
    members.submit(0)
    members.submit(1)
    for _ in range(50):
        members.answer(0)
        members.answer(1)
    members.wait(0, 1)

    assert [len(handled) for handled in members.handled_by.values()] == [50, 50]
    assert members.ended == {0: True, 1: True}


def test_what_goes_wrong_with_one_file_is_raised_in_its_own_worker(members: Members) -> None:
    """Neither the leader nor the others come to harm."""
    members.mistakes[1] = ValueError("a bug")
    for slot in range(3):
        members.submit(slot)

    members.end(1, 2, 0)

    assert members.ended[1] is members.mistakes[1]
    assert (members.ended[0], members.ended[2]) == (True, True)


def test_a_leader_that_dies_of_its_own_file_promotes_another(members: Members) -> None:
    """The others go on."""
    members.mistakes[0] = ValueError("a bug")
    members.submit(0)
    members.submit(1)

    members.end(0, 1)

    assert members.ended == {0: members.mistakes[0], 1: True}
    assert members.handled_by[1] == ["member-1"]


def test_a_leader_that_dies_of_the_event_loop_lets_all_know(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for an answer that nobody waits for; the next one starts afresh."""
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
    assert (members.pool.leader, members.pool.members()) == (None, set())
    members.senders[2] = Sender()
    members.submit(2)
    members.end(2)
    assert members.ended[2] is True


def test_many_workers_in_a_crowd_lose_no_call() -> None:
    """Joining, leaving and promoting at random: each stay ends once, and each answer is handled once."""
    slots, rounds = 16, 60
    members = Members(slots, files=10**9)
    stays: Counter[int] = Counter()
    lock = threading.Lock()

    def arrived(slot: int, _sender: Any) -> bool:
        members.left[slot] -= 1
        return members.left[slot] % 3 != 0  # every third file is the last of a stay

    pool = LeaderFollowers(cast("MultiClient", members.multiplexer), members.gate, slots, arrived, lambda _: True)

    def worker(slot: int) -> None:
        sender = members.senders[slot]
        for _ in range(rounds):
            for _ in range(3):
                sender.answer.release()
            with members.gate:
                pool.submit(slot, sender)  # type: ignore[arg-type]
            assert pool.join(slot)
            with lock:
                stays[slot] += 1

    members.left = [3 * rounds] * slots
    in_threads(slots, worker)

    assert stays == dict.fromkeys(range(slots), rounds)
    assert members.left == [0] * slots
    assert (pool.leader, pool.members()) == (None, set())


class FastServer:
    """Answers all requests at each poll, so that the leader is never without an answer; `answers` then ends that."""

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.in_flight: list[Any] = []
        self.crowds: list[int] = []  # requests sent, and their answers not handled yet, at each poll
        self.waited_with: list[int] = []  # the same, as the leader had nothing left to do

    def poll(self, pending: deque[Any], done: deque[Any], *, wait: bool) -> None:
        self.in_flight += pending
        pending.clear()
        self.crowds.append(len(self.in_flight) + len(done))
        if wait:
            self.waited_with.append(len(self.in_flight))
        if wait or self.answers > 0:
            self.answers -= len(self.in_flight)
            done.extend(self.in_flight)
            self.in_flight.clear()

    def wake(self) -> None:
        """It never blocks."""


def run_all(server: FastServer, slots: int, files: int) -> Counter[int]:
    """Send so many files in so many slots; return the files of each slot."""
    gate, left, sent = threading.Lock(), [files], Counter[int]()

    def arrived(slot: int, _sender: Any) -> bool:
        sent[slot] += 1
        return True

    def begin_next(_slot: int) -> bool:
        left[0] -= 1
        return left[0] >= 0

    pool = LeaderFollowers(cast("MultiClient", server), gate, slots, arrived, begin_next)
    with gate:
        left[0] -= slots
        for slot in range(slots):
            pool.submit(slot, object())  # type: ignore[arg-type]
    in_threads(slots, pool.join)
    assert (pool.leader, pool.members()) == (None, set())
    return sent


def test_a_fast_server_gets_only_as_many_requests_as_keep_the_leader_busy() -> None:
    """A hundred connections in turn cost more CPU than twenty."""
    server = FastServer(answers=10_000)

    sent = run_all(server, 100, 10_000)

    assert sent.total() == 10_000
    assert max(server.crowds) == 100
    assert max(server.crowds[10:]) <= 2 * BATCH


def test_the_leader_never_waits_while_a_worker_could_send_the_next_file() -> None:
    """Once the server is slow again, all hundred workers send."""
    server = FastServer(answers=5_000)

    sent = run_all(server, 100, 10_000)

    assert sent.total() == 10_000
    assert set(server.waited_with[:20]) == {100}
