"""Good files that are dropped one by one while something else goes on, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from support.daemon import Daemon
from support.faulty import FaultyS3
from support.waiting import eventually

NEVER_S = float("inf")


def slowest_arrival_s(
    daemon: Daemon,
    server: FaultyS3,
    count: int,
    *,
    each_s: float = 2.5,
    timeout_s: float = 60.0,
    meanwhile: Callable[[], object] = lambda: None,
) -> float:
    """Drop `count` files into the folder, one each `each_s` seconds; how long the slowest took to be at S3.

    NEVER_S if one is not there `timeout_s` after the last was dropped. `meanwhile` is called again and again.
    """
    dropped: dict[str, float] = {}
    slowest_s = 0.0
    made = 0
    start = time.monotonic()

    def look() -> bool:
        nonlocal made, slowest_s
        if made < count and time.monotonic() >= start + made * each_s:
            name = f"good-{time.monotonic_ns()}"
            dropped[name] = time.monotonic()
            daemon.drop(name)
            made += 1
        meanwhile()
        for name in [name for name in dropped if name in server.objects]:
            slowest_s = max(slowest_s, time.monotonic() - dropped.pop(name))
        return made == count and not dropped

    try:
        eventually(look, timeout_s=count * each_s + timeout_s)
    except AssertionError:
        return NEVER_S
    return slowest_s
