"""The bounded queue: each path once, nothing lost, nobody waits in vain."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from s3spool.pipeline import inbox as inbox_module
from s3spool.pipeline.inbox import LARGE_SHARE, TURNS, Inbox
from s3spool.pipeline.item import Item, Lane
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATHS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
ARRIVING = [Lane.NEW, Lane.RETRY]
ITEMS = st.builds(Item, path=PATHS, lane=st.sampled_from(ARRIVING), attempts=st.integers(0, 3))
MAX_IN_FLIGHT = 4


class InboxAgainstModel(RuleBasedStateMachine):
    """The inbox against two deques and a dict; `offer` is only called where it does not block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(inbox_module, "SETTLING_DOWN", MAX_IN_FLIGHT - 2)

    @initialize(size=st.integers(1, 5))
    def start(self, size: int) -> None:
        self.size = size
        self.inbox = Inbox(size, 2)
        self.lanes: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self.in_flight: dict[str, bool] = {}
        self.taken: dict[str, Item] = {}
        self.turn = 0

    def teardown(self) -> None:
        self.patch.undo()

    @property
    def queued(self) -> list[str]:
        return [item.path for lane in self.lanes.values() for item in lane]

    def add(self, item: Item) -> None:
        if item.path in self.in_flight:
            self.in_flight[item.path] = True
        elif item.path not in self.queued:
            self.lanes[item.lane].append(item)

    def full(self) -> bool:
        aside = len(self.lanes[Lane.LARGE])
        return len(self.queued) - min(aside, LARGE_SHARE * self.size) >= self.size

    @precondition(lambda self: not self.full())
    @rule(item=ITEMS)
    def offer(self, item: Item) -> None:
        assert self.inbox.offer([item])

        self.add(item)

    @rule(items=st.lists(ITEMS, max_size=6))
    def offer_nowait(self, items: list[Item]) -> None:
        accepted = self.inbox.offer_nowait(items)

        for count, item in enumerate(items):
            if self.full():
                assert accepted == count
                return
            self.add(item)
        assert accepted == len(items)

    @rule()
    def take(self) -> None:
        item = self.inbox.take_nowait()

        if not self.queued or len(self.in_flight) >= MAX_IN_FLIGHT:
            assert item is None
            return
        wanted = TURNS[self.turn % len(TURNS)]
        self.turn += 1
        lanes = self.lanes
        expected = (lanes[wanted] or lanes[Lane.NEW] or lanes[Lane.RETRY] or lanes[Lane.LARGE]).popleft()
        assert item == expected
        self.in_flight[expected.path] = False
        self.taken[expected.path] = expected

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), first=st.booleans(), large=st.booleans())
    def put_back(self, data: st.DataObject, first: bool, large: bool) -> None:
        item = self.taken.pop(data.draw(st.sampled_from(sorted(self.taken))))._replace(large=large)

        self.inbox.put_back(item, first=first)

        del self.in_flight[item.path]
        lane = self.lanes[Lane.LARGE if large else item.lane]
        (lane.appendleft if first else lane.append)(item)

    @rule(path=PATHS)
    def done(self, path: str) -> None:
        again = self.inbox.done(path)

        assert again is self.in_flight.pop(path, False)
        self.taken.pop(path, None)

    @rule(path=PATHS)
    def claim(self, path: str) -> None:
        claimed = self.inbox.claim(path)

        room = len(self.in_flight) < MAX_IN_FLIGHT
        assert claimed is (room and path not in self.queued and path not in self.in_flight)
        if claimed:
            self.in_flight[path] = False

    @rule(paths=st.lists(PATHS, max_size=4))
    def knows(self, paths: list[str]) -> None:
        known = self.inbox.knows(paths)

        assert known == set(paths) & (set(self.queued) | set(self.in_flight))
        for path in paths:
            if path in self.in_flight:
                self.in_flight[path] = True

    @invariant()
    def each_path_is_here_once(self) -> None:
        if not hasattr(self, "inbox"):
            return
        queued, in_flight = self.inbox.listing(100)
        assert sorted(queued) == sorted(self.queued)
        assert sorted(in_flight) == sorted(self.in_flight)
        assert not set(queued) & set(in_flight)
        assert self.inbox.counts() == (len(self.queued), len(self.in_flight))
        assert self.inbox.oldest() == [
            *list(self.in_flight)[:1],
            *(lane[0].path for lane in self.lanes.values() if lane),
        ]

    @invariant()
    def queued_is_bounded(self) -> None:
        # What comes back from a worker needs no room: as many more as there were in flight.
        if hasattr(self, "inbox"):
            assert len(self.queued) <= (1 + LARGE_SHARE) * self.size + MAX_IN_FLIGHT


