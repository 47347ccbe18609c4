"""When a request is given up: silences, and answers that never come to their end."""

from __future__ import annotations

from s3spool.s3.request_timeout import ANSWER_TIMES, Patience


def test_a_silence_ends_it() -> None:
    """Counted from the last byte in either direction, not from the beginning."""
    patience = Patience(30.0, lambda: 0)
    patience.begin(100, 1000.0)

    assert patience.over(0, 0, 1029.9) == ""
    assert patience.over(10, 0, 1029.9) == ""
    assert patience.over(10, 1, 1059.8) == ""
    assert patience.over(10, 1, 1089.7) == ""
    assert patience.over(10, 1, 1089.8) == "no progress for 30 s"


def test_a_slow_body_may_take_its_time() -> None:
    """As long as something of it goes out now and then."""
    patience = Patience(30.0, lambda: 0)
    patience.begin(1000, 0.0)

    assert not any(patience.over(number, 0, number * 29.0) for number in range(1000))


def test_a_slow_answer_may_not() -> None:
    """It has some time from when the body had been sent."""
    patience = Patience(30.0, lambda: 0)
    patience.begin(1000, 0.0)
    assert not any(patience.over(number, 0, number * 29.0) for number in range(1000))
    sent_at = 1000 * 29.0

    looks = range(int(30 * ANSWER_TIMES / 20))
    assert not any(patience.over(1000, number, sent_at + number * 20.0) for number in looks)
    assert patience.over(1000, 999, sent_at + 300.0) == "the answer was not complete 300 s after the body had been sent"


def test_what_we_ourselves_hold_up_is_no_silence() -> None:
    """A bandwidth limit may keep a body back for long."""
    patience = Patience(30.0, lambda: 0)
    patience.begin(1000, 0.0)

    patience.excuse(500.0)

    assert patience.over(0, 0, 529.0) == ""


def test_the_next_request_starts_anew() -> None:
    """One handle sends them all."""
    patience = Patience(1.0, lambda: 0)
    patience.begin(1, 0.0)
    assert patience.over(1, 1, 9.0) == ""
    assert patience.over(1, 1, 10.0)

    patience.begin(1, 100.0)

    assert patience.over(0, 0, 100.5) == ""
    assert patience.over(1, 0, 101.4) == ""


def test_what_leaves_the_kernel_is_progress() -> None:
    """All of a body may be there at once, and take a minute over a thin line; what stays there is a silence."""
    left = [100, 80, 60, 0]
    patience = Patience(30.0, lambda: left[0])
    patience.begin(100, 0.0)

    assert patience.over(100, 0, 0.0) == ""
    for number in range(1, 4):
        assert patience.over(100, 0, number * 29.0) == ""
        left.pop(0)
    assert patience.over(100, 0, 4 * 29.0) == ""
    assert patience.over(100, 0, 4 * 29.0 + 29.9) == ""
    assert patience.over(100, 0, 4 * 29.0 + 30.0) == "no progress for 30 s"
