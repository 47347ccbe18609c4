"""Counters for status and metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Since the start of the process. Each counter has one writing thread, or a lock; any thread may read."""

    started: float = field(default_factory=time.time)  # Unix seconds
    uploaded: int = 0  # post-upload thread
    bytes_uploaded: int = 0  # post-upload thread
    vanished: int = 0  # workers, under the lock of `ResultHandler`
    failed: int = 0  # as above
    workers_replaced: int = 0  # supervisor
    last_error: str = ""  # any thread
