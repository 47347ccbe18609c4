"""What a soak leaves behind: samples of the daemon, the periods with faults, and figures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from enum import StrEnum

WARM_UP = 0.2  # of the run: buffers, caches and the allocator's arenas find their size


class Faults(StrEnum):
    NONE = "none"
    SOME = "some"  #: a share of the requests meets a fault of any kind
    ALL = "all"  #: each request meets the same fault
    UNREACHABLE = "unreachable"  #: the server refuses connections


@dataclass(slots=True)
class FaultPeriod:
    faults: Faults
    begin: float  #: minutes since the start
    end: float


@dataclass(slots=True)
class Sample:
    minute: float
    rss_mib: float
    descriptors: int
    threads: int
    waiting: int  #: files that have not been seen to arrive
    files: int
    faults: int


@dataclass(slots=True)
class SoakResult:
    """`docs/soak.svg` is made of it."""

    seed: int
    samples: list[Sample] = field(default_factory=list)
    fault_periods: list[FaultPeriod] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def set_faults(self, faults: Faults, minute: float) -> None:
        """From this minute on: a period with other faults ends."""
        last = self.fault_periods[-1] if self.fault_periods else None
        if last is not None:
            last.end = minute
        if last is None or last.faults is not faults:
            self.fault_periods.append(FaultPeriod(faults, minute, minute))

    def growth(self) -> dict[str, float]:
        """Medians of the last fifth by those of the first one after warming up."""
        warm = self.samples[round(len(self.samples) * WARM_UP) :]
        share = max(1, len(warm) // 4)
        names = ("rss_mib", "descriptors", "threads")
        early = {name: statistics.median(getattr(it, name) for it in warm[:share]) for name in names}
        late = {name: statistics.median(getattr(it, name) for it in warm[-share:]) for name in names}
        return {name: late[name] / early[name] for name in names}
