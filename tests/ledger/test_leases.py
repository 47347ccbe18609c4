"""The protocol of several nodes on one folder: its invariants hold, and each of its guards is needed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from support.lease_model import LONGEST, PATHS, Cluster, Guard

if TYPE_CHECKING:
    from collections.abc import Collection

STEPS = 100  # of one history
ACTIONS = ("drop", "wait", "crash", "renew", "claim", "start", "send", "record", "remove", "release")
OFTEN = (*ACTIONS, "renew", "claim")


def walk(steps: int, without: Collection[Guard] = ()) -> None:
    """Random histories of one cluster each. Raises AssertionError."""
    rng = random.Random(22)
    for _ in range(steps // STEPS):
        cluster = Cluster(without)
        for _ in range(STEPS):
            delay = rng.choice((0, 1, rng.randint(0, LONGEST)))
            cluster.step(rng.choice(OFTEN), rng.randrange(3), rng.randrange(PATHS), delay, rng.random() < 0.8)
        cluster.finish()


class AnyHistory(RuleBasedStateMachine):
    """hypothesis chooses the history, and shortens the one that breaks an invariant."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()

    @rule(
        action=st.sampled_from(ACTIONS),
        node=st.integers(0, 2),
        path=st.integers(0, PATHS - 1),
        delay=st.integers(0, LONGEST),
        heard=st.booleans(),
    )
    def step(self, action: str, node: int, path: int, delay: int, heard: bool) -> None:
        self.cluster.step(action, node, path, delay, heard)

    def teardown(self) -> None:
        self.cluster.finish()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=STEPS, deadline=None)


@pytest.mark.parametrize(
    "steps", [200_000, pytest.param(10_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_no_history_breaks_an_invariant(steps: int) -> None:
    """Crashes, pauses, lost answers, equal names, clocks a day apart: nothing is lost or removed too early."""
    walk(steps)


@pytest.mark.parametrize("guard", Guard)
def test_each_guard_is_needed(guard: Guard) -> None:
    """Without this one check a random history breaks an invariant."""
    with pytest.raises(AssertionError):
        walk(1_000_000, without=[guard])
