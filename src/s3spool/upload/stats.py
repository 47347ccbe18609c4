"""Counters for status and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Since the start of the process. Each counter has one writing thread, or a lock; anyone may read."""

    started: float = field(default_factory=time.time)  # Unix seconds
    uploaded: int = 0  # after
    bytes_uploaded: int = 0  # after
    vanished: int = 0  # workers, under the lock of `Outcome`
    failed: int = 0  # the same
    workers_replaced: int = 0  # the supervisor
    last_error: str = ""  # anyone
