"""How many parts go out at once."""

from __future__ import annotations

from s3spool.pipeline.lanes import FAST_BYTES_S, HANGING_BYTES_S, MIDDLE, NARROW, SLOW_BYTES_S, Lanes

PART = 16 * 2**20
FAST_S = PART / FAST_BYTES_S / 2
MIDDLE_S = PART / (FAST_BYTES_S + SLOW_BYTES_S) * 2
SLOW_S = PART / SLOW_BYTES_S * 1.9
HANGING_S = PART / HANGING_BYTES_S


def entered(lanes: Lanes, count: int, now: float = 0.0) -> None:
    for number in range(count):
        assert lanes.open_in_s(now) == 0
        lanes.enter(number, PART, now)


def test_a_burst_begins_narrow() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    assert lanes.open_in_s(0.0) == HANGING_S


def test_each_end_frees_a_lane() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    lanes.leave(3)
    assert lanes.open_in_s(0.0) == 0
    lanes.enter("another", PART, 0.0)
    assert lanes.open_in_s(0.0) > 0


def test_fast_connections_keep_it_narrow() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    now = 0.0
    for number in range(100):
        now += FAST_S / NARROW
        lanes.enter(f"later {number}", PART, now - FAST_S)
        lanes.confirmed(f"later {number}", now)
        lanes.leave(f"later {number}")
    assert lanes.open_in_s(FAST_S) > 0


def test_slow_connections_open_it_to_all() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    for number in range(NARROW - 1):
        lanes.confirmed(number, SLOW_S)
        lanes.leave(number)
    entered(lanes, 100, SLOW_S)


def test_connections_that_are_neither_open_it_a_little() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    for number in range(100):
        lanes.confirmed(number, MIDDLE_S)
        lanes.leave(number)
        lanes.enter(number + NARROW, PART, 0.0)
    entered(lanes, MIDDLE - NARROW)
    assert lanes.open_in_s(0.0) > 0


def test_one_slow_part_among_fast_ones_does_not() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    lanes.confirmed(0, SLOW_S)
    assert lanes.open_in_s(SLOW_S) > 0


def test_parts_that_never_end_open_it_to_all() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    assert lanes.open_in_s(HANGING_S - 0.1) > 0
    entered(lanes, 100, HANGING_S)


def test_the_end_of_a_burst_forgets() -> None:
    lanes = Lanes()
    entered(lanes, NARROW)
    entered(lanes, 100, HANGING_S)
    for number in range(100):
        lanes.leave(number)
    entered(lanes, NARROW)
    assert lanes.open_in_s(0.0) > 0
