"""Who waits for work is called in the reverse order of arrival."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from s3spool.queue.lifo_condition import LifoCondition
from support.waiting import eventually


class Crew:
    """Threads that wait, one after the other, and what became of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.standby = LifoCondition(self.lock)
        self.called: list[tuple[str, bool]] = []
        self.threads: list[threading.Thread] = []

    def join(self, name: str, timeout_s: float | None = None, *, last: bool = False) -> None:
        before = len(self.standby.waiting)

        def wait() -> None:
            with self.lock:
                self.called.append((name, self.standby.wait(timeout_s, last=last)))

        self.threads.append(threading.Thread(target=wait, daemon=True))
        self.threads[-1].start()
        if timeout_s is None:
            eventually(lambda: len(self.standby.waiting) == before + 1)

    def call(self, count: int) -> None:
        """And let those who were called tell it, in this order."""
        told = len(self.called)
        for number in range(count):
            with self.lock:
                self.standby.notify()
            eventually(lambda number=number: len(self.called) == told + number + 1)  # type: ignore[misc]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    with crew.lock:
        crew.standby.notify_all()
    for thread in crew.threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(crew.standby.waiting) == 0


def test_the_last_is_the_first(crew: Crew) -> None:
    """Whoever worked last works next; the others rest."""
    for name in "abc":
        crew.join(name)

    crew.join("reserve", last=True)
    crew.call(2)
    crew.join("d")
    crew.call(3)

    assert crew.called == [("c", True), ("b", True), ("d", True), ("a", True), ("reserve", True)]


def test_one_that_has_given_up_is_not_called(crew: Crew) -> None:
    """The call goes to one that still waits."""
    crew.join("patient")
    crew.join("impatient", timeout_s=0.01)
    eventually(lambda: crew.called == [("impatient", False)])

    crew.call(1)

    assert crew.called[1:] == [("patient", True)]


def test_more_calls_than_there_are_waiting(crew: Crew) -> None:
    """A call that nobody hears is not kept for later: who comes then looks for work first."""
    with crew.lock:
        crew.standby.notify(3)

    crew.join("late")

    assert crew.called == []
