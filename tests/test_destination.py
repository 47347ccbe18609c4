"""The valve in front of the workers: whose fault an error is, and who may try whether it works again."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from s3spool.errors import Scope, UploadError
from s3spool.pipeline.destination import ALONE_S, STREAK, Destination
from s3spool.pipeline.item import Item
from support.lines import Lines, recorded
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEVER_S = 3600.0


def denied(**fields: object) -> UploadError:
    error = UploadError("put", "a", "AccessDenied", "no", scope=Scope.DESTINATION, hint="grant s3:PutObject")
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def slow_down() -> UploadError:
    return denied(code="SlowDown", sudden=False)


def refused(operation: str = "put") -> UploadError:
    return UploadError(operation, "a", "BadDigest", "not what was announced")


class Top(random.Random):
    """No jitter: always the cap."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.fixture
def lines() -> Iterator[Lines]:
    with recorded() as lines:
        yield lines


@pytest.fixture
def destination(lines: Lines) -> Destination:
    """One that never becomes due for a probe by itself."""
    return Destination("s3://bucket/in/", initial_s=NEVER_S, max_s=NEVER_S, rng=Top())


@pytest.fixture
def admit() -> Iterator[Callable[[Destination], list[bool]]]:
    """Ask for admission in a thread; the list holds the answer once there is one."""
    threads: list[threading.Thread] = []

    def run(destination: Destination) -> list[bool]:
        answers: list[bool] = []
        threads.append(threading.Thread(target=lambda: answers.append(destination.admit())))
        threads[-1].start()
        return answers

    yield run
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def paused(destination: Destination) -> Destination:
    assert destination.failed(Item("a"), denied(), probe=False) is Scope.DESTINATION
    assert destination.paused
    return destination


def test_open_lets_everybody_through(destination: Destination) -> None:
    """While nothing is wrong nobody waits and nobody is a probe."""
    assert not destination.paused
    assert [destination.admit() for _ in range(3)] == [False] * 3
    assert destination.next_probe_s == 0


def test_a_sudden_error_pauses_at_once(destination: Destination, lines: Lines) -> None:
    """403 needs no streak: one line says what is wrong and what to do, and the next try is scheduled."""
    scope = destination.failed(Item("a"), denied(), probe=False)

    assert scope is Scope.DESTINATION
    assert destination.paused
    assert destination.paused_at == pytest.approx(time.time(), abs=60)
    assert destination.reason == denied()
    assert ALONE_S / 2 < destination.next_probe_s <= ALONE_S  # one file is no proof against the destination
    assert lines == [
        {
            "event": "destination.paused",
            "level": "error",
            "destination": "s3://bucket/in/",
            "error_code": "AccessDenied",
            "error": "no",
            "hint": "grant s3:PutObject",
            "path": "a",
            "next_attempt_s": ALONE_S,
        }
    ]


def test_transient_errors_pause_after_a_streak(destination: Destination) -> None:
    """A few 503s are each file's own business; so many without one success between them are not."""
    scopes = [destination.failed(Item(str(n)), slow_down(), probe=False) for n in range(STREAK)]

    assert scopes == [Scope.FILE] * (STREAK - 1) + [Scope.DESTINATION]
    assert destination.paused


def test_a_success_ends_the_streak(destination: Destination) -> None:
    """One file that passes shows that the destination works."""
    for n in range(STREAK - 1):
        destination.failed(Item(str(n)), slow_down(), probe=False)

    destination.succeeded(probe=True)

    assert destination.failed(Item("z"), slow_down(), probe=False) is Scope.FILE
    assert not destination.paused


def test_an_answer_about_one_file_ends_the_streak(destination: Destination) -> None:
    """S3 that refuses one file's checksum is an S3 that works."""
    for n in range(STREAK - 1):
        destination.failed(Item(str(n)), slow_down(), probe=False)

    scope = destination.failed(Item("bad"), refused(), probe=False)

    assert scope is Scope.FILE
    assert destination.failed(Item("z"), slow_down(), probe=False) is Scope.FILE
    assert not destination.paused


def test_a_local_error_says_nothing_about_s3(destination: Destination) -> None:
    """A file that cannot be read here neither resumes a paused destination nor counts for one."""
    paused(destination)

    scopes = [destination.failed(Item("a"), refused(operation), probe=False) for operation in ("read", "map")]

    assert scopes == [Scope.FILE, Scope.FILE]
    assert destination.paused


