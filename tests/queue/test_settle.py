"""Waiting until a file is left alone: who is due when, and that the settle thread is woken for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from s3spool.ledger.rows import Identity
from s3spool.queue.settle import BATCH, BUSY_PER_S, BUSY_S, CREATED_S, Ripe, Settle, SettleReason
from support.rows import SOME
from support.waiting import eventually

PATHS = st.sampled_from(["a", "b", "c", "d", "e", "f"])
SEEN = st.sampled_from([None, SOME, Identity(1, 2, 3, 4, 5)])


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SettleAgainstModel(RuleBasedStateMachine):
    """Settle is a dict of path -> (why, due, seen), and nothing more."""

    @initialize(settle_s=st.sampled_from([0.0, 0.05, 1.0, 60.0]), size=st.integers(1, 5))
    def start(self, settle_s: float, size: int) -> None:
        self.clock = Clock()
        self.size = size
        self.settle = Settle(settle_s, size, clock=self.clock)
        self.delays = {
            SettleReason.CHANGED: settle_s,
            SettleReason.CREATED: max(settle_s, CREATED_S),
            SettleReason.BUSY: max(settle_s, BUSY_S),
        }
        self.last_busy_at = 0.0
        self.model: dict[str, tuple[SettleReason, float, Identity | None]] = {}

    @rule(path=PATHS, quiet=st.sampled_from(SettleReason), seen=SEEN)
    def touch(self, path: str, quiet: SettleReason, seen: Identity | None) -> None:
        accepted = self.settle.add(path, quiet, seen)

        before = self.model.get(path)
        busy = sum(why is SettleReason.BUSY for why, _, _ in self.model.values())
        crowded = quiet is SettleReason.BUSY and busy > 0 and 2 * busy >= self.size
        assert accepted is (before is not None or (len(self.model) < self.size and not crowded))
        known = before is not None and before[0] is not SettleReason.BUSY
        weaker = quiet is SettleReason.BUSY or (quiet is SettleReason.CREATED and known)
        if accepted and (before is None or not weaker):
            due_at = self.clock.now + self.delays[quiet]
            if quiet is SettleReason.BUSY:
                due_at = self.last_busy_at = max(due_at, self.last_busy_at + 1 / BUSY_PER_S)
            self.model[path] = (quiet, due_at, seen)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.09, 0.5, 1.0, 4.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def take_what_is_due(self) -> None:
        ripe, upcoming = self.settle.due(self.clock.now)

        due = {
            Ripe(path, seen, quiet is SettleReason.BUSY)
            for path, (quiet, due_at, seen) in self.model.items()
            if due_at <= self.clock.now
        }
        assert set(ripe) == due
        assert len(ripe) == len(due)
        for path, _, _ in due:
            del self.model[path]
        assert upcoming == min((due_at for _, due_at, _ in self.model.values()), default=None)

    @invariant()
    def knows_the_same_paths(self) -> None:
        if hasattr(self, "model"):
            assert self.settle.knows("abcdef") == set(self.model)
            assert len(self.settle) == len(self.model) <= self.size
            assert set(self.settle.paths(100)) == set(self.model)
            assert len(self.settle.paths(2)) == min(2, len(self.model))


TestSettleAgainstModel = SettleAgainstModel.TestCase


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def waiting() -> Iterator[list[threading.Thread]]:
    """Threads a test started; they have to end with it."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def consume(settle: Settle, threads: list[threading.Thread]) -> list[list[Ripe]]:
    """A settle thread of the test's own: collects what `wait_due` returns until it says closed."""
    batches: list[list[Ripe]] = []

    def run() -> None:
        while batch := settle.wait_due():
            batches.append(batch)
        batches.append([])

    threads.append(threading.Thread(target=run))
    threads[-1].start()
    return batches


def test_first_come_first_due(clock: Clock) -> None:
    """What was left alone the longest comes out first."""
    settle = Settle(1.0, 10, clock=clock)
    for path in ("b", "a", "c"):
        settle.add(path)
        clock.now += 0.1
    settle.add("b")

    ripe, upcoming = settle.due(clock.now + 1)

    assert [path for path, _, _ in ripe] == ["a", "c", "b"]
    assert upcoming is None


