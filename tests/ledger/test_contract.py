"""What every ledger promises, run against each backend (`LedgerBackend`, `LedgerReader`)."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from s3spool.ledger.postgresql.backend import PostgresLedger
from s3spool.ledger.postgresql.connection import Connection
from s3spool.ledger.postgresql.groups import Work
from s3spool.ledger.postgresql.statements import TAKE
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LOOKUP_ROWS, Known, Totals
from s3spool.ledger.rows import Receipt, Retry, State
from s3spool.ledger.store import Ledger
from support.rows import SOME, a_multipart, a_part, a_receipt, a_retry

NewLedger = Callable[[str, str], LedgerBackend]  # the rows' place, the destination

WAIT_S = 60.0
ODD = [
    "plain.txt",
    "\u00fc/\u65e5\u672c",
    "two\nlines",
    "quote'\"\\",
    os.fsdecode(b"latin-\xfc\xff"),
    "null\\u0000",
    "/xy",
]


class Taking(PostgresLedger):
    """Takes each file before it records something of it, as a daemon would."""

    def _commit(self, run: list[Work], db: Connection) -> None:
        if paths := [work.path for work in run if work.path]:
            super()._commit([Work((TAKE,), paths=paths, taken=lambda _: None)], db)
            self.claims._owners.update(dict.fromkeys(paths, self.owner))
        super()._commit(run, db)


@pytest.fixture(params=["sqlite", "postgresql"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> NewLedger:
    """Opens the ledger of this place and destination; its thread runs."""
    databases: dict[str, str] = {}
    if request.param == "postgresql":
        request.getfixturevalue("postgres")

    def opened(place: str, destination: str) -> LedgerBackend:
        ledger: LedgerBackend
        if request.param == "sqlite":
            ledger = Ledger(tmp_path / f"{place}.sqlite3", destination=destination)
        else:
            if place not in databases:
                databases[place] = request.getfixturevalue("postgres").database()
            ledger = Taking(databases[place], destination=destination, node="node", device=SOME.dev)
        ledger.start()
        return ledger

    return opened


@pytest.fixture
def ledger(new: NewLedger) -> Iterator[LedgerBackend]:
    ledger = new("ledger", "here")
    yield ledger
    ledger.close(10)


@pytest.mark.parametrize("name", ODD)
def test_all_rows_come_back_as_they_went_in(ledger: LedgerBackend, name: str) -> None:
    """Every field of every kind of row survives, under every name."""
    receipt, multipart = a_receipt(name), a_multipart(f"{name}3")
    retry = a_retry(f"{name}2", own_failures=3, provisional=True)
    parts = [a_part(multipart.upload_id, 1), a_part(multipart.upload_id, 2)]

    ledger.record_receipt(receipt)
    ledger.record_retry(retry)
    ledger.record_multipart(multipart)
    for part in reversed(parts):
        ledger.record_part(part)
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert list(reader.receipts()) == [receipt]
        assert list(reader.retries()) == [retry]
        assert reader.multiparts() == [multipart]
        assert reader.multipart(multipart.path) == multipart
        assert reader.multipart("other") is None
        assert reader.parts(multipart.upload_id) == parts
        assert reader.known([name, f"{name}2", "other"]) == {
            name: Known(receipt, None),
            f"{name}2": Known(None, retry),
        }
        assert reader.known([name]) == {name: Known(receipt, None)}
        assert reader.counts() == {"uploaded": 1, "waiting": 1, "parked": 0}
        assert reader.last_error() == retry


def test_an_empty_ledger_knows_nothing(ledger: LedgerBackend) -> None:
    """Questions to a fresh ledger have empty answers, not errors."""
    with ledger.reader() as reader:
        assert reader.known(["a"]) == {}
        assert reader.known([]) == {}
        assert reader.due(1e12, 10) == []
        assert reader.next_due() is None
        assert reader.last_error() is None
        assert reader.counts() == {"uploaded": 0, "waiting": 0, "parked": 0}


def test_questions_about_many_paths(ledger: LedgerBackend) -> None:
    """More paths than fit into one statement are looked up all the same."""
    names = [str(number) for number in range(2 * LOOKUP_ROWS + 1)]
    for name in names[::2]:
        ledger.record_receipt(a_receipt(name))
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert set(reader.known(names)) == set(names[::2])


def test_due_in_order_and_in_batches(ledger: LedgerBackend) -> None:
    """The longest due comes first; what is claimed, parked or not due yet does not come."""
    for name, at in {"c": 30.0, "a": 10.0, "b": 20.0, "claimed": 5.0, "later": 99.0}.items():
        ledger.record_retry(a_retry(name, next_attempt=at))
    ledger.record_retry(a_retry("parked", next_attempt=1.0, state=State.PARKED))
    ledger.claim(["claimed", "unknown"])
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert [row.path for row in reader.due(30.0, 10)] == ["a", "b", "c"]
        assert [row.path for row in reader.due(30.0, 2)] == ["a", "b"]
        assert reader.next_due() == 10.0
        assert [row.path for row in reader.retries(State.PARKED)] == ["parked"]


def test_only_what_was_parked_without_proof_is_released_when_another_file_succeeds(ledger: LedgerBackend) -> None:
    """It is due at once, and once: what was parked for good stays, and so does what waits or is with a worker."""
    ledger.record_retry(a_retry("for good", next_attempt=0.0, own_failures=2, state=State.PARKED))
    ledger.record_retry(a_retry("without proof", next_attempt=0.0, state=State.PARKED, provisional=True))
    ledger.record_retry(a_retry("waiting", next_attempt=70.0))
    ledger.record_retry(a_retry("claimed", next_attempt=10.0))
    ledger.claim(["claimed"])
    told = threading.Event()

    ledger.release_provisional(told.set)
    assert ledger.flush(WAIT_S)

    assert told.is_set()
    with ledger.reader() as reader:
        assert [row.path for row in reader.retries(State.PARKED)] == ["for good"]
        assert [(row.path, row.provisional, row.failures) for row in reader.due(0.0, 10)] == [
            ("without proof", False, a_retry().failures)
        ]
        assert [row.path for row in reader.due(100.0, 10)] == ["without proof", "waiting"]


def test_a_released_file_is_no_longer_provisional(ledger: LedgerBackend) -> None:
    """A person released it, a worker has it: another file's success does not hand it out twice."""
    for name in ("named", "all"):
        ledger.record_retry(a_retry(name, next_attempt=0.0, state=State.PARKED, provisional=True))
    ledger.release(["named"])
    ledger.release(None)
    ledger.claim(["named", "all"])

    ledger.release_provisional()
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert reader.due(100.0, 10) == []
        assert [row.provisional for row in reader.retries()] == [False, False]


