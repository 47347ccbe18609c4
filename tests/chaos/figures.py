"""What a run has done to the daemon, and what came of it."""

from __future__ import annotations

import functools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from chaos.oracle import Verdict
from chaos.steps import WHEN
from support.killing import STEPS

KINDS = "kinds of faults"
NO_SUMS = {KINDS}  #: several tests come to the same


@dataclass(slots=True)
class Figures:
    """One for each test; the report adds them up."""

    kills: int = 0
    kills_at_steps: Counter[str] = field(default_factory=Counter)
    every_step: list[str] = field(default_factory=lambda: [f"{when}:{step}" for step in STEPS for when in WHEN])
    power_cuts: int = 0
    power_cuts_at_steps: int = 0
    starts: int = 0
    stops: int = 0
    stops_beyond_lease: int = 0
    database: Counter[str] = field(default_factory=Counter)  #: troubles of the shared ledger's database
    refused_starts: int = 0  #: without that database
    claims_lost: int = 0
    outages: int = 0
    files: int = 0
    states: int = 0
    large: int = 0
    dropped_bytes: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    parked: int = 0
    verdict: Verdict = field(default_factory=Verdict)

    def as_dict(self) -> dict[str, object]:
        """What travels from a worker of pytest to the report."""
        verdict = self.verdict
        return {
            "kills": self.kills,
            "of them at a named step": sum(self.kills_at_steps.values()),
            "power cuts": self.power_cuts,
            "power cuts at a named step": self.power_cuts_at_steps,
            "stopped and continued": self.stops,
            "stopped for longer than the lease": self.stops_beyond_lease,
            **{f"database {kind}": count for kind, count in sorted(self.database.items())},
            "starts refused without the database": self.refused_starts,
            "claims lost": self.claims_lost,
            "outages": self.outages,
            "files": self.files,
            "states of files": self.states,
            "large files": self.large,
            "MiB dropped": self.dropped_bytes // 2**20,
            "requests": self.requests,
            "faults injected": sum(self.faults.values()),
            KINDS: len(self.faults),
            "parked, and released by a person": self.parked,
            "objects stored": verdict.versions,
            "sent again with the same content": verdict.duplicates,
            "torn, noticed and sent again": verdict.refused_torn,
            "excluded (written to in the instant of the removal)": verdict.excluded,
            "FILES LOST": len(verdict.lost),
            "RECEIPTS WITHOUT OBJECT, REMOVALS WITHOUT RECEIPT": len(verdict.early),
            "TORN OBJECTS TAKEN FOR SUCCESS": len(verdict.torn),
        }


@functools.cache
def seed() -> int:
    """CHAOS_SEED, or another one each time."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))


def rounds(planned: int, longest_s: float) -> Iterator[int]:
    """As many as the plan has, unless time is up before: a slow machine does less, and does not take longer."""
    share = share_of_plan()
    deadline = time.monotonic() + longest_s * share
    for number in range(max(1, round(planned * share))):
        if time.monotonic() > deadline:
            return
        yield number


def longer() -> float:
    """How many times as long as by default a test may take; 1 where it is to be shorter."""
    return max(1.0, share_of_plan())


def share_of_plan() -> float:
    """CHAOS_MINUTES, as a share of the five that the whole takes by default."""
    return minutes(5) / 5


def minutes(default: float) -> float:
    return float(os.environ.get("CHAOS_MINUTES") or default)
