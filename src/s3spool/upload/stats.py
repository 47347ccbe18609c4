"""Counters and histograms for status and metrics."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

MAX_ERROR_CODES = 100  # a server chooses its codes; the metrics stay bounded
UPLOAD_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
COMPLETION_BOUNDS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86_400)


class Histogram:
    """Observations by upper bound. One thread observes; any thread reads."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  #: per bucket; the last one is above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Stats:
    """Since the start of the process. Each counter has one writing thread, or a lock; any thread may read."""

    started: float = field(default_factory=time.time)  # Unix seconds
    uploaded: int = 0  # post-upload thread
    bytes_uploaded: int = 0  # post-upload thread
    upload_s: Histogram = field(default_factory=lambda: Histogram(UPLOAD_BOUNDS_S))  # post-upload thread
    completion_s: Histogram = field(default_factory=lambda: Histogram(COMPLETION_BOUNDS_S))  # post-upload thread
    vanished: int = 0  # workers, under the lock of `ResultHandler`
    failed: int = 0  # as above
    parked: int = 0  # as above
    failures: Counter[str] = field(default_factory=Counter)  # by error code; as above
    workers_replaced: int = 0  # supervisor
    last_error: str = ""  # any thread

    def count_failure(self, error_code: str) -> None:
        """The caller holds the lock of `ResultHandler`."""
        known = error_code in self.failures or len(self.failures) < MAX_ERROR_CODES
        self.failures[error_code if known else "other"] += 1