TestInboxAgainstModel = InboxAgainstModel.TestCase


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], object]], list[object]]]:
    """Run a call in a thread; the list holds its result once it has returned."""
    threads: list[threading.Thread] = []

    def run(call: Callable[[], object]) -> list[object]:
        results: list[object] = []
        threads.append(threading.Thread(target=lambda: results.append(call())))
        threads[-1].start()
        return results

    yield run
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_take_waits_for_an_offer(start: Callable[[Callable[[], object]], list[object]]) -> None:
    """A worker with nothing to do sleeps until a file is offered."""
    inbox = Inbox(10, 2)
    results = start(inbox.take)
    eventually(lambda: inbox._standby)

    inbox.offer([Item("a")])

    eventually(lambda: results == [Item("a")])


def test_take_waits_for_what_is_put_back(start: Callable[[Callable[[], object]], list[object]]) -> None:
    """What a paused worker returns reaches another one that waits."""
    inbox = Inbox(10, 2)
    inbox.offer([Item("a")])
    item = inbox.take()
    results = start(inbox.take)
    eventually(lambda: inbox._standby)

    assert item is not None
    inbox.put_back(item, first=True)

    eventually(lambda: results == [Item("a")])


def test_offer_waits_for_room_and_goes_on(start: Callable[[Callable[[], object]], list[object]]) -> None:
    """A full inbox holds the scan back, which keeps a million files out of memory; then it goes on."""
    inbox = Inbox(2, 2)
    items = [Item(str(number)) for number in range(5)]
    results = start(lambda: inbox.offer(items))
    eventually(lambda: inbox._waiting_offers)
    assert inbox.counts() == (2, 0)

    taken = []
    for _ in items:
        taken.append(inbox.take())
        inbox.done(taken[-1].path if taken[-1] else "")

    assert taken == items
    eventually(lambda: results == [True])


