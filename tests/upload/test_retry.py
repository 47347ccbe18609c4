"""When a failed file is tried again: the pure decision, and the thread that acts on it."""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3spool.config.schema import RetryConfig
from s3spool.errors import LedgerError, UploadError
from s3spool.failure.retry_policy import PROVISIONAL, Delay, Park, backoff_s, decide
from s3spool.ledger import store as ledger_module
from s3spool.ledger.queries import Known
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Failures, State
from s3spool.ledger.store import Ledger
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item, Lane
from s3spool.upload import retry as retry_module
from s3spool.upload.retry import RetryThread
from support.failing import fails, held
from support.house import a_breaker
from support.lines import Lines
from support.rows import a_retry
from support.waiting import eventually

POLICY = RetryConfig(initial_s=1.0, max_s=300.0, max_attempts=0)


class Share(random.Random):
    """Jitter that always lies at the same share of the range."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


def error(**fields: Any) -> UploadError:
    return UploadError(**{"operation": "put", "path": "a", "code": "SlowDown", "cause": "slow down", **fields})


SECONDS = st.floats(0.0, 1e6)


@given(st.integers(1, 10**6), SECONDS, SECONDS, st.floats(0.0, 1.0))
def test_backoff_is_clamped(attempt: int, initial_s: float, max_s: float, share: float) -> None:
    """Whatever the attempt, the delay lies between nothing and max_s."""
    delay_s = backoff_s(attempt, initial_s=initial_s, max_s=max_s, rng=Share(share))

    assert 0.0 <= delay_s <= max_s


@given(st.integers(1, 200), SECONDS, SECONDS)
def test_the_cap_never_falls(attempt: int, initial_s: float, max_s: float) -> None:
    """The longest possible delay grows with the attempts until it reaches max_s."""
    caps = [backoff_s(n, initial_s=initial_s, max_s=max_s, rng=Share(1.0)) for n in (attempt, attempt + 1)]

    assert caps[0] <= caps[1]


def test_backoff_doubles_and_never_is_zero() -> None:
    """1, 2, 4 ... seconds at most, and at least a tenth, so that no file is tried in a tight loop."""
    most = [backoff_s(n, initial_s=1.0, max_s=300.0, rng=Share(1.0)) for n in (1, 2, 3, 9, 10, 1000)]
    least = [backoff_s(n, initial_s=1.0, max_s=300.0, rng=Share(0.0)) for n in (1, 2, 3, 9, 10, 1000)]

    assert most == [1, 2, 4, 256, 300, 300]
    assert least == [0.1] * 6


def test_jitter_spreads_what_failed_together() -> None:
    """A thousand files that failed at once do not come back at once."""
    rng = random.Random(7)

    delays = {round(backoff_s(5, initial_s=1.0, max_s=300.0, rng=rng)) for _ in range(1000)}

    assert len(delays) > 10


MAX_ATTEMPTS = "9 attempts failed (retry.max_attempts), the last with InternalError: broken"
REFUSED = error(code="EntityTooLarge", cause="too large", permanent=True)


def failures(attempts: int, *, own: int = 0, since_s: float = 0.0) -> Failures:
    """The last of them `since_s` after the first."""
    return Failures(attempts, 1000.0, 1000.0 + since_s, "InternalError", own)


def decided(error: UploadError, failures: Failures, **policy: Any) -> Delay | Park:
    settings = {"initial_s": 1.0, "max_s": 300.0, "max_attempts": 0} | policy
    return decide(error, failures, policy=RetryConfig(**settings), rng=Share(1.0))


@pytest.mark.parametrize(
    ("attempts", "since_s", "delay_s"),
    [
        (1, 0.0, 1.0),
        (4, 7.0, 8.0),
        (5, 15.0, 10.0),
        (9, 60.0, 10.0),
        (9, 60.1, 60.1 / 6),
        (9, 90.0, 15.0),
        (9, 1200.0, 200.0),
        (9, 86400.0, 256.0),
        (10**6, 86400.0, 300.0),
    ],
)
def test_an_unproven_failure_waits_for_a_share_of_its_outage(attempts: int, since_s: float, delay_s: float) -> None:
    """Ten seconds or a sixth of the time since the first failure, whichever is longer; never above the backoff."""
    decision = decided(error(), failures(attempts, since_s=since_s))

    assert isinstance(decision, Delay)
    assert decision.seconds == pytest.approx(delay_s)


@pytest.mark.parametrize(("max_s", "since_s", "delay_s"), [(5.0, 0.0, 5.0), (5.0, 3600.0, 5.0), (20.0, 3600.0, 20.0)])
def test_no_wait_exceeds_retry_max_s(max_s: float, since_s: float, delay_s: float) -> None:
    """A person's wish is stronger than either cap."""
    assert decided(error(), failures(30, since_s=since_s), max_s=max_s) == Delay(delay_s)


