"""Threads that wait for work, the last one first: its connection is still warm, those of the others may rest."""

from __future__ import annotations

import threading


class LifoCondition:
    """As threading.Condition, which calls in the order of arrival; everything is done while holding `lock`."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._calls: list[threading.Lock] = []  # locked; whoever waits at it is called by unlocking it

    def __len__(self) -> int:
        """How many wait and have not been called."""
        return len(self._calls)

    def wait(self, timeout_s: float | None = None, *, last: bool = False) -> bool:
        """Let go of the lock until called; False when the time was over before. `last`: after all others."""
        call = threading.Lock()
        call.acquire()
        self._calls.insert(0 if last else len(self._calls), call)
        self._lock.release()
        try:
            called = call.acquire(timeout=-1 if timeout_s is None else timeout_s)
        finally:
            self._lock.acquire()
        if not called and call in self._calls:
            self._calls.remove(call)
            return False
        return True

    def call(self, count: int = 1) -> None:
        for _ in range(min(count, len(self._calls))):
            self._calls.pop().release()

    def call_all(self) -> None:
        self.call(len(self._calls))