def test_workers_wait_while_too_much_is_settling_down(
    start: Callable[[Callable[[], object]], list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled ledger stops the workers instead of piling up receipts; one `done` lets one more through."""
    monkeypatch.setattr(inbox_module, "SETTLING_DOWN", 0)
    inbox = Inbox(10, 2)
    inbox.offer([Item("a"), Item("b"), Item("c")])
    inbox.take()
    inbox.take()
    results = start(inbox.take)
    eventually(lambda: inbox._standby)
    assert inbox.counts() == (1, 2)

    inbox.done("a")

    eventually(lambda: results == [Item("c")])
    assert inbox.counts() == (0, 2)


def test_full_inbox_does_not_block_shutdown(start: Callable[[Callable[[], object]], list[object]]) -> None:
    """Closing wakes an offer that waits for room, and tells it that not all was taken."""
    inbox = Inbox(1, 2)
    results = start(lambda: inbox.offer([Item("a"), Item("b")]))
    eventually(lambda: inbox._waiting_offers)

    inbox.close()

    eventually(lambda: results == [False])


def test_who_looks_out_for_a_free_lane_is_called_last(
    start: Callable[[Callable[[], object]], list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are for the others as long as there are any; when it is called away the next one looks out."""
    inbox = Inbox(10, 2)
    plain = start(inbox.take)
    eventually(lambda: len(inbox._standby) == 1)
    monkeypatch.setattr(inbox.parts, "next_in_s", lambda: 3600.0)
    lookout = start(inbox.take)
    eventually(lambda: len(inbox._standby) == 2)
    until = inbox._lookout_until

    inbox.offer([Item("a")])
    eventually(lambda: plain == [Item("a")])
    assert (lookout, inbox._lookout_until) == ([], until)
    inbox.offer([Item("b")])
    eventually(lambda: lookout == [Item("b")])
    next_one = start(inbox.take)
    eventually(lambda: inbox._standby)

    assert inbox._lookout_until > until
    inbox.close()
    eventually(lambda: next_one == [None])


def test_close_wakes_all_workers(start: Callable[[Callable[[], object]], list[object]]) -> None:
    """Every worker that waits for a file is told that there will be none."""
    inbox = Inbox(10, 5)
    results = [start(inbox.take) for _ in range(5)]
    eventually(lambda: len(inbox._standby) == 5)

    inbox.close()

    eventually(lambda: results == [[None]] * 5)


def test_a_closed_inbox_gives_and_takes_nothing() -> None:
    """After close nothing goes in or out, whatever is still queued."""
    inbox = Inbox(10, 2)
    inbox.offer([Item("a")])

    inbox.close()

    assert inbox.take() is None
    assert inbox.take_nowait() is None
    assert not inbox.offer([Item("b")])
    assert inbox.offer_nowait([Item("b")]) == 0


def test_a_lone_lane_is_not_held_back_by_turns() -> None:
    """Where only one kind of file waits it has all the turns."""
    inbox = Inbox(10, 10)
    retries = [Item(str(number), Lane.RETRY) for number in range(6)]
    inbox.offer(retries)

    assert [inbox.take_nowait() for _ in range(7)] == [*retries, None]


@pytest.mark.parametrize("lane", ARRIVING)
def test_neither_lane_starves(lane: Lane) -> None:
    """Among the first four taken there is one of each kind, however many of the other kind wait."""
    other = next(each for each in ARRIVING if each is not lane)
    inbox = Inbox(100, 10)
    inbox.offer([Item(f"other {number}", other) for number in range(50)])
    inbox.offer([Item("mine", lane)])

    first_four = [inbox.take_nowait() for _ in range(4)]

    assert Item("mine", lane) in first_four


def test_what_was_not_tried_yet_goes_first_where_that_is_wished() -> None:
    """While only probes are sent, however many that have failed wait before it; and in turns again afterwards."""
    inbox = Inbox(100, 10)
    failed = [Item(f"failed {number}", Lane.RETRY) for number in range(3)]
    inbox.offer([*failed, *(Item(str(number)) for number in range(7))])

    inbox.favour_new(True)
    probes = [inbox.take_nowait() for _ in range(5)]
    inbox.favour_new(False)
    after = [inbox.take_nowait() for _ in range(4)]

    assert probes == [Item(str(number)) for number in range(5)]
    assert failed[0] in after


def test_state_of_a_path() -> None:
    """A person who asks hears where the file is."""
    inbox = Inbox(10, 2)
    inbox.offer([Item("a")])

    before = inbox.state_of("a")
    inbox.take()

    assert (before, inbox.state_of("a"), inbox.state_of("b")) == ("queued", "uploading", None)


def test_a_hundred_workers_take_each_path_once(start: Callable[[Callable[[], object]], list[object]]) -> None:
    """Many takers and many offers of the same names: every name is handled, never by two at the same time."""
    inbox = Inbox(50, 20)
    names = [f"{number:03d}" for number in range(300)]
    at_work: set[str] = set()
    handled: set[str] = set()
    clashes: list[str] = []
    lock = threading.Lock()

    def work() -> None:
        while (item := inbox.take()) is not None:
            with lock:
                if item.path in at_work:
                    clashes.append(item.path)
                at_work.add(item.path)
            with lock:
                at_work.discard(item.path)
                handled.add(item.path)
            inbox.done(item.path)

    for _ in range(20):
        start(work)
    offers = [start(lambda: inbox.offer(Item(name) for name in names)) for _ in range(4)]

    eventually(lambda: offers == [[True]] * 4)
    eventually(lambda: inbox.counts() == (0, 0))
    inbox.close()
    assert clashes == []
    assert handled == set(names)