@pytest.mark.parametrize(("attempts", "delay_s"), [(1, 1.0), (5, 16.0), (9, 256.0), (10**6, 300.0)])
def test_a_proven_failure_backs_off_up_to_retry_max_s(attempts: int, delay_s: float) -> None:
    """It is known to be the file's own: nobody waits for it to pass quickly."""
    assert decided(error(), failures(attempts, own=1)) == Delay(delay_s)


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize(("wish_s", "delay_s"), [(20.0, 20.0), (0.0, 2.0), (2.5, 2.5), (86400.0, 300.0)])
def test_retry_after_is_honoured_within_reason(own: int, wish_s: float, delay_s: float) -> None:
    """The server's wish lengthens the wait, but not beyond retry.max_s, and never shortens it."""
    assert decided(error(retry_after_s=wish_s), failures(2, own=own)) == Delay(delay_s)


def test_a_proven_refusal_parks_for_good() -> None:
    """With S3's own sentence, whatever the attempts and the server's wish."""
    assert decided(REFUSED, failures(1, own=1)) == Park("too large")
    assert decided(error(permanent=True, cause="no", retry_after_s=5.0), failures(7, own=2)) == Park("no")


@pytest.mark.parametrize("max_attempts", [0, 1])
def test_an_unproven_refusal_parks_provisionally_at_the_third(max_attempts: int) -> None:
    """Nobody knows whose fault it is, and a person should hear of it; any success gives it another try."""
    decisions = [decided(REFUSED, failures(n, since_s=1.0), max_attempts=max_attempts) for n in range(1, 6)]

    assert PROVISIONAL == 3
    assert decisions == [Delay(1.0), Delay(2.0), *[Park("too large", provisional=True)] * 3]


def test_what_is_not_refused_for_good_is_never_parked_without_proof() -> None:
    """An outage of a year parks nothing."""
    assert decided(error(), failures(10**6, since_s=3e7), max_attempts=1) == Delay(300.0)


@pytest.mark.parametrize(
    ("attempts", "own", "max_attempts", "parks"),
    [
        (9, 9, 9, True),
        (20, 9, 9, True),
        (20, 9, 8, True),
        (20, 8, 9, False),
        (20, 0, 9, False),
        (20, 20, 0, False),
        (1, 1, 1, True),
    ],
)
def test_max_attempts_counts_own_failures_alone(attempts: int, own: int, max_attempts: int, parks: bool) -> None:
    """Those that were proven to be the file's own; an outage costs no file an attempt."""
    failed = error(code="InternalError", cause="broken")

    decision = decided(failed, failures(attempts, own=own), max_attempts=max_attempts)

    assert isinstance(decision, Park if parks else Delay)
    if own == 9 and parks:
        assert decision == Park(MAX_ATTEMPTS)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite3", destination="d")
    ledger.start()
    yield ledger
    ledger.close(10)


def waiting(ledger: Ledger, *paths: str, next_attempt: float = 100.0, **fields: Any) -> None:
    for path in paths:
        ledger.record_retry(a_retry(path, next_attempt=next_attempt, **fields))
    assert ledger.flush(10)


def an_inbox(size: int = 10) -> Inbox:
    return Inbox(size, 20, a_breaker(initial_s=1.0, max_s=1.0))


