"""Proof of life: who does not answer is named, who answers is asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3spool.pulse import Pulse
from support.house import House
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_who_does_not_answer_in_time_is_named() -> None:
    """Only after the patience is over, and no more once the answer comes; nobody is asked twice meanwhile."""
    asked: list[Callable[[], None]] = []
    pulse = Pulse({"mute": asked.append, "well": lambda answer: answer()}, patience_s=10)

    assert pulse.silent(100.0) == []
    assert pulse.silent(109.0) == []
    assert pulse.silent(111.0) == ["mute"]
    assert len(asked) == 1
    asked[0]()
    assert pulse.silent(112.0) == []
    assert len(asked) == 2


def test_the_rooms_answer(tmp_path: Path) -> None:
    """Ledger, the last step and the workers do while they run; a gate in which somebody hangs does not."""
    house = House(tmp_path)
    house.start()
    answered: list[str] = []

    for name, ping in (("ledger", house.ledger.ping), ("after", house.after.ping), ("workers", house.workers.ping)):
        ping(lambda name=name: answered.append(name))  # type: ignore[misc] # bound at once
    eventually(lambda: len(answered) == 3)
    with house.workers._gate:
        house.workers.ping(lambda: answered.append("a hanging gate"))

    assert sorted(answered) == ["after", "ledger", "workers"]
    house.close()
