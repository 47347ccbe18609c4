"""The circuit breaker: whose fault a failure is, when it opens, what goes out meanwhile, and what closes it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3spool.errors import Fault, Scope, UploadError
from s3spool.failure import breaker as breaker_module
from s3spool.failure.breaker import (
    ARRIVAL_S,
    ARRIVALS,
    LONGEST_ROUND_S,
    LOST_S,
    PROBES,
    STREAK,
    CircuitBreaker,
    Probe,
    Times,
    Verdict,
)
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.ledger.rows import Failures
from s3spool.queue.item import Item
from support.lines import Lines, recorded
from support.waiting import in_threads

EPOCH = 1_700_000_000.0
NOBODYS = [Scope.UNKNOWN, Scope.EVERYBODY]


class Top(random.Random):
    """No jitter: always the cap."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Clock:
    """Both clocks, which go on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.patch = SimpleNamespace(time=lambda: EPOCH + self.now, monotonic=lambda: self.now)


def at(time_s: float) -> Times:
    """As both clocks of these tests show it."""
    return Times(time_s, time_s - EPOCH)


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with mock.patch.object(breaker_module, "time", clock.patch):
        yield clock


@pytest.fixture
def breaker(clock: Clock, lines: Lines) -> CircuitBreaker:
    return a_breaker(initial_s=1.0, max_s=300.0)


def a_breaker(*, initial_s: float, max_s: float) -> CircuitBreaker:
    limiter = ConcurrencyLimiter("memory", max_s=max_s)
    limiter.widen(100)
    return CircuitBreaker("s3://bucket/in/", initial_s=initial_s, max_s=max_s, limiter=limiter, rng=Top())


def an_error(scope: Scope = Scope.UNKNOWN, code: str = "InternalError", **fields: Any) -> UploadError:
    return UploadError("upload", "a", code, "no", scope, **fields)


DENIED = an_error(Scope.EVERYBODY, "AccessDenied", hint="grant s3:PutObject", status=403)


def fail(breaker: CircuitBreaker, item: Item, error: UploadError) -> Verdict:
    """By a request that was sent just now."""
    now_s = breaker_module.time.monotonic()  # type: ignore[attr-defined]
    return breaker.failed(item.path, item.failures, error, now_s, success_before=item.success_before)


def opened(breaker: CircuitBreaker, error: UploadError = DENIED) -> CircuitBreaker:
    assert fail(breaker, Item("a"), error).fault is Fault.DESTINATION
    assert breaker.open
    return breaker


def probes(breaker: CircuitBreaker) -> int:
    """How many may go now."""
    count = 0
    while breaker.take_probe(untried=True) is not None:
        count += 1
    return count


def tried_again(clock: Clock, breaker: CircuitBreaker, verdict: Verdict, *, passed: bool) -> Item:
    """The file with its evidence, as a worker takes it; between its attempts another file passes, or does not."""
    clock.now += 1
    if passed:
        breaker.succeeded(at(clock.patch.time()))
        clock.now += 1
    return Item("bad", failures=verdict.failures, success_before=breaker.last_success_at)


# Rule 1: proven


def test_a_first_failure_proves_nothing(clock: Clock, breaker: CircuitBreaker) -> None:
    """However many others have passed before it; its evidence is kept."""
    breaker.succeeded(at(clock.patch.time()))
    clock.now += 1

    verdict = fail(breaker, Item("bad", success_before=breaker.last_success_at), an_error())

    assert verdict == Verdict(Fault.UNKNOWN, Failures(0, EPOCH + 1001, EPOCH + 1001, "InternalError", 0))


@pytest.mark.parametrize("scope", NOBODYS)
@pytest.mark.parametrize("permanent", [True, False])
def test_another_file_that_passes_between_proves_it(
    clock: Clock, breaker: CircuitBreaker, scope: Scope, permanent: bool
) -> None:
    """The same error before and after a success of another file: it is the file's own, whatever the error says."""
    error = an_error(scope, permanent=permanent)
    first = fail(breaker, Item("bad"), error)

    verdict = fail(breaker, tried_again(clock, breaker, first, passed=True), error)

    assert verdict.fault is Fault.OWN
    assert verdict.failures == Failures(0, EPOCH + 1000, EPOCH + 1002, "InternalError", 1)
    assert not breaker.open


