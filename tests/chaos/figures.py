"""What a run has done to the daemon, and what came of it."""

from __future__ import annotations

import functools
import os
import random
from collections import Counter
from dataclasses import dataclass, field

from chaos.oracle import Verdict

STEPS, KINDS = "named steps died at", "kinds of faults"
NO_SUMS = {STEPS, KINDS}  #: several tests come to the same


@dataclass(slots=True)
class Figures:
    """One for each test; the report adds them up."""

    kills: int = 0
    kills_at_steps: Counter[str] = field(default_factory=Counter)
    steps_left: list[str] = field(default_factory=list)  #: time was up before it died there
    starts: int = 0
    stops: int = 0
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
            STEPS: len(self.kills_at_steps),
            "named steps not come to": len(self.steps_left),
            "stopped and continued": self.stops,
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
            "RECEIPTS WITHOUT OBJECT": len(verdict.early),
            "TORN OBJECTS TAKEN FOR SUCCESS": len(verdict.torn),
        }


@functools.cache
def seed() -> int:
    """CHAOS_SEED, or another one each time."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))


def share_of_plan() -> float:
    """CHAOS_MINUTES, as a share of the five that the whole takes by default."""
    return float(os.environ.get("CHAOS_MINUTES") or 5) / 5