@pytest.fixture
def start(ledger: Ledger) -> Iterator[Callable[[Inbox], RetryThread]]:
    """Runs the thread until the test ends it, or ends."""
    threads: list[RetryThread] = []

    def started(inbox: Inbox) -> RetryThread:
        threads.append(RetryThread(ledger, inbox, POLICY))
        threads[-1].start()
        return threads[-1]

    yield started
    for thread in threads:
        thread.close(10)
        assert not thread.alive()


def a_retried(path: str, **fields: Any) -> Item:
    """What `a_retry` becomes in the inbox."""
    return Item(path, Lane.RETRY, a_retry(path, **fields).failures)


def test_a_tick_hands_over_what_is_due(ledger: Ledger) -> None:
    """Due files go to the inbox with their history; those that are not yet due, or parked, stay."""
    waiting(ledger, "b", next_attempt=99.0, attempts=3, first_error_at=50.0, own_failures=2)
    waiting(ledger, "a", next_attempt=100.0, attempts=1, first_error_at=60.0)
    waiting(ledger, "later", next_attempt=107.0)
    waiting(ledger, "parked", next_attempt=0.0, state=State.PARKED)
    inbox = an_inbox()
    thread = RetryThread(ledger, inbox, POLICY)

    with Reader(ledger.path) as reader:
        wait_s = thread.tick(reader, 100.0)
        again_s = thread.tick(reader, 100.0)

    assert (wait_s, again_s) == (7.0, 7.0)
    assert inbox.take_nowait() == a_retried("b", attempts=3, first_error_at=50.0, own_failures=2)
    assert inbox.take_nowait() == a_retried("a", attempts=1, first_error_at=60.0)
    assert inbox.take_nowait() is None


def test_an_empty_list_needs_no_look(ledger: Ledger) -> None:
    """With nothing waiting the thread sleeps until it is woken."""
    with Reader(ledger.path) as reader:
        assert RetryThread(ledger, an_inbox(), POLICY).tick(reader, 100.0) is None


def test_a_clock_set_back_postpones_by_max_s_at_most(ledger: Ledger) -> None:
    """Times in the ledger are the wall clock's; when that jumps back a year, files do not wait a year."""
    waiting(ledger, "a", next_attempt=3e7)
    waiting(ledger, "b", next_attempt=100.0 + POLICY.max_s)
    inbox = an_inbox()
    thread = RetryThread(ledger, inbox, POLICY)

    with Reader(ledger.path) as reader:
        assert thread.tick(reader, 100.0) == 0.0
        assert thread.tick(reader, 100.0) == POLICY.max_s

    assert inbox.listing(10)[0] == ["a"]


def test_a_full_inbox_leaves_the_rest_for_later(ledger: Ledger) -> None:
    """Only what found room is claimed; the rest is due still, and asked for again soon."""
    waiting(ledger, "a", "b", "c")
    inbox = an_inbox(2)
    thread = RetryThread(ledger, inbox, POLICY)

    with Reader(ledger.path) as reader:
        wait_s = thread.tick(reader, 100.0)
        taken = [inbox.take_nowait(), inbox.take_nowait()]
        left = [row.path for row in reader.due(100.0, 10)]
        thread.tick(reader, 100.0)

    assert wait_s is not None
    assert 0 < wait_s <= 5
    assert [item.path for item in taken if item] == ["a", "b"]
    assert left == ["c"]
    assert inbox.take_nowait() == a_retried("c")


def test_what_another_daemon_has_tried_meanwhile_is_not_due(ledger: Ledger) -> None:
    """It was due when it was looked for; with the claim comes the newer row, which waits again or is parked."""
    waiting(ledger, "due", "failed again", "parked")
    rows = (
        a_retry("due", next_attempt=100.0),
        a_retry("failed again", next_attempt=101.0),
        a_retry("parked", next_attempt=0.0, state=State.PARKED),
    )
    claims = mock.Mock()
    claims.take.return_value = {row.path: Known(None, row) for row in rows}
    inbox = an_inbox()
    thread = RetryThread(ledger, inbox, POLICY)
    thread._claims = claims

    with Reader(ledger.path) as reader:
        thread.tick(reader, 100.0)

    assert inbox.listing(10)[0] == ["due"]
    given_back = [path for call in claims.give_back.call_args_list for path in call.args[0]]
    assert sorted(given_back) == ["failed again", "parked"]