def test_release_all_leaves_alone_what_the_workers_have(ledger: LedgerBackend) -> None:
    """`retry --all` must not hand a file out twice; naming a file is stronger."""
    for name in ("waiting", "parked", "claimed"):
        state = State.PARKED if name == "parked" else State.WAITING
        ledger.record_retry(a_retry(name, next_attempt=100.0, state=state))
    ledger.claim(["claimed"])

    ledger.release(None)
    assert ledger.flush(WAIT_S)
    with ledger.reader() as reader:
        after_all = {row.path for row in reader.due(0.0, 10)}
    ledger.release(["claimed"])
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert after_all == {"waiting", "parked"}
        assert {row.path for row in reader.due(0.0, 10)} == {"waiting", "parked", "claimed"}


def test_receipts_by_age(ledger: LedgerBackend) -> None:
    """Old receipts are found by the time of their upload, and can be dropped."""
    ledger.record_receipt(a_receipt("old", uploaded_at=10.0))
    ledger.record_receipt(a_receipt("new", uploaded_at=20.0))
    assert ledger.flush(WAIT_S)
    with ledger.reader() as reader:
        old = [receipt.path for receipt in reader.receipts_before(20.0)]

    ledger.drop_receipts(old)
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert [receipt.path for receipt in reader.receipts()] == ["new"]


