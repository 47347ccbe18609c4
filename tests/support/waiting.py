"""Waiting for a condition: the only place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(count: int, run: Callable[[int], object]) -> None:
    """Side by side, each with its number, until all have ended; raises what one of them raises."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count), timeout=120))


_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def eventually(condition: Callable[[], T], *, timeout_s: float = 60.0, message: str = "") -> T:
    """Return the condition's first true value; AssertionError when none came in time."""
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        late = time.monotonic() >= deadline  # looked at first: a slow machine still gets one last try
        if value := condition():
            return value
        if late:
            raise AssertionError(f"not within {timeout_s:g} s: {message or condition}; last value: {value!r}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