def test_without_a_success_between_nothing_is_proven(clock: Clock, breaker: CircuitBreaker) -> None:
    """A success before the first failure does not count, however often the file fails."""
    breaker.succeeded(at(clock.patch.time()))
    clock.now += 1
    verdict = fail(breaker, Item("bad", success_before=breaker.last_success_at), an_error())

    for _ in range(5):
        verdict = fail(breaker, tried_again(clock, breaker, verdict, passed=False), an_error())
        assert verdict.fault is Fault.UNKNOWN

    assert (verdict.failures.first_error_at, verdict.failures.own) == (EPOCH + 1001, 0)


def test_what_was_sent_before_the_failure_proves_nothing(clock: Clock, breaker: CircuitBreaker) -> None:
    """A slow upload of before may be answered after the failure: it shows what was then."""
    before = clock.patch.time()
    clock.now += 1
    first = fail(breaker, Item("bad"), an_error())
    clock.now += 1
    breaker.succeeded(at(before))

    verdict = fail(breaker, tried_again(clock, breaker, first, passed=False), an_error())

    assert verdict.fault is Fault.UNKNOWN


def test_a_success_during_the_attempt_proves_nothing(clock: Clock, breaker: CircuitBreaker) -> None:
    """It has to have come before the attempt began: what fails in the last seconds of an outage is nobody's fault."""
    first = fail(breaker, Item("bad"), an_error())
    item = tried_again(clock, breaker, first, passed=False)
    clock.now += 1
    breaker.succeeded(at(clock.patch.time()))

    assert fail(breaker, item, an_error()).fault is Fault.UNKNOWN


def test_another_error_proves_nothing(clock: Clock, breaker: CircuitBreaker) -> None:
    """Refused first, then timed out: the second says nothing of the first; the proof begins anew."""
    verdict = fail(breaker, Item("bad"), an_error())
    other = fail(breaker, tried_again(clock, breaker, verdict, passed=True), an_error(code="OPERATION_TIMEDOUT"))
    assert (other.fault, other.failures.error_code) == (Fault.UNKNOWN, "OPERATION_TIMEDOUT")

    same = fail(breaker, tried_again(clock, breaker, other, passed=True), an_error(code="OPERATION_TIMEDOUT"))
    assert same.fault is Fault.OWN


def test_proven_stays_proven_while_the_error_repeats(clock: Clock, breaker: CircuitBreaker) -> None:
    """Without further successes; each of them counts, and another error ends that."""
    verdict = fail(breaker, Item("bad"), an_error())
    verdict = fail(breaker, tried_again(clock, breaker, verdict, passed=True), an_error())
    for count in (2, 3, 4):
        verdict = fail(breaker, tried_again(clock, breaker, verdict, passed=False), an_error())
        assert (verdict.fault, verdict.failures.own) == (Fault.OWN, count)

    verdict = fail(breaker, tried_again(clock, breaker, verdict, passed=False), an_error(code="BadDigest"))

    assert (verdict.fault, verdict.failures.own) == (Fault.UNKNOWN, 0)


def test_what_the_file_itself_shows_needs_no_other(breaker: CircuitBreaker) -> None:
    """Unreadable at the first attempt: its own."""
    verdict = fail(breaker, Item("bad"), an_error(Scope.FILE, "PermissionError"))

    assert (verdict.fault, verdict.failures.own) == (Fault.OWN, 1)


@pytest.mark.parametrize("is_open", [False, True])
def test_a_proven_failure_never_touches_the_breaker(clock: Clock, breaker: CircuitBreaker, is_open: bool) -> None:
    """A crowd of such files neither opens it nor closes it, and is counted though it is open."""
    evidence = Failures(3, EPOCH, EPOCH, "AccessDenied", 2)
    if is_open:
        opened(breaker)
        clock.now += 0.5
    due_s = breaker.next_probe_s

    faults = {fail(breaker, Item(str(n), failures=evidence), DENIED).fault for n in range(3 * STREAK)}
    faults |= {fail(breaker, Item(f"s {n}"), an_error(Scope.FILE)).fault for n in range(3 * STREAK)}

    assert faults == {Fault.OWN}
    assert (breaker.open, breaker.next_probe_s) == (is_open, due_s)