def test_a_batch_is_bounded_and_the_rest_stays_due(clock: Clock) -> None:
    """Ten thousand files that are due at once come out in batches, none is left behind."""
    settle = Settle(0.0, 3 * BATCH, clock=clock)
    for number in range(2 * BATCH + 1):
        settle.add(str(number))

    sizes = [len(settle.due(clock.now)[0]) for _ in range(4)]

    assert sizes == [BATCH, BATCH, 1, 0]


def test_a_crowd_of_busy_files_is_looked_at_at_a_bounded_rate(clock: Clock) -> None:
    """20,000 files that are held open take half of the room, and cost no more looks a second than 500 of them."""
    settle = Settle(0.0, 20_000, clock=clock)
    for number in range(20_000):
        settle.add(str(number), SettleReason.BUSY)

    looks = []
    settled = len(settle)
    for _ in range(60):
        clock.now += 1
        ripe = settle.due(clock.now)[0]
        looks.append(len(ripe))
        for path, _, _ in ripe:
            settle.add(path, SettleReason.BUSY)

    assert settled == 10_000
    assert max(looks) <= BUSY_PER_S
    assert sum(looks) >= 54 * BUSY_PER_S


def test_a_sleeper_is_woken_for_the_first_path(waiting: list[threading.Thread]) -> None:
    """An idle settle thread sleeps without a time-out, so a hint has to wake it."""
    settle = Settle(0.0, 10)
    batches = consume(settle, waiting)
    eventually(lambda: settle._sleeping)

    settle.add("a", seen=SOME)

    eventually(lambda: batches == [[Ripe("a", SOME)]])
    settle.close()


def test_a_sleeper_is_woken_for_what_is_due_sooner(waiting: list[threading.Thread]) -> None:
    """Sleeping until a far away time does not hold up a path that is due before."""
    settle = Settle(0.0, 10)
    settle.add("busy", SettleReason.BUSY)
    batches = consume(settle, waiting)
    eventually(lambda: settle._sleeping)

    settle.add("closed", SettleReason.CHANGED)

    eventually(lambda: batches == [[Ripe("closed")]])
    assert settle.knows(["busy"]) == {"busy"}
    settle.close()


@pytest.mark.parametrize(
    ("act", "batches"),
    [
        pytest.param(lambda settle: settle.add("late"), [[Ripe("late")]], id="a path came"),
        pytest.param(Settle.close, [[]], id="it was closed"),
    ],
)
def test_race_between_looking_and_sleeping(
    act: Callable[[Settle], object],
    batches: list[list[Ripe]],
    waiting: list[threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing was due, then something happened, then the thread would have gone to sleep."""
    settle = Settle(0.0, 10)
    look, acts = settle.due, iter([act])

    def looked_then_it_happened(now: float) -> tuple[list[Ripe], float | None]:
        result = look(now)
        for late in acts:
            late(settle)
        return result

    monkeypatch.setattr(settle, "due", looked_then_it_happened)

    found = consume(settle, waiting)

    eventually(lambda: found == batches, timeout_s=5)  # the next heartbeat, after ten, would mend it
    settle.close()


def test_waits_until_the_time_has_come(waiting: list[threading.Thread]) -> None:
    """A path that is due later comes out without any further hint."""
    settle = Settle(0.05, 10)
    settle.add("a")

    batches = consume(settle, waiting)

    eventually(lambda: batches == [[Ripe("a")]])
    settle.close()


@pytest.mark.parametrize("when", ["before", "asleep"])
def test_close_ends_the_waiting(when: str, waiting: list[threading.Thread]) -> None:
    """A closed Settle answers an empty list at once, whatever is still in it."""
    settle = Settle(60.0, 10)
    settle.add("a")
    if when == "before":
        settle.close()

    batches = consume(settle, waiting)
    if when == "asleep":
        eventually(lambda: settle._sleeping)
        settle.close()

    eventually(lambda: batches == [[]])


def test_a_flood_of_one_kind_delays_no_other_one(clock: Clock) -> None:
    """While thousands of changed files are due at each look, a hard link and a busy file have their turn."""
    settle = Settle(0.0, 100_000, clock=clock)
    settle.add("link", SettleReason.CREATED)
    settle.add("busy", SettleReason.BUSY)
    clock.now += 10

    found: set[str] = set()
    for look in range(3):
        for number in range(2 * BATCH):
            settle.add(f"{look}/{number}")
        found.update(path for path, _, _ in settle.due(clock.now)[0])

    assert {"link", "busy"} <= found
