"""No crowd of bad files stops the good ones, and no outage costs a file anything: the rules against their reference."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from s3spool.failure.breaker import Times
from s3spool.queue.item import Item
from support.failure_model import (
    EVERYBODY,
    ITSELF,
    REFUSED,
    SCENARIOS,
    UNKNOWN,
    Answer,
    File,
    Rules,
    Scenario,
)
from support.virtual import Pipeline, RealSimulation, evidence

ANSWERS = ["ok", (REFUSED, "413"), (UNKNOWN, "500"), (UNKNOWN, "timeout"), (EVERYBODY, "403"), (ITSELF, "unreadable")]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_real_parts(tmp_path: Path, scenario: Scenario) -> None:
    """The real breaker, queue, retry list and ledger keep the promise."""
    with closing(RealSimulation(tmp_path, scenario.server)) as simulation:
        for when, path in scenario.drops:
            simulation.drop(when, path)
        simulation.run(scenario.until)
        files = simulation.files()

    good = [file for path, file in files.items() if not path.startswith("bad")]
    assert {file.state for file in good} <= {"uploaded"}
    if scenario.slowest_s is not None:
        assert max(file.done - max(file.dropped, scenario.since) for file in good) <= scenario.slowest_s
    if scenario.parked is not None:
        parked = [path for path, file in files.items() if path.startswith("bad") and file.state == "parked"]
        assert len(parked) == scenario.parked


class Walk(RuleBasedStateMachine):
    """Any steps in any order: the real parts decide as the reference does, about each file and after each step.

    What is left to chance (which probe, how long a backoff) the real parts choose, and the reference says whether they
    may.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.real = Pipeline(Path(self.directory.name), workers=12, max_attempts=3)
        self.reference = Rules(max_attempts=3)
        self.sent: list[tuple[Item, Times, bool]] = []  # in flight, and whether tried before
        self.due: dict[str, float] = {}  # of what waits

    def teardown(self) -> None:
        self.real.close()
        self.directory.cleanup()

    @rule(count=st.integers(1, 5))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            path = f"file {len(self.reference.files)}"
            self.reference.files[path] = File(self.real.now)
            self.real.offer(path)

    @rule(count=st.integers(1, 12))
    def take(self, count: int) -> None:
        """So many workers ask for a file."""
        for _ in range(count):
            if len(self.sent) == self.real.workers:
                return
            taken = self.real.take()
            if taken is None:
                self.must_be_nothing_to_take()
                return
            file = self.reference.files[taken[0].path]
            assert file.state == "queued"
            tried = bool(file.error)
            if self.reference.open:
                untried = [path for path, it in self.reference.files.items() if it.state == "queued" and not it.error]
                assert not (tried and untried), "a probe with an untried file tells more"
            elif tried:
                assert sum(it[2] for it in self.sent) < self.real.workers // 4, "a quarter of the workers at most"
            self.reference.began(taken[0].path)
            self.sent.append((*taken, tried))

    def must_be_nothing_to_take(self) -> None:
        if self.reference.open:
            return  # no probe is due, perhaps; `a_round_comes` sees that one is in time
        queued = [file for file in self.reference.files.values() if file.state == "queued"]
        room = sum(it[2] for it in self.sent) < self.real.workers // 4
        assert not [file for file in queued if room or not file.error], "a free worker, and files that may go"

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), answer=st.sampled_from(ANSWERS), count=st.integers(1, 10))
    def answer(self, data: st.DataObject, answer: Answer, count: int) -> None:
        """The same answer to some that are in flight; to a crowd it looks like an outage."""
        for _ in range(min(count, len(self.sent))):
            item, times, _ = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
            path, now = item.path, self.real.time()
            if answer == "ok":
                for released in self.reference.succeeded(path, times.unix_s, now):
                    self.due[released] = 0.0
            else:
                self.reference.failed(path, answer[0], answer[1], times.monotonic_s, now)
            self.real.answered(item, times, answer)
            self.agree_on(path, answer)

    def agree_on(self, path: str, answer: Answer) -> None:
        file = self.reference.files[path]
        assert self.real.breaker.open == self.reference.open
        if file.state == "queued":
            assert self.real.inbox.state_of(path) == "queued"
            return
        state, attempts, own, provisional = evidence(self.real, path)
        assert state == file.state
        if state == "uploaded":
            return
        assert (attempts, own, provisional) == (file.attempts, file.own, file.provisional)
        if state == "waiting":
            row = self.real.reader.known([path])[path].retry
            assert row is not None
            wait_s = row.next_attempt - self.real.time()
            assert 0 < wait_s <= self.reference.longest_wait_s(path, initial_s=1.0, max_s=300.0)
            self.due[path] = row.next_attempt

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 30.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.real.now += seconds
        self.real.tick()
        for path, due in list(self.due.items()):
            file = self.reference.files[path]
            if file.state == "waiting" and due <= self.real.time():
                file.state = "queued"
                del self.due[path]
                assert self.real.inbox.state_of(path) == "queued"

    @precondition(lambda self: self.reference.open and len(self.sent) < self.real.workers)
    @rule()
    def a_round_comes(self) -> None:
        """Within ten seconds, whatever is unanswered."""
        self.real.now += 10.001
        queued = any(file.state == "queued" for file in self.reference.files.values())
        if queued:
            before = len(self.sent)
            self.take(1)
            assert len(self.sent) > before

    @rule()
    def die_and_start_again(self) -> None:
        """What was in memory is gone: requests in flight, evidence that no row holds, the state of the breaker."""
        self.real.restart()
        self.sent.clear()
        self.reference.open = False
        self.reference.unproven.clear()
        self.reference.refuted.clear()
        self.reference.failed_sent = -1.0
        self.reference.success_sent = -1.0
        for path, file in self.reference.files.items():
            row = self.real.reader.known([path]).get(path)
            if row is not None and row.retry is None:
                continue
            if row is None:
                self.reference.files[path] = File(file.dropped)
                self.real.offer(path)
            elif file.state in {"queued", "uploading"}:
                assert row.retry is not None
                file.state, file.attempts, file.own = "waiting", row.retry.attempts, row.retry.own_failures
                file.error, file.failed_at = row.retry.error_code, row.retry.last_error_at
                self.due[path] = row.retry.next_attempt


TestWalk = pytest.mark.timeout(3600)(Walk.TestCase)  # the number of examples may be set to thousands
TestWalk.settings = settings(
    max_examples=int(os.environ.get("FAILURE_EXAMPLES", "30")),
    stateful_step_count=80,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
)