def test_callbacks_come_in_order_and_after_the_commit(ledger: LedgerBackend) -> None:
    """Who is told that a row is durable finds it there, and nobody is told out of turn."""
    told: list[tuple[int, bool]] = []

    def committed(number: int) -> Callable[[], None]:
        def call() -> None:
            with ledger.reader() as reader:
                told.append((number, f"{number}" in reader.known([f"{number}"])))

        return call

    for number in range(50):
        if number % 3:
            ledger.record_receipt(a_receipt(f"{number}"), committed(number))
        else:
            ledger.record_retry(a_retry(f"{number}"), committed(number))
    assert ledger.flush(WAIT_S)

    assert told == [(number, True) for number in range(50)]


def test_many_threads_one_writer(ledger: LedgerBackend) -> None:
    """A hundred workers hand in rows at the same time; every one of them is committed and told."""
    told: list[str] = []

    def work(worker: int) -> None:
        for number in range(20):
            name = f"{worker}-{number}"
            ledger.record_receipt(a_receipt(name), lambda name=name: told.append(name))  # type: ignore[misc]

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.flush(WAIT_S)

    assert len(told) == len(set(told)) == 2000
    with ledger.reader() as reader:
        assert reader.counts()["uploaded"] == 2000


def test_close_commits_what_was_handed_in(ledger: LedgerBackend) -> None:
    """A shutdown does not forget what is still in the queue, callbacks included."""
    told: list[int] = []
    for number in range(10):
        ledger.record_receipt(a_receipt(f"{number}"), lambda number=number: told.append(number))  # type: ignore[misc]

    assert ledger.close(10)

    assert not ledger.alive()
    assert told == list(range(10))
    with ledger.reader() as reader:
        assert reader.counts()["uploaded"] == 10


def test_receipts_count_for_their_destination_alone(new: NewLedger) -> None:
    """Each bucket has a number of its own, the same one at each start."""
    numbers = []
    for name in ("here", "there", "here"):
        ledger = new("ledger", name)
        numbers.append(ledger.destination)
        ledger.close(10)

    assert numbers[0] == numbers[2] != numbers[1]