def test_one_line_for_a_hundred_failures_in_flight(destination: Destination, lines: Lines) -> None:
    """Those that were in flight when it was paused go back uncounted, without a line or a new delay."""
    paused(destination)
    due = destination._next_probe

    scopes = {destination.failed(Item(str(n)), denied(), probe=False) for n in range(99)}

    assert scopes == {Scope.DESTINATION}
    assert len(lines.named("destination.paused")) == 1
    assert destination._next_probe == due


def test_resumes_with_one_line(destination: Destination, lines: Lines) -> None:
    """When a file passes, everything flows again, and the log says how long it took."""
    paused(destination)

    destination.succeeded(probe=True)
    destination.succeeded(probe=True)

    assert not destination.paused
    assert destination.reason is None
    assert destination.paused_at is None
    assert not destination.admit()
    (line,) = lines.named("destination.resumed")
    assert 0 <= line["duration_s"] < 60


def test_what_was_under_way_before_the_pause_says_nothing_of_now(destination: Destination, lines: Lines) -> None:
    """A file that was sent before and passes after it is no probe; nor does it make the culprit of another one."""
    paused(destination)
    destination.succeeded(probe=False)

    assert destination.paused
    assert lines.named("destination.resumed") == []
    blamed = Item("a", blamed_at=time.time() - 60)
    assert destination.failed(blamed, denied(), probe=True) is Scope.DESTINATION


def test_listeners_hear_of_pause_and_resumption(destination: Destination) -> None:
    """Who shows the state is told when it changes, after it has changed."""
    states: list[bool] = []
    destination.on_change(lambda: states.append(destination.paused))

    paused(destination)
    destination.succeeded(probe=True)
    destination.succeeded(probe=True)

    assert states == [True, False]


def test_a_hundred_wait_and_one_is_sent_ahead(
    destination: Destination, admit: Callable[[Destination], list[bool]]
) -> None:
    """A paused destination is asked by one worker, not by a hundred; when that one passes all go on."""
    paused(destination)
    answers = [admit(destination) for _ in range(100)]
    eventually(lambda: len(destination._turned._waiters) == 100)  # type: ignore[attr-defined]
    assert answers == [[]] * 100

    destination.probe_now()

    eventually(lambda: [True] in answers)
    eventually(lambda: len(destination._turned._waiters) == 99)  # type: ignore[attr-defined]
    assert answers.count([True]) == 1
    destination.succeeded(probe=True)
    eventually(lambda: answers.count([False]) == 99)


def test_the_next_probe_comes_by_itself(admit: Callable[[Destination], list[bool]]) -> None:
    """Nobody has to wake the waiting: when the backoff is over one of them goes."""
    destination = Destination("d", initial_s=0.05, max_s=0.05, rng=Top())
    paused(destination)

    answers = [admit(destination) for _ in range(3)]

    eventually(lambda: [True] in answers)
    assert answers.count([]) == 2
    destination.close()


def test_failed_probes_back_off_and_take_turns(lines: Lines) -> None:
    """Each failed probe doubles the wait up to the cap, silently; then another worker may try."""
    destination = Destination("d", initial_s=1.0, max_s=5.0, rng=Top())
    paused(destination)
    waits = [destination.next_probe_s]

    for n in range(4):
        destination.probe_now()
        assert destination.admit()
        assert destination.failed(Item(str(n)), denied(), probe=True) is Scope.DESTINATION
        waits.append(destination.next_probe_s)

    for wait, most in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert most - 1 < wait <= most
    assert len(lines) == 1


def test_a_second_pause_starts_with_short_waits_again() -> None:
    """A success resets the backoff."""
    destination = Destination("d", initial_s=1.0, max_s=300.0, rng=Top())
    paused(destination)
    for _ in range(5):
        destination.failed(Item("a"), denied(), probe=True)
    destination.succeeded(probe=True)

    paused(destination)

    assert destination.next_probe_s <= 1.0


@pytest.mark.parametrize(("wish_s", "wait_s"), [(30.0, 30.0), (0.0, 1.0), (9000.0, 60.0)])
def test_retry_after_is_honoured_within_reason(wish_s: float, wait_s: float) -> None:
    """The server's wish lengthens the wait, but not beyond retry.max_s, and never shortens it."""
    destination = Destination("d", initial_s=1.0, max_s=60.0, rng=Top())

    destination.failed(Item("a"), denied(retry_after_s=wish_s), probe=False)

    assert wait_s - 1 < destination.next_probe_s <= wait_s


