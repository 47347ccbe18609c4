"""The bounded queue: each path once, nothing lost, nobody waits in vain."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from s3spool.errors import Fault, Scope, UploadError
from s3spool.failure.breaker import PROBES, CircuitBreaker, Times
from s3spool.ledger.rows import NO_FAILURES, Failures
from s3spool.queue import inbox as inbox_module
from s3spool.queue.inbox import Inbox
from s3spool.queue.inbox_queues import DEFERRED_FACTOR
from s3spool.queue.item import Item, Lane
from s3spool.queue.parts import Transfer
from s3spool.queue.selection import LANE_ROTATION
from s3spool.s3.content import Content
from support.house import a_breaker
from support.rows import SOME, a_multipart
from support.waiting import eventually

Start = Callable[[Callable[[], object]], list[object]]
PATHS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
UNTRIED = [Lane.ARRIVED, Lane.FOUND]
FAILED = Failures(1, 1.0, 1.0, "InternalError")
WORKERS = 8
MAX_TRIED = 2
MAX_IN_FLIGHT = 4


def an_inbox(size: int, workers: int, *, seed: int = 1) -> Inbox:
    """Before a breaker whose rounds come when a test says so."""
    return Inbox(size, workers, a_breaker(initial_s=3600.0, max_s=3600.0), rng=random.Random(seed))


def failed(path: str) -> Item:
    return Item(path, Lane.RETRY, FAILED)


ITEMS = st.one_of(st.tuples(PATHS, st.sampled_from(UNTRIED)).map(lambda it: Item(*it)), PATHS.map(failed))


class InboxAgainstModel(RuleBasedStateMachine):
    """The inbox against two deques and a dict; `offer` is only called where it does not block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(inbox_module, "MAX_UNCOMMITTED", MAX_IN_FLIGHT - WORKERS)

    @initialize(size=st.integers(1, 5))
    def start(self, size: int) -> None:
        self.size = size
        self.inbox = an_inbox(size, WORKERS)
        self.lanes: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self.in_flight: dict[str, bool] = {}
        self.taken: dict[str, Item] = {}
        self.takes = 0

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

    def full(self, lane: Lane) -> bool:
        """Each lane has room of its own, less what the deferred lanes hold above four times the size."""
        deferred = max(0, len(self.lanes[Lane.LARGE]) + len(self.lanes[Lane.BODY]) - DEFERRED_FACTOR * self.size)
        return len(self.lanes[lane]) + deferred >= self.size

    @rule(item=ITEMS)
    def offer(self, item: Item) -> None:
        assume(not self.full(item.lane))

        assert self.inbox.offer([item])

        self.add(item)

    @rule(items=st.lists(ITEMS, max_size=6))
    def offer_nowait(self, items: list[Item]) -> None:
        accepted = self.inbox.offer_nowait(items)

        for count, item in enumerate(items):
            if self.full(item.lane):
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
        wanted = LANE_ROTATION[self.takes % len(LANE_ROTATION)]
        self.takes += 1
        room = sum(path in self.in_flight and it.tried for path, it in self.taken.items()) < MAX_TRIED
        lanes = [self.lanes[lane] for lane in (wanted, *UNTRIED, Lane.RETRY, Lane.LARGE)]
        may_go = ((lane, each) for lane in lanes for each in lane if room or not each.tried)
        lane, expected = next(may_go, (None, None))
        assert item == expected
        if lane is None or expected is None:
            return
        lane.remove(expected)
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

        room = 2 * len(self.in_flight) < MAX_IN_FLIGHT
        assert claimed is (room and path not in self.queued and path not in self.in_flight)
        if claimed:
            self.in_flight[path] = False

    @rule(paths=st.lists(PATHS, max_size=4))
    def lookup(self, paths: list[str]) -> None:
        with self.inbox.lookup(paths) as (here, _):
            assert here == set(paths) & (set(self.queued) | set(self.in_flight))
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
            assert len(self.queued) <= (3 + DEFERRED_FACTOR) * self.size + MAX_IN_FLIGHT


TestInboxAgainstModel = InboxAgainstModel.TestCase