class LedgerAgainstModel(RuleBasedStateMachine):
    """The ledger against three dicts, compared whenever it has been flushed, and across restarts."""

    paths = st.sampled_from(["a", "b", "ü/new\nline", "\udcff\u202e"])

    def __init__(self, new: NewLedger, place: str) -> None:
        super().__init__()
        self.new, self.place = new, place
        self.receipts: dict[str, Receipt] = {}
        self.retries: dict[str, tuple[Retry, bool]] = {}
        self.uploads: dict[str, set[str]] = {}
        self.calls: list[int] = []
        self.told: list[int] = []
        self.ledger = new(place, "here")

    def teardown(self) -> None:
        self.ledger.close(10)

    def callback(self) -> Callable[[], None]:
        number = len(self.calls)
        self.calls.append(number)
        return lambda: self.told.append(number)

    @rule(path=paths, key=st.sampled_from(["k1", "k2"]), inode=st.sampled_from([-(2**63), 1, 2**63 - 1]))
    def receipt(self, path: str, key: str, inode: int) -> None:
        row = a_receipt(path, key=key, identity=SOME._replace(inode=inode), destination=self.ledger.destination)
        self.ledger.record_receipt(row, self.callback())
        self.receipts[path] = row
        self.retries.pop(path, None)

    @rule(path=paths, state=st.sampled_from(State), at=st.sampled_from([10.0, 20.0]))
    def retry(self, path: str, state: State, at: float) -> None:
        row = a_retry(path, state=state, next_attempt=at)
        self.ledger.record_retry(row, self.callback())
        self.retries[path] = (row, False)

    @rule(paths=st.lists(paths, max_size=3))
    def claim(self, paths: list[str]) -> None:
        self.ledger.claim(paths, self.callback())
        for path in paths:
            if path in self.retries:
                self.retries[path] = (self.retries[path][0], True)

    @rule(paths=st.none() | st.lists(paths, max_size=3))
    def release(self, paths: list[str] | None) -> None:
        self.ledger.release(paths)
        for path, (row, claimed) in self.retries.items():
            if path in paths if paths is not None else not claimed:
                self.retries[path] = (row._replace(state=State.WAITING, next_attempt=0.0), False)

    @rule(path=paths)
    def forget(self, path: str) -> None:
        self.ledger.forget(path)
        self.receipts.pop(path, None)
        self.retries.pop(path, None)

    @rule(path=paths)
    def forget_retry(self, path: str) -> None:
        self.ledger.forget_retry(path, self.callback())
        self.retries.pop(path, None)

    @rule(paths=st.sets(paths))
    def drop_receipts(self, paths: set[str]) -> None:
        self.ledger.drop_receipts(sorted(paths))
        for path in paths:
            self.receipts.pop(path, None)

    @rule(path=paths)
    def multipart(self, path: str) -> None:
        self.ledger.record_multipart(a_multipart(path), self.callback())
        self.ledger.record_part(a_part(a_multipart(path).upload_id))
        self.uploads[path] = {a_multipart(path).upload_id}

    @rule(path=paths)
    def forget_multipart(self, path: str) -> None:
        self.ledger.forget_multipart(a_multipart(path).upload_id)
        self.uploads.pop(path, None)

    @rule()
    def restart(self) -> None:
        assert self.ledger.close(10)
        self.retries = {path: (row, False) for path, (row, _) in self.retries.items()}
        self.ledger = self.new(self.place, "here")

    @rule()
    def compare(self) -> None:
        assert self.ledger.flush(WAIT_S)

        assert self.told == self.calls
        with self.ledger.reader() as reader:
            assert {row.path: row for row in reader.receipts()} == self.receipts
            assert {row.path: row for row in reader.retries()} == {p: row for p, (row, _) in self.retries.items()}
            rows = {path: row for path, (row, _) in self.retries.items()}
            known = {path: Known(self.receipts.get(path), rows.get(path)) for path in {*self.receipts, *rows}}
            assert reader.known([*sorted(known), "unknown"]) == known
            free = [row for row, claimed in self.retries.values() if row.state is State.WAITING and not claimed]
            for now in (0.0, 15.0, 30.0):
                due = reader.due(now, 100)
                assert {row.path for row in due} == {row.path for row in free if row.next_attempt <= now}
                assert [row.next_attempt for row in due] == sorted(row.next_attempt for row in due)
            assert reader.next_due() == min((row.next_attempt for row in free), default=None)
            assert {row.path: {row.upload_id} for row in reader.multiparts()} == self.uploads
            for name in ["a", "b", "ü/new\nline", "\udcff\u202e"]:
                upload_id = a_multipart(name).upload_id
                assert bool(reader.parts(upload_id)) is (name in self.uploads)

    @invariant()
    def told_in_order(self) -> None:
        assert self.told == self.calls[: len(self.told)]


def test_any_history_of_calls(new: NewLedger) -> None:
    """Three dicts know as much as the ledger, whatever it is told, across restarts."""
    places = itertools.count()
    run_state_machine_as_test(
        lambda: LedgerAgainstModel(new, f"model-{next(places)}"),  # type: ignore[arg-type] # a factory will do
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
    )


def test_news_are_what_is_not_as_the_ledger_has_it(ledger: LedgerBackend) -> None:
    """Sent here, in this very state, to be kept; or in the retry list in this very state. All else is news."""
    sent = SOME._replace(inode=7)
    rewritten = sent._replace(size=sent.size + 1)
    odd = os.fsdecode(b"odd-\xff")
    paths = ["same", odd, "changed", "elsewhere", "removed", "failed since", "waiting since", "repaired"]
    for path in paths:
        destination = ledger.destination + (path == "elsewhere")
        after = "delete" if path == "removed" else "keep"
        ledger.record_receipt(a_receipt(path)._replace(identity=sent, destination=destination, after=after))
    ledger.record_retry(a_retry("failed since", identity=SOME))
    for path in ("waiting since", "waiting", "repaired", "parked"):
        state = State.PARKED if path == "parked" else State.WAITING
        ledger.record_retry(a_retry(path, identity=rewritten, state=state))
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        found = dict.fromkeys(paths, sent) | {"changed": rewritten, odd + "2": sent}
        found |= dict.fromkeys(("waiting since", "waiting", "parked"), rewritten)
        news = reader.news(sorted(found.items()), ledger.destination)

    assert "elsewhere" in news  # whether the ledger has its row or not
    del news["elsewhere"]
    assert news == {
        odd + "2": False,
        "changed": True,
        "removed": True,
        "failed since": True,
        "repaired": True,
    }