@pytest.mark.parametrize("what", ["released", "local error", "file's own fault"])
def test_a_probe_that_asked_nothing_gives_its_turn_away(
    what: str, destination: Destination, admit: Callable[[Destination], list[bool]]
) -> None:
    """A probe whose file had vanished or was unreadable must not leave the others waiting."""
    blamed_at = time.time()
    destination.succeeded(probe=True)
    paused(destination)
    destination.probe_now()
    assert destination.admit()
    other = admit(destination)

    if what == "released":
        destination.release_probe()
    elif what == "local error":
        assert destination.failed(Item("a"), refused("read"), probe=True) is Scope.FILE
    else:
        bad = Item("a", blamed_at=blamed_at - 1)
        assert destination.failed(bad, denied(), probe=True) is Scope.FILE

    eventually(lambda: other == [True])
    assert destination.paused


def test_a_probe_that_s3_refuses_has_passed(destination: Destination) -> None:
    """An answer about this one file, even a no, comes from a destination that works."""
    paused(destination)
    destination.probe_now()
    destination.admit()

    scope = destination.failed(Item("a"), refused(), probe=True)

    assert scope is Scope.FILE
    assert not destination.paused


def test_a_file_that_always_fails_alone_is_blamed(destination: Destination) -> None:
    """It paused the destination, others passed, it fails again: now it backs off and the others go on."""
    item = Item("bad")
    assert destination.failed(item, denied(), probe=False) is Scope.DESTINATION
    item = item._replace(blamed_at=time.time())
    assert destination.failed(item, denied(), probe=True) is Scope.DESTINATION
    eventually(lambda: time.time() > item.blamed_at)
    destination.succeeded(probe=True)

    scope = destination.failed(item, denied(), probe=False)

    assert scope is Scope.FILE
    assert not destination.paused


def test_taken_is_only_what_brought_a_content(destination: Destination) -> None:
    """Of several the latest start counts, whatever the order of their ends."""
    destination.succeeded(probe=False)
    assert destination.taken_at == 0.0, "it has dealt with a file, but taken none"

    for began in (20.0, 30.0, 10.0):
        destination.succeeded(probe=False, began=began)

    assert destination.taken_at == 30.0


def too_large(**fields: object) -> UploadError:
    error = UploadError("upload", "a", "EntityTooLarge", "too large", permanent=True, hint="smaller files")
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def doubted(destination: Destination) -> Destination:
    """Paused because it refuses whatever it is sent."""
    for n in range(STREAK):
        destination.failed(Item(str(n)), too_large(), probe=False)
    assert destination.paused
    return destination


def test_many_files_refused_for_good_are_no_accident(destination: Destination, lines: Lines) -> None:
    """So many different ones without one that is taken: it is the destination that is paused, and the line says why."""
    scopes = [destination.failed(Item(str(n)), too_large(), probe=False) for n in range(STREAK)]
    scopes.append(destination.failed(Item("in flight"), too_large(), probe=False))

    assert scopes == [Scope.FILE] * (STREAK - 1) + [Scope.DESTINATION] * 2
    (line,) = lines.named("destination.paused")
    assert (line["error_code"], line["error"], line["path"]) == ("EntityTooLarge", "too large", str(STREAK - 1))
    assert line["hint"].startswith("smaller files; the last 8 files were all refused")
    assert line["next_attempt_s"] <= ALONE_S  # it answers, and one file may be enough to show that it is well


def test_one_file_refused_again_and_again_never_pauses(destination: Destination) -> None:
    """Nor do a few of them, however often they are tried."""
    scopes = {destination.failed(Item(str(n % 7)), too_large(), probe=False) for n in range(10 * STREAK)}

    assert scopes == {Scope.FILE}
    assert not destination.paused
    assert not destination.alone("0")


def test_a_file_that_is_taken_ends_the_streak_of_refusals(destination: Destination) -> None:
    """What S3 has merely refused in another way does not: it shows that there is an S3, not that it takes anything."""
    for n in range(STREAK - 1):
        destination.failed(Item(str(n)), too_large(), probe=False)
    destination.failed(Item("other"), refused(), probe=False)
    assert not destination.alone("z")

    destination.succeeded(probe=False, began=time.time())

    assert destination.alone("z")
    assert destination.failed(Item("z"), too_large(), probe=False) is Scope.FILE
    assert not destination.paused