def test_an_inbox_without_any_room(ledger: Ledger) -> None:
    """Nothing is claimed where nothing was accepted."""
    waiting(ledger, "a")
    inbox = an_inbox(1)
    inbox.offer([Item("other", Lane.RETRY)])

    with Reader(ledger.path) as reader:
        RetryThread(ledger, inbox, POLICY).tick(reader, 100.0)
        left = [row.path for row in reader.due(100.0, 10)]

    assert left == ["a"]


def test_more_than_a_batch_is_looked_at_again_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list is handed over in batches without a pause between them."""
    monkeypatch.setattr(retry_module, "BATCH", 2)
    waiting(ledger, "a", "b", "c")
    thread = RetryThread(ledger, an_inbox(), POLICY)

    with Reader(ledger.path) as reader:
        waits = [thread.tick(reader, 100.0), thread.tick(reader, 100.0)]

    assert waits == [0.0, None]


def fail_all(ledger: Ledger, inbox: Inbox, *, parked: str) -> None:
    """What a worker does with each file: it fails again, and waits until 101, or is parked."""
    while (item := inbox.take_nowait()) is not None:
        assert isinstance(item, Item)
        state, due = (State.PARKED, 0.0) if item.path.startswith(parked) else (State.WAITING, 101.0)
        done = functools.partial(_done, inbox, item.path)
        ledger.record_retry(a_retry(item.path, attempts=3, next_attempt=due, state=state), done)


def _done(inbox: Inbox, path: str) -> None:
    inbox.done(path)


def test_race_a_worker_fails_again_before_the_claim(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that fails at once, before its claim is in the ledger, must still come due again."""
    waiting(ledger, "a", "b")
    inbox = an_inbox()
    offer = inbox.offer_nowait

    def a_quick_worker(items: Sequence[Item], claim: Callable[[list[str]], None]) -> int:
        accepted = offer(items, claim)
        fail_all(ledger, inbox, parked="b")
        return accepted

    monkeypatch.setattr(inbox, "offer_nowait", a_quick_worker)
    thread = RetryThread(ledger, inbox, POLICY)

    with Reader(ledger.path) as reader:
        wait_s = thread.tick(reader, 100.0)
        due = [row.path for row in reader.due(101.0, 10)]
        ledger.release(None)
        assert ledger.flush(10)
        released = {row.path for row in reader.due(101.0, 10)}

    assert due == ["a"]
    assert wait_s == 1.0
    assert released == {"a", "b"}


@pytest.mark.parametrize("let_go", ["all", "provisional"])
def test_race_files_that_changed_fail_while_their_old_rows_come_due(ledger: Ledger, let_go: str) -> None:
    """A thousand files are sent because they changed, and fail, before the retry thread has seen their new rows.

    No row is claimed that no worker has: `retry --all` and the next success give each of them another try.
    """
    names = [f"{kind}{number}" for kind in ("waits ", "parked ") for number in range(500)]
    waiting(ledger, *names)
    inbox = an_inbox(2000)
    inbox.offer([Item(name) for name in names])
    thread = RetryThread(ledger, inbox, POLICY)

    with Reader(ledger.path) as reader:
        with held(ledger):
            fail_all(ledger, inbox, parked="parked")
            wait_s = thread.tick(reader, 100.0)  # reads the old rows
        if let_go == "provisional":
            ledger.record_retry(a_retry("other", state=State.PARKED, provisional=True))
            ledger.release_provisional()
        else:
            ledger.release(None)
        assert ledger.flush(10)
        due = [row.path for row in reader.due(1e9, 2000)]

    assert wait_s == retry_module.ROOM_S
    assert inbox.counts() == (0, 0)
    assert len([path for path in due if path.startswith("waits")]) == 500
    assert len([path for path in due if path.startswith("parked")]) == (500 if let_go == "all" else 0)