@pytest.mark.parametrize("count", [0, 1, LOOKUP_ROWS - 1, LOOKUP_ROWS, LOOKUP_ROWS + 1])
def test_news_of_any_number_of_files(ledger: LedgerBackend, count: int) -> None:
    """The statement has a fixed width; what is left over of it names no file."""
    found = [(f"{number:04}", SOME) for number in range(count)]
    for path, _ in found[1::2]:
        ledger.record_receipt(a_receipt(path)._replace(identity=SOME, destination=ledger.destination))
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert reader.news(found, ledger.destination) == dict.fromkeys([path for path, _ in found[::2]], False)


def test_totals_are_what_counting_tells(ledger: LedgerBackend) -> None:
    """Whatever becomes of the rows: replaced, parked, released, hastened, claimed, forgotten, sent after all."""
    for number in range(20):
        ledger.record_receipt(a_receipt(f"sent {number}", identity=SOME._replace(size=number)))
        ledger.record_retry(a_retry(f"failed {number}", state=State.PARKED if number % 3 else State.WAITING))
    ledger.record_receipt(a_receipt("sent 3", identity=SOME._replace(size=1000)))
    ledger.record_receipt(a_receipt("failed 4"))
    ledger.record_retry(a_retry("failed 5", state=State.WAITING))
    ledger.record_retry(a_retry("failed 6", state=State.PARKED))
    ledger.claim(["failed 0", "failed 9"])
    ledger.release(["failed 7", "failed 9"])
    ledger.hasten(0, 1)
    ledger.drop_receipts(["sent 0", "sent 1", "unknown"])
    ledger.forget("sent 2")
    ledger.forget_retry("failed 8")
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        receipts, retries = list(reader.receipts()), list(reader.retries())
        waiting = [retry for retry in retries if retry.state is State.WAITING]
        assert reader.counts() == {
            "uploaded": len(receipts),
            "waiting": len(waiting),
            "parked": len(retries) - len(waiting),
        }
        assert reader.totals() == Totals(
            uploaded=len(receipts),
            uploaded_bytes=sum(receipt.identity.size for receipt in receipts),
            waiting=len(waiting),
            parked=len(retries) - len(waiting),
            claimed=1,
            oldest_ns=SOME.ctime_ns,
            unsent_bytes=(len(retries) - 1) * SOME.size,
        )


def test_backlog_by_age_and_segment(ledger: LedgerBackend) -> None:
    """As postfix's qshape: the retry list by age and first path segment, and by error."""
    now = 1_000_000.0
    for path, age_s, state, own in [
        ("a/1", 10, State.WAITING, 0),
        ("a/b/2", 301, State.WAITING, 1),
        ("a/3", 4000, State.PARKED, 0),
        ("top", 90_000, State.PARKED, 0),
        (os.fsdecode(b"\xff/x"), 10, State.PARKED, 0),
        ("future", -500, State.PARKED, 0),
    ]:
        identity = SOME._replace(ctime_ns=int((now - age_s) * 1e9))
        if path == "top":
            ledger.record_receipt(a_receipt(path))
        retry = a_retry(path, identity=identity, error_code="Code", next_attempt=0.0, state=state, own_failures=own)
        ledger.record_retry(retry)
    ledger.record_receipt(a_receipt("sent"))
    ledger.claim(["a/b/2"])
    assert ledger.flush(WAIT_S)

    with ledger.reader() as reader:
        assert sorted(reader.ages(now, 10)) == [("", 1, 0, 0, 1), ("//\xff/", 1, 0, 0, 0), ("a/", 1, 1, 1, 0)]
        assert reader.errors(10) == [("parked", "Code", 4), ("waiting", "Code", 2)]
        assert reader.totals().unsent_bytes == 5 * SOME.size
        assert reader.waiting_without_proof() == 1
        assert [receipt.path for receipt in reader.receipts(unsent=False)] == ["sent"]
