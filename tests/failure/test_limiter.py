"""Fewer requests at once where the server takes no more: halved, one more for each round, and back to all."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from s3spool.errors import Scope, UploadError
from s3spool.failure import concurrency_limiter as module
from s3spool.failure.concurrency_limiter import EVENT_S, FORGOTTEN_S, REST_S, STREAK, ConcurrencyLimiter
from support.lines import Lines
from support.waiting import eventually

SLOW_DOWN = UploadError("upload", "a", "SlowDown", "slower, please", Scope.LOAD)


class Clock:
    """Both clocks of the limiter."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=clock.time, monotonic=clock.time))
    return clock


@pytest.fixture
def limiter(clock: Clock, lines: Lines) -> ConcurrencyLimiter:
    limiter = ConcurrencyLimiter("s3://bucket/", max_s=300)
    limiter.widen(100)
    return limiter


def test_a_refusal_halves_once_an_event(limiter: ConcurrencyLimiter, clock: Clock, lines: Lines) -> None:
    """Ten refusals within a second are one event; the log says it once, for all events."""
    for _ in range(STREAK - 1):
        limiter.refused(SLOW_DOWN)
    assert limiter.limit == 50

    clock.now += EVENT_S
    limiter.passed()
    limiter.refused(SLOW_DOWN)

    assert limiter.limit == 25
    (line,) = lines.named("destination.slowed")
    assert (line["workers"], line["error_code"]) == (50, "SlowDown")


def test_each_round_lets_one_more_send(limiter: ConcurrencyLimiter, clock: Clock, lines: Lines) -> None:
    """Additive increase; when all send again, one line says so."""
    limiter.refused(SLOW_DOWN)
    for _ in range(50):
        limiter.passed()
    assert limiter.limit == 51

    while limiter.limited:
        limiter.passed()

    assert limiter.limit == 100
    assert limiter.slowed_at is None
    (line,) = lines.named("destination.throttle_ended")
    assert 0 <= line["duration_s"] < 60


def test_a_success_long_after_ends_it(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    """A quiet folder would otherwise stay narrow for days."""
    limiter.refused(SLOW_DOWN)
    clock.now += FORGOTTEN_S + 1

    limiter.passed()

    assert limiter.limit == 100


def test_nothing_passes_at_all(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    """One request for each rest of a second at most, for ever; a destination that asks for less is not paused."""
    for _ in range(100):
        limiter.refused(SLOW_DOWN)
        clock.now += EVENT_S

    assert limiter.limit in {0, 1}
    limiter.refused(SLOW_DOWN)
    assert limiter.limit == 0
    clock.now += REST_S
    limiter.admit(0)
    assert limiter.limit == 1


def test_retry_after_is_obeyed(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    """All rest for as long as the server says."""
    error = UploadError("upload", "a", "SlowDown", "slower, please", Scope.LOAD, retry_after_s=7.0)

    limiter.refused(error)

    assert limiter.limit == 0
    clock.now += 7.0
    limiter.admit(0)
    assert limiter.limit == 50


def test_a_reload_bounds_retry_after(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    """No request waits longer than the new retry.max_s."""
    limiter.apply(max_s=2)

    limiter.refused(UploadError("upload", "a", "SlowDown", "slower, please", Scope.LOAD, retry_after_s=7.0))

    clock.now += 2.0
    limiter.admit(0)
    assert limiter.limit == 50


def test_lost_connections_halve_quietly(limiter: ConcurrencyLimiter, clock: Clock, lines: Lines) -> None:
    """A server that admits few resets the others at once: down to one within a second, without a line or a rest."""
    for _ in range(7):
        limiter.connection_lost()
        clock.now += 0.1

    assert limiter.limit == 1
    assert limiter.slowed_at is None
    while limiter.limited:
        limiter.passed()
    assert list(lines) == []


def test_workers_that_hang_do_not_keep_all_others_from_sending(limiter: ConcurrencyLimiter, clock: Clock) -> None:
    """Those that may send hang in a mount, and never succeed: a minute after the last refusal all others go on."""
    while limiter.limit > 1:
        limiter.refused(SLOW_DOWN)
        clock.now += EVENT_S
    admitted = [threading.Thread(target=limiter.admit, args=(number,), daemon=True) for number in range(2, 100)]
    for thread in admitted:
        thread.start()
    eventually(lambda: len(limiter._changed._waiters) == len(admitted))  # type: ignore[attr-defined]
    clock.now += FORGOTTEN_S

    limiter.admit(1)

    for thread in admitted:
        thread.join(10)
    assert not any(thread.is_alive() for thread in admitted)
    assert limiter.limit == 100