def test_only_a_file_that_is_taken_ends_such_a_pause(destination: Destination, lines: Lines) -> None:
    """Another refusal, of whatever kind, does not; nor a large file's beginning, which brings no content."""
    doubted(destination)
    for error in (too_large(), refused(), denied(), refused("read")):
        destination.probe_now()
        assert destination.admit()
        destination.failed(Item("z"), error, probe=True)
        assert destination.paused
    destination.probe_now()
    assert destination.admit()
    destination.succeeded(probe=True)
    assert destination.paused
    destination.probe_now()
    assert destination.admit()

    destination.succeeded(probe=True, began=time.time())

    assert not destination.paused
    assert destination.alone("z")
    assert len(lines.named("destination.paused")) == len(lines.named("destination.resumed")) == 1


def test_a_refused_probe_ends_another_pause(destination: Destination) -> None:
    """It was paused because nothing was answered; a refusal is an answer, and one refused file is that file's."""
    paused(destination)
    destination.probe_now()
    destination.admit()

    assert destination.failed(Item("a"), too_large(), probe=True) is Scope.FILE
    assert not destination.paused


def test_proven_is_who_is_refused_again_while_others_pass(destination: Destination) -> None:
    """What had been sent before the first refusal proves nothing, nor what was taken while the second was under way."""
    item = Item("a", blamed_for="EntityTooLarge", last_error_at=1000.0)

    assert not destination.proven(item._replace(taken_at=999.0), too_large())
    destination.succeeded(probe=False, began=1001.0)
    assert not destination.proven(item, too_large())
    item = item._replace(taken_at=destination.taken_at)

    assert destination.proven(item, too_large())
    assert not destination.proven(item, too_large(code="InvalidURI"))
    assert not destination.proven(item._replace(blamed_for=""), too_large())
    for n in range(STREAK):
        proven = item._replace(path=str(n))
        assert destination.failed(proven, too_large(), probe=False) is Scope.FILE
    assert not destination.paused


def test_a_proven_file_passes_its_probe_on(
    destination: Destination, admit: Callable[[Destination], list[bool]]
) -> None:
    """Whether an outage is over another file finds out; nobody waits for it."""
    paused(destination)
    destination.probe_now()
    assert destination.admit()
    other = admit(destination)

    item = Item("a", blamed_for="EntityTooLarge", last_error_at=1000.0, taken_at=2000.0)
    assert destination.failed(item, too_large(), probe=True) is Scope.FILE

    eventually(lambda: other == [True])


def test_what_was_looked_into_needs_no_other_file(destination: Destination) -> None:
    """Another object is at its key, and was looked at: so many of these are no streak."""
    for n in range(2 * STREAK):
        assert destination.failed(Item(str(n)), too_large(proven=True), probe=False) is Scope.FILE
    assert not destination.paused


def test_close_unblocks_all(destination: Destination, admit: Callable[[Destination], list[bool]]) -> None:
    """Shutdown does not wait for a destination that is down."""
    paused(destination)
    answers = [admit(destination) for _ in range(10)]
    eventually(lambda: len(destination._turned._waiters) == 10)  # type: ignore[attr-defined]

    destination.close()

    eventually(lambda: answers == [[False]] * 10)
    assert destination.admit() is False


def test_what_an_outage_that_is_over_did_is_nobodys_fault(destination: Destination, lines: Lines) -> None:
    """Requests that set out in it may hear of it, by a time-out, long after: they pause nothing, and go uncounted."""
    before = time.monotonic()
    late = denied(code="OPERATION_TIMEDOUT", sudden=False, answered=False)
    assert destination.failed(Item("a"), denied(), probe=False, began=before) is Scope.DESTINATION
    destination.succeeded(probe=True)

    for number in range(2 * STREAK):
        assert destination.failed(Item(f"late {number}"), late, probe=False, began=before) is Scope.DESTINATION
    assert not destination.paused
    assert len(lines.named("destination.paused")) == 1

    assert destination.failed(Item("new"), late, probe=False, began=time.monotonic()) is Scope.FILE
    assert destination.failed(Item("own"), refused(), probe=False, began=before) is Scope.FILE