@pytest.fixture
def start() -> Iterator[Start]:
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


def test_take_waits_for_an_offer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with nothing to do sleeps until a file is offered, and sends it over the connection that it has."""
    monkeypatch.setattr(inbox_module, "IDLE_S", 3600.0)
    inbox = an_inbox(10, 2)
    closed: list[None] = []
    results = start(lambda: inbox.take(lambda: closed.append(None)))
    eventually(lambda: inbox._idle_workers.waiting)

    inbox.offer([Item("a")])

    eventually(lambda: results == [Item("a")])
    assert closed == []


def test_take_waits_for_what_is_put_back(start: Start) -> None:
    """What a paused worker returns reaches another one that waits."""
    inbox = an_inbox(10, 2)
    inbox.offer([Item("a")])
    item = inbox.take()
    results = start(inbox.take)
    eventually(lambda: inbox._idle_workers.waiting)

    assert item is not None
    inbox.put_back(item, first=True)

    eventually(lambda: results == [Item("a")])


def test_offer_waits_for_room_and_goes_on(start: Start) -> None:
    """A full inbox holds the scan back, which keeps a million files out of memory; then it goes on."""
    inbox = an_inbox(2, 2)
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


def test_workers_wait_while_too_much_is_settling_down(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stalled ledger stops the workers instead of piling up receipts; one `done` lets one more through."""
    monkeypatch.setattr(inbox_module, "MAX_UNCOMMITTED", 0)
    inbox = an_inbox(10, 2)
    inbox.offer([Item("a"), Item("b"), Item("c")])
    inbox.take()
    inbox.take()
    results = start(inbox.take)
    eventually(lambda: inbox._idle_workers.waiting)
    assert inbox.counts() == (1, 2)

    inbox.done("a")

    eventually(lambda: results == [Item("c")])
    assert inbox.counts() == (0, 2)


def test_full_inbox_does_not_block_shutdown(start: Start) -> None:
    """Closing wakes an offer that waits for room, and tells it that not all was taken."""
    inbox = an_inbox(1, 2)
    results = start(lambda: inbox.offer([Item("a"), Item("b")]))
    eventually(lambda: inbox._waiting_offers)

    inbox.close()

    eventually(lambda: results == [False])