def test_a_part_of_a_large_file_is_no_success_against_others(clock: Clock, breaker: CircuitBreaker) -> None:
    """S3 takes parts of an upload that it refuses in the end."""
    first = fail(breaker, Item("bad"), an_error())
    clock.now += 1
    breaker.succeeded(at(clock.patch.time()), whole=False)

    assert breaker.last_success_at == 0
    assert fail(breaker, tried_again(clock, breaker, first, passed=False), an_error()).fault is Fault.UNKNOWN


def test_the_latest_start_counts_whatever_the_order_of_the_answers(breaker: CircuitBreaker) -> None:
    """A slow upload that ends late does not set the time of the last success back."""
    for began in (20.0, 30.0, 10.0):
        breaker.succeeded(at(EPOCH + began))

    assert breaker.last_success_at == EPOCH + 30


# Rule 2: opening


def test_an_error_that_no_file_could_pass_opens_at_once(clock: Clock, breaker: CircuitBreaker, lines: Lines) -> None:
    """403 needs no streak: one line says what is wrong, why it opened, what to do and when the next try is."""
    verdict = fail(breaker, Item("in/a"), DENIED)

    assert verdict == Verdict(Fault.DESTINATION, Failures(0, EPOCH + 1000, EPOCH + 1000, "AccessDenied", 0))
    assert (breaker.open, breaker.paused_at, breaker.reason) == (True, EPOCH + 1000, DENIED)
    assert breaker.evidence == "1 file failed with 403 AccessDenied, which no file could pass"
    assert lines == [
        {
            "event": "destination.paused",
            "level": "error",
            "destination": "s3://bucket/in/",
            "error_code": "AccessDenied",
            "error": "no",
            "hint": "grant s3:PutObject",
            "path": "in/a",
            "evidence": breaker.evidence,
            "next_attempt_s": 1.0,
        }
    ]


