"""The bandwidth limit: the arithmetic under a clock of the test, and what the daemon does with it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from s3spool.s3.bandwidth import BURST_S, BandwidthLimiter, Tokens, piece_bytes
from support.waiting import eventually

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("rate", "piece"), [(1000, 4096), (20 * 8192, 8192), (MIB, 52429), (10 * MIB, 512 * 1024), (1000 * MIB, 512 * 1024)]
)
def test_pieces_are_small_enough_to_be_smooth_and_large_enough_to_be_cheap(rate: float, piece: int) -> None:
    """A twentieth of a second's worth, within limits."""
    assert piece_bytes(rate) == piece


@pytest.mark.parametrize("rate", [50_000, MIB, 100 * MIB])
def test_ten_seconds_carry_what_they_may(rate: int) -> None:
    """Within 5 %, however many ask and whatever the line had saved up while it was idle."""
    tokens = Tokens(rate, 0.0)
    now, sent = 100.0, 0
    while True:
        due = tokens.reserve(tokens.piece, now)
        now += tokens.due_in_s(due, now)
        if now >= 110.0:
            break
        sent += tokens.piece

    assert 0.95 * 10 * rate <= sent <= 1.05 * 10 * rate


def test_an_idle_line_saves_up_little() -> None:
    """After an hour of silence the burst is a fifth of a second."""
    tokens = Tokens(1000, 0.0)

    ticket = tokens.reserve(1000, 3600.0)

    assert tokens.due_in_s(ticket, 3600.0) == pytest.approx(1 - BURST_S)


def test_another_rate_holds_for_those_who_wait() -> None:
    """A reload need not wait for what was asked for before."""
    tokens = Tokens(1000, 0.0)
    ticket = tokens.reserve(10_000, 0.0)
    slow_s = tokens.due_in_s(ticket, 0.0)

    tokens.set_rate(10_000, 0.0)

    assert tokens.due_in_s(ticket, 0.0) == pytest.approx(slow_s / 10)


@pytest.mark.parametrize("rate", [None, 0])
def test_without_a_limit_nothing_waits(rate: int | None) -> None:
    """All of it at once, whatever is asked for."""
    assert BandwidthLimiter(rate)(10**12) == 10**12


@pytest.mark.parametrize("rate", [None, 10**9])
def test_what_may_go_is_counted(rate: int | None) -> None:
    """Limited or not: else nobody could tell whether more connections carry more."""
    bandwidth = BandwidthLimiter(rate)

    assert sum(bandwidth(4096) for _ in range(3)) == bandwidth.granted > 0


@pytest.mark.parametrize("how", ["closed", "no limit any more", "faster"])
def test_who_waits_is_let_go(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when the old rate would have allowed it."""
    monkeypatch.setattr("s3spool.s3.bandwidth._WAKE_S", 3600.0)
    bandwidth = BandwidthLimiter(1)
    granted: list[int] = []
    threads = [threading.Thread(target=lambda: granted.append(bandwidth(4096)), daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    release: dict[str, Callable[[], None]] = {
        "closed": bandwidth.close,
        "no limit any more": lambda: bandwidth.set_rate(None),
        "faster": lambda: bandwidth.set_rate(10**9),
    }

    release[how]()

    eventually(lambda: len(granted) == 5, timeout_s=20)
    bandwidth.close()
    assert set(granted) == {4096}
    bandwidth.set_rate(1)  # a reload while the daemon stops
    assert not bandwidth.limited