def test_files_that_are_in_the_inbox_already_hold_up_no_other_retry(ledger: Ledger) -> None:
    """More large files that changed than a batch has, due and in the inbox for hours: small ones go past them."""
    changed = [f"changed {number}" for number in range(2 * retry_module.BATCH)]
    waiting(ledger, *changed, next_attempt=1.0)
    waiting(ledger, "small", next_attempt=50.0)
    inbox = an_inbox(5000)
    inbox.offer([Item(name) for name in changed])
    thread = RetryThread(ledger, inbox, POLICY)

    with Reader(ledger.path) as reader:
        waits = [thread.tick(reader, 100.0) for _ in range(4)]
        unclaimed = [row.path for row in reader.due(100.0, 5000)]

    assert inbox.state_of("small") == "queued"
    assert set(unclaimed) == set(changed)
    assert waits == [retry_module.ROOM_S, retry_module.ROOM_S, 0.0, retry_module.ROOM_S]


def test_the_thread_sleeps_until_woken(ledger: Ledger, start: Callable[[Inbox], RetryThread]) -> None:
    """A new row and a wake are enough: the file comes to the inbox."""
    inbox = an_inbox()
    thread = start(inbox)
    eventually(lambda: thread.ticks == 1)

    waiting(ledger, "a")
    thread.wake()

    eventually(lambda: inbox.listing(10)[0] == ["a"])
    assert thread.alive()


def test_a_shorter_max_s_counts_at_once(ledger: Ledger, start: Callable[[Inbox], RetryThread]) -> None:
    """The thread may sleep for as long as the old one said."""
    waiting(ledger, "a", next_attempt=time.time() + 300)
    inbox = an_inbox()
    thread = start(inbox)
    eventually(lambda: thread.ticks == 1)

    thread.apply(RetryConfig(initial_s=0.1, max_s=1.0, max_attempts=0))

    eventually(lambda: inbox.listing(10)[0] == ["a"])


def test_the_thread_wakes_by_itself_when_a_file_is_due(ledger: Ledger, start: Callable[[Inbox], RetryThread]) -> None:
    """Nobody has to remind it of a file that was not due when it looked."""
    waiting(ledger, "a", next_attempt=time.time() + 0.05)
    inbox = an_inbox()

    start(inbox)

    eventually(lambda: inbox.listing(10)[0] == ["a"])


@pytest.mark.parametrize("act", ["__init__", "due"])
@pytest.mark.parametrize("error", [LedgerError, OSError])
def test_the_thread_outlives_a_broken_ledger(
    ledger: Ledger,
    start: Callable[[Inbox], RetryThread],
    lines: Lines,
    act: str,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that cannot be opened for a while, or breaks while it is open, costs a line and a pause, not the thread."""
    monkeypatch.setattr(retry_module, "ROOM_S", 0.001)
    waiting(ledger, "a")
    fails(monkeypatch, Reader, act, error("unable to open database file"))
    inbox = an_inbox()

    start(inbox)

    eventually(lambda: inbox.counts() == (1, 0))
    assert len(lines.named("ledger.failed")) == 1


def test_closing_does_not_wait_for_a_claim(ledger: Ledger, start: Callable[[Inbox], RetryThread], lines: Lines) -> None:
    """A ledger that cannot write does not hold the shutdown up, and nothing is handed over twice."""
    waiting(ledger, "a")
    with contextlib.closing(sqlite3.connect(ledger.path)) as other:
        other.execute("CREATE TRIGGER full BEFORE UPDATE ON retries BEGIN SELECT * FROM nowhere; END")
    inbox = an_inbox()
    thread = start(inbox)
    eventually(lambda: inbox.take_nowait() == a_retried("a"))
    tried = ledger.tries
    eventually(lambda: ledger.tries >= tried + 3)  # 1.5 seconds of trying

    thread.close(10)

    assert not thread.alive()
    assert (thread.ticks, inbox.counts()) == (1, (0, 1))


def test_closing_while_the_ledger_cannot_be_read(
    ledger: Ledger, start: Callable[[Inbox], RetryThread], lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause after a failure ends with the daemon."""
    monkeypatch.setattr(ledger_module, "CHECK_S", 0.1)
    ledger.path.rename(ledger.path.with_name("hidden"))
    thread = start(an_inbox())
    eventually(lambda: lines.named("ledger.failed"))

    thread.close(10)

    assert not thread.alive()
