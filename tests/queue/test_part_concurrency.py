"""How many parts go out at once: a line of the test's, and a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import pytest

from s3spool.queue.part_concurrency import FAST_BYTES_S, NARROW, REST_S, WINDOW_S, PartConcurrency

MIB = 2**20


@dataclass
class Line:
    """Carries `each` bytes a second for each connection, and `all_together` at most."""

    each: float
    all_together: float = float("inf")
    sent: float = 0.0
    now: float = 1000.0
    parts: count[int] = field(default_factory=count)
    under_way: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.concurrency = PartConcurrency(lambda: round(self.sent))

    def run(self, duration_s: float, *, waiting: int = 1_000_000, step_s: float = WINDOW_S / 2) -> list[int]:
        """How many parts were under way, step by step; a part ends in each step, and others come in its place."""
        widths = []
        end = self.now + duration_s
        while self.now < end:
            while (
                len(self.under_way) < waiting
                and self.concurrency.next_slot_in_s(self.now) == 0
                and len(self.under_way) < 100
            ):
                self.under_way.append(next(self.parts))
                self.concurrency.enter(self.under_way[-1], self.now)
            widths.append(len(self.under_way))
            self.sent += step_s * min(self.each * len(self.under_way), self.all_together)
            self.now += step_s
            self.concurrency.leave(self.under_way.pop(0))
        return widths


def test_a_burst_begins_narrow() -> None:
    """Four, whatever the line."""
    assert Line(10 * MIB).run(WINDOW_S / 2) == [NARROW]


def test_slow_connections_open_it_to_all_workers() -> None:
    """As fast as one can measure; and it stays open."""
    line = Line(10 * MIB)

    assert line.run(60.0)[-1] == 100
    assert min(line.run(600.0)) == 100


def test_a_thin_line_keeps_it_narrow() -> None:
    """Twice as many carry no more: back, and another try only after a rest."""
    line = Line(10 * MIB, all_together=2 * MIB)

    widths = line.run(10 * REST_S)

    assert max(widths) == 2 * NARROW
    assert widths.count(NARROW) > len(widths) / 2


def test_it_opens_as_far_as_more_carry_more() -> None:
    """A line that eleven connections fill gets sixteen at most, but for a short try now and then."""
    line = Line(10 * MIB, all_together=110 * MIB)

    widths = line.run(20 * REST_S)

    assert max(widths) == 32
    assert sorted(widths)[len(widths) // 2] == 16


def test_fast_connections_keep_it_narrow() -> None:
    """More are not even tried."""
    assert set(Line(FAST_BYTES_S).run(600.0)) == {NARROW}


def test_a_line_that_stands_still_opens_nothing() -> None:
    """No measure without bytes."""
    assert set(Line(0.0).run(600.0)) == {NARROW}


@pytest.mark.parametrize("waiting", [1, NARROW - 1])
def test_few_parts_say_nothing(waiting: int) -> None:
    """As long as concurrency are free there is nothing to decide."""
    assert set(Line(10 * MIB).run(60.0, waiting=waiting)) == {waiting}


def test_the_end_of_a_burst_forgets() -> None:
    """The next one begins narrow again."""
    line = Line(10 * MIB)
    line.run(60.0)
    while line.under_way:
        line.concurrency.leave(line.under_way.pop())

    assert line.run(WINDOW_S / 2) == [NARROW]


def test_lanes_that_carry_nothing_are_silent() -> None:
    """A server that does not answer holds four parts for its time-out: other files need not wait for that."""
    concurrency = PartConcurrency(lambda: 1000 * MIB)  # of earlier files
    assert not concurrency.stalled(100.0), "nothing is under way"
    for number in range(NARROW):
        concurrency.enter(number, 100.0)

    assert not concurrency.stalled(102.9)
    assert concurrency.stalled(103.1)


def test_a_thin_line_is_not_silent() -> None:
    """Some 50 KiB/s for each of four."""
    sent = [0]
    concurrency = PartConcurrency(lambda: sent[0])
    for number in range(NARROW):
        concurrency.enter(number, 100.0)
    sent[0] = 10 * 50 * 1024 * NARROW

    assert not concurrency.stalled(110.0)