def test_the_worker_that_rechecks_the_parts_is_called_last(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other workers take the files as long as they can; when this one takes a file, the next worker rechecks."""
    inbox = an_inbox(10, 2)
    plain = start(inbox.take)
    eventually(lambda: len(inbox._idle_workers.waiting) == 1)
    monkeypatch.setattr(inbox.parts, "next_in_s", lambda: 3600.0)
    rechecking = start(inbox.take)
    eventually(lambda: len(inbox._idle_workers.waiting) == 2)
    until = inbox._recheck_at

    inbox.offer([Item("a")])
    eventually(lambda: plain == [Item("a")])
    assert (rechecking, inbox._recheck_at) == ([], until)
    inbox.offer([Item("b")])
    eventually(lambda: rechecking == [Item("b")])
    next_one = start(inbox.take)
    eventually(lambda: inbox._idle_workers.waiting)

    assert inbox._recheck_at > until
    inbox.close()
    eventually(lambda: next_one == [None])


def test_close_wakes_all_workers(start: Start) -> None:
    """Every worker that waits for a file is told that there will be none."""
    inbox = an_inbox(10, 5)
    results = [start(inbox.take) for _ in range(5)]
    eventually(lambda: len(inbox._idle_workers.waiting) == 5)

    inbox.close()

    eventually(lambda: results == [[None]] * 5)


def test_a_closed_inbox_gives_and_takes_nothing() -> None:
    """After close nothing goes in or out, whatever is still queued."""
    inbox = an_inbox(10, 2)
    inbox.offer([Item("a")])

    inbox.close()

    assert inbox.take() is None
    assert inbox.take_nowait() is None
    assert not inbox.offer([Item("b")])
    assert inbox.offer_nowait([Item("b")]) == 0


def test_only_what_comes_in_is_claimed_and_before_a_worker_can_take_it() -> None:
    """A path that is here is the business of whoever brought it; one without room is not claimed either."""
    inbox = an_inbox(3, 2)
    inbox.offer([Item("in flight"), Item("queued")])
    inbox.take_nowait()
    claimed: list[list[str]] = []

    def claim(paths: list[str]) -> None:
        assert inbox._lock.locked()
        claimed.append(paths)

    accepted = inbox.offer_nowait([Item(path) for path in ("in flight", "a", "queued", "b", "no room")], claim)

    assert (accepted, claimed) == (2, [["a", "b"]])
    assert inbox.offer_nowait([Item("no room")], claim) == 0
    assert len(claimed) == 1
    assert not inbox.done("in flight")


def test_what_leaves_during_a_lookup_is_not_offered_by_who_looked() -> None:
    """Its end may have come too late for the reader: it would be sent twice. Each lookup has its own set."""
    inbox = an_inbox(10, 2)
    inbox.offer([Item("here"), Item("taken")])
    inbox.take_nowait()

    with inbox.lookup(["here", "taken", "new"]) as (here, left):
        assert here == {"here", "taken"}
        inbox.offer([Item("new")])
        for _ in range(2):
            item = inbox.take_nowait()
            assert item is not None
            inbox.done(item.path)
        with inbox.lookup(["new"]) as (still_here, since):
            assert not still_here
            inbox.offer([Item("new"), Item("another")], taken=left)
            assert inbox.take_nowait() == Item("another")
            inbox.offer([Item("new")], taken=since)
            assert inbox.take_nowait() == Item("new")

    assert inbox.done("here"), "it was offered again while in flight"
    assert not inbox._lookups


def test_what_was_only_claimed_during_a_lookup_is_offered() -> None:
    """The cleaning, or a removal, has not read it: a change before the lookup would wait for the routine scan."""
    inbox = an_inbox(10, 2)

    with inbox.lookup(["a"]) as (_, taken):
        assert inbox.claim("a")
        inbox.done("a")
        inbox.offer([Item("other")])
        assert inbox.take_nowait() == Item("other")
        inbox.offer([Item("a")], taken=taken)

    assert not taken
    assert inbox.take_nowait() == Item("a")


def test_many_deferred_files_take_the_room_of_new_ones() -> None:
    """The names that wait are bounded, whatever they wait for."""
    inbox = an_inbox(10, 2)
    for number in range(DEFERRED_FACTOR * 10 + 4):
        inbox._add(Item(f"body {number}", body=True), Lane.BODY)

    assert inbox.offer_nowait([Item(str(number)) for number in range(10)]) == 6


def test_bodies_that_wait_stay_within_their_share() -> None:
    """Nine tenths of the workers hold bodies: one more stays in the queue."""
    inbox = an_inbox(100, 10)
    for number in range(9):
        inbox.offer([Item(str(number))])
        assert inbox.take_nowait() == Item(str(number))
        assert inbox.admit_body(str(number))
    inbox._add(Item("body", body=True), Lane.BODY)

    assert inbox.take_nowait() is None


def test_no_lane_starves() -> None:
    """Of five turns arrivals have two, bodies that were put aside one (here arrivals take it), the others one each."""
    inbox = an_inbox(100, 1000)
    for lane in (Lane.RETRY, Lane.FOUND, Lane.ARRIVED):
        failures = FAILED if lane is Lane.RETRY else NO_FAILURES
        inbox.offer([Item(f"{lane.value} {number}", lane, failures) for number in range(50)])

    taken = [item.lane for item in (inbox.take_nowait() for _ in range(50)) if isinstance(item, Item)]

    assert [Counter(taken[at : at + 5]) for at in range(0, 50, 5)] == [
        {Lane.ARRIVED: 3, Lane.FOUND: 1, Lane.RETRY: 1},
    ] * 10


def test_an_offer_waits_for_its_own_lane(start: Start) -> None:
    """Room in another lane does not let it in; room in its own does."""
    inbox = an_inbox(1, 10)
    inbox.offer([Item("found", Lane.FOUND)])
    results = start(lambda: inbox.offer([Item("found, too", Lane.FOUND)]))
    eventually(lambda: inbox._waiting_offers[Lane.FOUND])

    assert inbox.offer([Item("arrived")])
    assert inbox.take_nowait() == Item("arrived")
    assert inbox.counts() == (1, 1)
    assert inbox.take_nowait() == Item("found", Lane.FOUND)

    eventually(lambda: results == [True])
    assert inbox.take_nowait() == Item("found, too", Lane.FOUND)


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (3, 1), (4, 1), (8, 2), (100, 25)])
def test_files_that_failed_before_hold_a_quarter_of_the_workers(workers: int, most: int) -> None:
    """Poison that takes a minute each to fail leaves three quarters of the workers to all others."""
    inbox = an_inbox(1000, workers)
    inbox.offer([failed(f"bad {number}") for number in range(200)])

    taken = [item for item in (inbox.take_nowait() for _ in range(200)) if item]
    assert [item.path for item in taken] == [f"bad {number}" for number in range(most)]

    inbox.offer([Item("good")])
    assert inbox.take_nowait() == Item("good")
    inbox.done("bad 0")
    assert inbox.take_nowait() == failed(f"bad {most}")
    assert inbox.take_nowait() is None


def test_what_fails_in_a_workers_hands_counts_from_its_next_attempt() -> None:
    """A new file that is put back with its evidence waits among those that failed before."""
    inbox = an_inbox(10, 4)
    inbox.offer([Item("a"), Item("b")])
    for path in ("a", "b"):
        assert inbox.take_nowait() == Item(path)
        inbox.put_back(Item(path, failures=FAILED), first=False)

    assert inbox.take_nowait() == Item("a", failures=FAILED)
    assert inbox.take_nowait() is None
    inbox.done("a")
    assert inbox.take_nowait() == Item("b", failures=FAILED)


def test_large_files_that_failed_before_hold_no_more_either() -> None:
    """Those put aside count to the same quarter, and let large files that were never tried pass."""
    inbox = an_inbox(10, 4)
    inbox.offer([failed("a"), failed("b"), Item("c")])
    for _ in range(3):
        item = inbox.take_nowait()
        assert isinstance(item, Item)
        inbox.put_back(item._replace(large=True), first=False)
    inbox.offer([failed("small")])

    assert inbox.take_nowait() == failed("small")
    assert inbox.take_nowait() == Item("c", large=True)
    assert inbox.take_nowait() is None
    inbox.done("small")
    taken = [inbox.take_nowait(), inbox.take_nowait()]

    assert taken in [[failed(path)._replace(large=True), None] for path in "ab"]


# While the circuit breaker is open


def open_breaker(inbox: Inbox, *, round_now: bool = True) -> CircuitBreaker:
    breaker = inbox._breaker
    error = UploadError("upload", "x", "AccessDenied", "no", Scope.EVERYBODY)
    assert breaker.failed("x", Failures(), error, time.monotonic()).fault is Fault.DESTINATION
    if round_now:
        breaker.probe_now()
    return breaker


def next_round(inbox: Inbox) -> list[str]:
    """The paths of one round of probes, which stay in flight."""
    inbox._breaker.probe_now()
    return [item.path for item in (inbox.take_nowait() for _ in range(PROBES + 5)) if item]


def test_nothing_comes_out_until_a_probe_may_go() -> None:
    """However much waits."""
    inbox = an_inbox(100, 100)
    inbox.offer([*(Item(str(number)) for number in range(50)), failed("bad")])
    open_breaker(inbox, round_now=False)

    assert inbox.take_nowait() is None
    assert len(next_round(inbox)) == PROBES
    assert inbox.take_nowait() is None


def test_untried_files_are_the_probes() -> None:
    """The newest arrival and one at random by turns, before any that has failed: those may be the reason."""
    newest, others = set(), set()
    for seed in range(40):
        inbox = an_inbox(100, 100, seed=seed)
        inbox.offer([failed(f"bad {number}") for number in range(50)])
        inbox.offer([Item(f"found {number}", Lane.FOUND) for number in range(20)])
        inbox.offer([Item(f"new {number}") for number in range(20)])
        open_breaker(inbox)
        first, second, third, fourth = next_round(inbox)
        newest.add((first, third))
        others |= {second, fourth}

    assert not [path for path in others if path.startswith("bad")]
    assert {first for first, _ in newest} == {"new 19"}
    assert {third for _, third in newest} <= {"new 18", "new 17"}
    assert len(others) > 20
    assert {path.split()[0] for path in others} == {"new", "found"}


def test_the_probes_of_a_round_are_different_files() -> None:
    """And those of the next are others again, as long as the first are in flight."""
    inbox = an_inbox(100, 100)
    inbox.offer([Item(str(number)) for number in range(8)])
    open_breaker(inbox)

    assert sorted(next_round(inbox) + next_round(inbox)) == [str(number) for number in range(8)]


def test_without_untried_files_any_other_is_a_probe() -> None:
    """At random, also more than a quarter of the workers, because nothing else may go."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        inbox = an_inbox(100, 4, seed=seed)
        inbox.offer([failed(str(number)) for number in range(20)])
        open_breaker(inbox)
        paths = next_round(inbox)
        assert len(set(paths)) == PROBES
        seen.update(paths)

    assert set(seen) == {str(number) for number in range(20)}


def test_large_files_put_aside_are_probes_too() -> None:
    """Where nothing else waits."""
    inbox = an_inbox(100, 4)
    inbox.offer([Item("large")])
    item = inbox.take_nowait()
    assert isinstance(item, Item)
    inbox.put_back(item._replace(large=True), first=False)
    open_breaker(inbox)

    assert next_round(inbox) == ["large"]


def test_parts_are_probes_where_no_file_is_untried() -> None:
    """A large file under way is not stuck behind files that fail, nor they behind it."""
    seen: Counter[str] = Counter()
    for seed in range(40):
        inbox = an_inbox(100, 8, seed=seed)
        transfer = a_transfer("large", parts=20)
        inbox.parts.add(transfer)
        inbox.offer([failed(str(number)) for number in range(20)])
        open_breaker(inbox)
        seen.update("part" if path == "large" else "file" for path in next_round(inbox))
    assert min(seen["part"], seen["file"]) > 20

    inbox.offer([Item("new")])
    inbox._breaker.probe_now()
    assert inbox.take_nowait() == Item("new")


def test_parts_that_wait_for_their_turn_take_no_probe_away() -> None:
    """While four parts hang, no other may go: all probes are for files, or the breaker stays open for nothing."""
    inbox = an_inbox(100, 8)
    inbox.parts.add(a_transfer("large", parts=600))
    while inbox.parts.take() is not None:
        pass
    inbox.offer([failed(str(number)) for number in range(4)])
    open_breaker(inbox)

    assert sorted(next_round(inbox)) == ["0", "1", "2", "3"]


def test_bodies_are_no_probes_while_hanging_ones_hold_all_their_shares() -> None:
    """A worker would have to put each of them back, and take the next one at once."""
    inbox = an_inbox(100, 8)
    inbox.offer([Item(str(number)) for number in range(20)])
    for _ in range(20):
        item = inbox.take_nowait()
        assert isinstance(item, Item)
        if not inbox.admit_body(item.path):
            inbox.put_back(item._replace(body=True), first=False)
    assert inbox.counts() == (13, 7), "nine tenths of the workers"
    open_breaker(inbox)

    assert next_round(inbox) == []
    inbox.offer([failed("small")])
    assert next_round(inbox) == ["small"]


def test_parts_alone_are_probes() -> None:
    """With nothing but a large file under way the breaker must be able to close."""
    inbox = an_inbox(100, 8)
    inbox.parts.add(a_transfer("large", parts=20))
    open_breaker(inbox)

    assert next_round(inbox) != []


def test_an_arrival_is_expected_while_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the watcher hinted; not what a scan found, nor what failed; not while four untried probes are out."""
    inbox = an_inbox(100, 100)
    breaker = inbox._breaker
    told: list[int] = []
    monkeypatch.setattr(breaker, "expect_arrival", lambda: told.append(1))
    inbox.offer([Item("before")])
    open_breaker(inbox)

    inbox.offer([Item("found", Lane.FOUND), failed("bad")])
    assert told == []
    inbox.offer([Item(f"new {number}") for number in range(4)])
    assert len(told) == 4
    inbox.offer([Item("new 0")])
    assert len(told) == 4, "it is queued already"

    out = next_round(inbox)
    inbox.offer([Item("unheard")])
    assert len(told) == 4
    inbox.done(out[0])
    inbox.offer([Item("heard")])
    assert len(told) == 5


def test_workers_wait_and_one_rechecks_for_the_probe(start: Start) -> None:
    """A hundred workers do not wake up for each round; when the breaker closes they all go on."""
    inbox = an_inbox(100, 10)
    inbox.offer([Item(str(number)) for number in range(10)])
    breaker = open_breaker(inbox, round_now=False)
    results = [start(inbox.take) for _ in range(10)]
    eventually(lambda: len(inbox._idle_workers.waiting) == 10)
    assert inbox._recheck_at > 0

    breaker.probe_now()
    eventually(lambda: sum(len(result) for result in results) == PROBES)
    eventually(lambda: len(inbox._idle_workers.waiting) == 10 - PROBES)
    breaker.succeeded(Times(time.time(), time.monotonic()))

    eventually(lambda: [len(result) for result in results] == [1] * 10)
    assert {item.path for (item,) in results if isinstance(item, Item)} == {str(number) for number in range(10)}


@pytest.mark.parametrize("by_hand", [False, True])
def test_in_a_pause_connections_are_closed_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    """Of whatever kind the pause is; the worker that looks for the next probe closes its own as well."""
    monkeypatch.setattr(inbox_module, "IDLE_S", 3600.0)
    inbox = an_inbox(10, 2)
    inbox.offer([Item("a")])
    inbox.hold(True) if by_hand else open_breaker(inbox, round_now=False)
    closed: list[None] = []

    results = start(lambda: inbox.take(lambda: closed.append(None)))

    try:
        eventually(lambda: closed == [None], timeout_s=10)
    finally:
        inbox.close()
    eventually(lambda: results == [None])


def test_the_next_probe_comes_by_itself(start: Start) -> None:
    """Nobody has to wake the workers when a round begins; while nothing is queued, none of them looks."""
    inbox = Inbox(100, 10, a_breaker(initial_s=0.05, max_s=0.05))
    open_breaker(inbox, round_now=False)
    results = [start(inbox.take) for _ in range(10)]
    eventually(lambda: len(inbox._idle_workers.waiting) == 10)
    looks_at = inbox._recheck_at

    inbox.offer([Item("a")])

    eventually(lambda: [Item("a")] in results)
    inbox.close()
    assert looks_at == 0.0


def test_rounds_of_probes_go_on_while_probes_hang(start: Start) -> None:
    """Their requests are never answered: the workers that are left look after the next rounds."""
    inbox = Inbox(500, 100, a_breaker(initial_s=0.01, max_s=0.01))
    inbox.offer([Item(str(number), Lane.FOUND) for number in range(200)])
    open_breaker(inbox, round_now=False)

    results = [start(inbox.take) for _ in range(100)]

    try:
        eventually(lambda: all(results))
    finally:
        inbox.close()


def a_transfer(path: str, *, parts: int) -> Transfer:
    content = Content(path, SOME, None, -1)
    return Transfer(Item(path), content, a_multipart(path), parts, Times(1.0, 1.0), {}, deque(range(1, parts + 1)))


def test_state_of_a_path() -> None:
    """A person who asks hears where the file is."""
    inbox = an_inbox(10, 2)
    inbox.offer([Item("a")])

    before = inbox.state_of("a")
    inbox.take()

    assert (before, inbox.state_of("a"), inbox.state_of("b")) == ("queued", "uploading", None)


def test_a_hundred_workers_take_each_path_once(start: Start) -> None:
    """Many takers and many offers of the same names: every name is handled, never by two at the same time."""
    inbox = an_inbox(50, 20)
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