def test_eight_different_files_open_it(breaker: CircuitBreaker, lines: Lines) -> None:
    """Below eight each backs off; the eighth, with whatever error, opens it."""
    errors = [an_error(permanent=True, code="EntityTooLarge"), an_error()] * (STREAK // 2)

    faults = [fail(breaker, Item(str(n)), error).fault for n, error in enumerate(errors)]

    assert faults == [Fault.UNKNOWN] * 7 + [Fault.DESTINATION]
    assert breaker.open
    assert breaker.evidence == "8 files in a row failed, the last one with InternalError"
    assert [line["evidence"] for line in lines.named("destination.paused")] == [breaker.evidence]


def test_seven_files_never_open_it(breaker: CircuitBreaker) -> None:
    """However often they fail."""
    faults = {fail(breaker, Item(str(n % 7)), an_error()).fault for n in range(10 * STREAK)}

    assert faults == {Fault.UNKNOWN}
    assert not breaker.open


@pytest.mark.parametrize("whole", [True, False])
def test_a_success_between_them_begins_the_count_anew(clock: Clock, breaker: CircuitBreaker, whole: bool) -> None:
    """Also that of a part, and of a request from before: what passes, passes."""
    before = clock.patch.time()
    for n in range(STREAK - 1):
        fail(breaker, Item(str(n)), an_error())

    breaker.succeeded(at(before), whole=whole)

    assert [fail(breaker, Item(f"z{n}"), an_error()).fault for n in range(STREAK)] == [Fault.UNKNOWN] * 7 + [
        Fault.DESTINATION
    ]


def test_a_crowd_of_lost_connections_opens_nothing_while_others_pass(clock: Clock, breaker: CircuitBreaker) -> None:
    """300 files whose requests are reset, beside good ones: the limiter slows them down, which is enough."""
    reset = an_error(code="RECV_ERROR")
    for number in range(300):
        if number % 50 == 0:
            breaker.succeeded(at(EPOCH + clock.now))
        clock.now += LOST_S / 100
        fail(breaker, Item(str(number)), reset)
    assert not breaker.open
    assert breaker.limiter.limit == 50

    clock.now += LOST_S
    fail(breaker, Item("the last"), reset)

    assert breaker.open


def test_an_error_that_a_success_refuted_no_longer_opens_at_once(clock: Clock, breaker: CircuitBreaker) -> None:
    """After 403 a file passed all the same: from now on eight files are needed; another such error still needs one."""
    opened(breaker)
    breaker.succeeded(at(clock.patch.time()))

    faults = [fail(breaker, Item(str(n)), DENIED).fault for n in range(STREAK)]
    assert faults == [Fault.UNKNOWN] * (STREAK - 1) + [Fault.DESTINATION]
    assert breaker.evidence == "8 files in a row failed, the last one with 403 AccessDenied"

    breaker.succeeded(at(clock.patch.time()))
    other = an_error(Scope.EVERYBODY, "NoSuchBucket")
    assert fail(breaker, Item("z"), other).fault is Fault.DESTINATION


def test_a_proven_failure_is_none_of_the_eight(breaker: CircuitBreaker) -> None:
    """Nor does it begin the count anew."""
    for n in range(STREAK - 1):
        fail(breaker, Item(str(n)), an_error())

    fail(breaker, Item("own"), an_error(Scope.FILE))

    assert not breaker.open
    assert fail(breaker, Item("eighth"), an_error()).fault is Fault.DESTINATION


def test_the_streak_begins_anew_after_an_opening(clock: Clock, breaker: CircuitBreaker) -> None:
    """What failed before and during an outage does not count after it."""
    for n in range(STREAK + 20):
        fail(breaker, Item(str(n)), an_error())
    clock.now += 1
    breaker.succeeded(at(clock.patch.time()))

    faults = [fail(breaker, Item(str(n)), an_error()).fault for n in range(STREAK - 1)]

    assert faults == [Fault.UNKNOWN] * (STREAK - 1)


# Rule 3: open


def test_what_fails_while_it_is_open_only_leaves_its_evidence(
    clock: Clock, breaker: CircuitBreaker, lines: Lines
) -> None:
    """A hundred requests that were in flight: uncounted, without a line, and the next round is not put off."""
    opened(breaker)
    clock.now += 0.5

    verdicts = [fail(breaker, Item(str(n), failures=Failures(2, 5.0, 6.0, "x", 0)), an_error()) for n in range(99)]

    assert set(verdicts) == {Verdict(Fault.DESTINATION, Failures(2, 5.0, EPOCH + 1000.5, "InternalError", 0))}
    assert (len(lines), breaker.next_probe_s, breaker.reason) == (1, 0.5, DENIED)


def test_what_was_sent_before_it_closed_fails_as_if_it_were_open(clock: Clock, breaker: CircuitBreaker) -> None:
    """The other probes of the round: uncounted, and they open nothing; what is sent from then on does."""
    opened(breaker)
    clock.now += 1
    sent_s = clock.now
    clock.now += 1
    breaker.succeeded(at(EPOCH + sent_s))

    late = {breaker.failed(str(n), Failures(), an_error(Scope.EVERYBODY), sent_s).fault for n in range(2 * STREAK)}

    assert (late, breaker.open) == ({Fault.DESTINATION}, False)
    assert fail(breaker, Item("a"), an_error(Scope.EVERYBODY)).fault is Fault.DESTINATION
    assert breaker.open


def test_evidence_from_an_outage_counts_after_it(clock: Clock, breaker: CircuitBreaker) -> None:
    """A probe that is refused, others that pass, and the same refusal again: its own."""
    opened(breaker)
    probe = fail(breaker, Item("bad"), an_error())

    verdict = fail(breaker, tried_again(clock, breaker, probe, passed=True), an_error())

    assert (verdict.fault, breaker.open) == (Fault.OWN, False)


# Rule 4: half-open


def test_closed_it_sends_no_probes(breaker: CircuitBreaker) -> None:
    """Everything goes out anyway."""
    assert breaker.take_probe(untried=True) is None


def test_rounds_of_four_by_the_clock(clock: Clock, breaker: CircuitBreaker) -> None:
    """1, 2, 4, 8, 10, 10 s apart, although nothing is ever answered; with the newest file and a random one by turns."""
    opened(breaker)
    assert breaker.take_probe(untried=True) is None

    for wait_s in (1, 2, 4, 8, 10, 10):
        assert breaker.next_probe_s == wait_s
        clock.now += wait_s - 0.01
        assert breaker.take_probe(untried=True) is None
        clock.now += 0.01
        kinds = [breaker.take_probe(untried=True) for _ in range(PROBES + 1)]
        assert kinds == [Probe.NEWEST, Probe.RANDOM, Probe.NEWEST, Probe.RANDOM, None]


def test_next_probe_is_now_while_the_round_has_some_left(clock: Clock, breaker: CircuitBreaker) -> None:
    """And what is left of a round does not add up with the next."""
    opened(breaker)
    clock.now += 1
    assert breaker.take_probe(untried=True) is not None
    assert breaker.next_probe_s == 0

    clock.now += 2

    assert probes(breaker) == PROBES
    assert breaker.next_probe_s == 4


@pytest.mark.parametrize(("initial_s", "max_s", "waits"), [(3.0, 300.0, [3, 6, 10]), (1.0, 1.5, [1, 1.5, 1.5])])
def test_the_retry_section_bounds_the_time_between_rounds(
    clock: Clock, lines: Lines, initial_s: float, max_s: float, waits: list[float]
) -> None:
    """`retry.initial_s` is the first, `retry.max_s` the longest, where that is below ten seconds."""
    breaker = opened(a_breaker(initial_s=initial_s, max_s=max_s))

    for wait_s in waits:
        assert breaker.next_probe_s == wait_s
        clock.now += wait_s
        assert probes(breaker) == PROBES


def test_rounds_begin_with_short_waits_after_each_opening(clock: Clock, breaker: CircuitBreaker) -> None:
    """A success resets the backoff."""
    opened(breaker)
    for _ in range(6):
        clock.now += LONGEST_ROUND_S
        probes(breaker)
    breaker.succeeded(at(clock.patch.time()))

    opened(breaker, an_error(Scope.EVERYBODY, "NoSuchBucket"))

    assert breaker.next_probe_s == 1
    assert breaker.take_probe(untried=True) is None


@given(st.integers(0, 2**32), st.floats(0.01, 400.0), st.floats(0.01, 400.0))
def test_never_more_than_ten_seconds_between_rounds(seed: int, initial_s: float, max_s: float) -> None:
    """Whatever the settings and the jitter."""
    clock = Clock()
    limiter = ConcurrencyLimiter("memory", max_s=max_s)
    with mock.patch.object(breaker_module, "time", clock.patch), recorded():
        rng = random.Random(seed)
        breaker = opened(CircuitBreaker("d", initial_s=initial_s, max_s=max_s, limiter=limiter, rng=rng))
        for _ in range(10):
            assert 0 < breaker.next_probe_s <= LONGEST_ROUND_S + 1e-6
            clock.now += LONGEST_ROUND_S + 0.001
            assert probes(breaker) == PROBES


def test_a_new_arrival_is_tried_within_a_quarter_of_a_second(clock: Clock, breaker: CircuitBreaker) -> None:
    """Beside the rounds; the newest file, because that is the one that came."""
    opened(breaker)

    breaker.expect_arrival()

    assert breaker.next_probe_s == ARRIVAL_S == 0.25
    clock.now += 0.249
    assert breaker.take_probe(untried=True) is None
    clock.now += 0.001
    assert [breaker.take_probe(untried=True), breaker.take_probe(untried=True)] == [Probe.NEWEST, None]
    assert breaker.next_probe_s == pytest.approx(0.75)


def test_a_flood_of_arrivals_is_tried_32_times_a_second(clock: Clock, breaker: CircuitBreaker) -> None:
    """The others wait untried, so that they may have all workers afterwards; a thousand are owed a try at most."""
    opened(breaker)
    for _ in range(3 * ARRIVALS):
        breaker.expect_arrival()
    clock.now += ARRIVAL_S
    assert probes(breaker) == 1
    assert breaker.next_probe_s == 1 / 32

    tried = 0
    while tried < 3 * ARRIVALS and breaker._arrivals:
        clock.now += breaker.next_probe_s
        tried += breaker.take_probe(untried=True) is Probe.NEWEST

    assert clock.now - 1000 >= (ARRIVALS - 1) / 32
    assert ARRIVALS - 1 <= tried <= ARRIVALS + 100, "beside those of the rounds"


def test_an_arrival_that_is_gone_makes_no_probe(clock: Clock, breaker: CircuitBreaker) -> None:
    """Without untried files there is nothing to try early."""
    opened(breaker)
    breaker.expect_arrival()
    clock.now += ARRIVAL_S

    assert breaker.take_probe(untried=False) is None
    assert breaker.take_probe(untried=True) is None


def test_arrivals_are_forgotten_with_the_outage(clock: Clock, breaker: CircuitBreaker) -> None:
    """The next opening has no probe to give yet."""
    opened(breaker)
    breaker.expect_arrival()
    clock.now += ARRIVAL_S
    breaker.succeeded(at(clock.patch.time()))

    opened(breaker, an_error(Scope.EVERYBODY, "NoSuchBucket"))

    assert (breaker.take_probe(untried=True), breaker.next_probe_s) == (None, 1)


def test_a_probe_that_sent_nothing_is_given_back(clock: Clock, breaker: CircuitBreaker) -> None:
    """Its file had vanished: another one goes instead, at once, and workers that wait hear of it."""
    opened(breaker)
    clock.now += 1
    assert probes(breaker) == PROBES
    told: list[float] = []
    breaker.on_change(lambda: told.append(breaker.next_probe_s))

    breaker.refund_probe()

    assert told == [0]
    assert probes(breaker) == 1


def test_no_more_than_a_round_is_given_back(clock: Clock, breaker: CircuitBreaker) -> None:
    """Files that vanish in a crowd do not add up to a crowd of probes."""
    opened(breaker)
    clock.now += 1

    for _ in range(3 * PROBES):
        breaker.refund_probe()
    assert probes(breaker) == PROBES


def test_nothing_is_given_back_while_it_is_closed(clock: Clock, breaker: CircuitBreaker) -> None:
    """The next opening begins without probes, and nobody is woken for it."""
    told: list[bool] = []
    breaker.on_change(lambda: told.append(breaker.open))

    breaker.refund_probe()

    assert told == []
    assert opened(breaker).take_probe(untried=True) is None


def test_a_person_need_not_wait_for_the_round(clock: Clock, breaker: CircuitBreaker) -> None:
    """`s3spool retry` begins one now, and workers hear of it."""
    opened(breaker)
    told: list[float] = []
    breaker.on_change(lambda: told.append(breaker.next_probe_s))

    breaker.probe_now()

    assert told == [0]
    assert probes(breaker) == PROBES
    assert breaker.next_probe_s == 2


@pytest.mark.parametrize("whole", [True, False])
def test_the_first_success_closes_it(clock: Clock, breaker: CircuitBreaker, lines: Lines, whole: bool) -> None:
    """One file, or one part, that passes: everything goes on, and one line says how long it took."""
    opened(breaker)
    clock.now += 2.5
    sent = clock.patch.time()
    clock.now += 1

    breaker.succeeded(at(sent), whole=whole)
    breaker.succeeded(at(sent), whole=whole)

    assert not breaker.open
    assert (breaker.paused_at, breaker.reason, breaker.evidence) == (None, None, "")
    assert lines.named("destination.resumed") == [
        {"event": "destination.resumed", "level": "info", "destination": "s3://bucket/in/", "duration_s": 3.5}
    ]


@pytest.mark.parametrize("seconds", [-0.5, 0.0, 0.5])
def test_only_what_was_sent_no_earlier_than_what_opened_it_closes_it(
    clock: Clock, breaker: CircuitBreaker, seconds: float
) -> None:
    """What was on its way when an outage began says nothing about it; good files among a crowd of bad ones do."""
    sent_s = clock.now
    clock.now += 1
    assert breaker.failed("a", Failures(), DENIED, sent_s).fault is Fault.DESTINATION

    breaker.succeeded(at(EPOCH + sent_s + seconds))

    assert breaker.open == (seconds < 0)
    assert breaker.last_success_at == EPOCH + sent_s + seconds


def test_another_failure_does_not_close_it(clock: Clock, breaker: CircuitBreaker) -> None:
    """Whatever S3 answers: only a file that passes does."""
    opened(breaker)
    clock.now += 1
    for error in (an_error(permanent=True), an_error(Scope.FILE), an_error(code="NoSuchBucket"), DENIED):
        assert breaker.take_probe(untried=True) is not None
        fail(breaker, Item("z"), error)
        assert breaker.open


# Around the rules


def test_listeners_hear_of_each_change_once(clock: Clock, breaker: CircuitBreaker) -> None:
    """After it has happened, and without the lock: they may ask."""
    told: list[tuple[bool, float]] = []
    breaker.on_change(lambda: told.append((breaker.open, breaker.next_probe_s)))

    opened(breaker)
    fail(breaker, Item("b"), DENIED)
    clock.now += 0.5
    breaker.succeeded(at(clock.patch.time()))
    breaker.succeeded(at(clock.patch.time()))

    assert told == [(True, 1.0), (False, 0.5)]


def test_a_clock_that_is_set_does_not_matter_to_the_rounds(breaker: CircuitBreaker, clock: Clock) -> None:
    """Rounds and what closes it go by the monotonic clock."""
    opened(breaker)
    clock.patch.time = lambda: EPOCH - 1e6
    clock.now += 1

    assert probes(breaker) == PROBES
    breaker.succeeded(Times(EPOCH - 1e6, clock.now))
    assert not breaker.open


def test_a_success_lets_one_more_worker_send(breaker: CircuitBreaker) -> None:
    """A limiter that was told to slow down hears of each success, of parts too."""
    breaker.limiter.refused(an_error(Scope.LOAD, "SlowDown"))
    narrow = breaker.limiter.limit

    for _ in range(2 * narrow):
        breaker.succeeded(at(1.0), whole=False)

    assert breaker.limiter.limit > narrow


def test_many_threads_agree(lines: Lines) -> None:
    """Each opening and each closing is logged and told once, and a round never gives more than its four probes."""
    breaker = a_breaker(initial_s=3600.0, max_s=3600.0)
    told: Counter[bool] = Counter()
    probes_taken: list[int] = []
    rounds = 30
    barrier = threading.Barrier(16, timeout=30)
    states: list[bool] = []
    breaker.on_change(lambda: told.update([breaker.open]))

    def run(number: int) -> None:
        for step in range(rounds):
            barrier.wait()
            fail(breaker, Item(f"{number} {step}"), an_error(Scope.EVERYBODY, f"Code{step}"))
            barrier.wait()
            if number == 0:
                states.append(breaker.open)
                breaker._probes_left = PROBES
            barrier.wait()
            probes_taken.append(sum(breaker.take_probe(untried=True) is not None for _ in range(3)))
            barrier.wait()
            breaker.succeeded(Times(EPOCH + step, time.monotonic()))
            barrier.wait()
            if number == 0:
                states.append(breaker.open)

    in_threads(16, run)

    assert states == [True, False] * rounds
    assert sum(probes_taken) == rounds * PROBES
    assert len(lines.named("destination.paused")) == len(lines.named("destination.resumed")) == rounds
    assert told.total() == 2 * rounds
    assert breaker.last_success_at == EPOCH + rounds - 1


def test_eight_that_fail_at_once_open_it_once(lines: Lines) -> None:
    """Eight threads, each with a file of its own, fail at the same time: one opening, seven back off."""
    breaker = a_breaker(initial_s=3600.0, max_s=3600.0)
    faults: list[Fault | None] = []
    barrier = threading.Barrier(STREAK, timeout=30)

    def run(number: int) -> None:
        barrier.wait()
        faults.append(fail(breaker, Item(str(number)), an_error()).fault)

    in_threads(STREAK, run)

    assert Counter(faults) == {Fault.UNKNOWN: STREAK - 1, Fault.DESTINATION: 1}
    assert len(lines) == 1
