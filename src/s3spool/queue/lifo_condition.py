"""A condition that wakes the latest waiter first: its connection is warm, and older waiters can close theirs."""

from __future__ import annotations

import threading


class LifoCondition:
    """Like threading.Condition, but last in, first out. The caller of each method holds `lock`."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._calls: list[threading.Lock] = []  # one locked lock per waiter; a release wakes it

    def __len__(self) -> int:
        """How many waiters have not been notified."""
        return len(self._calls)

    def wait(self, timeout_s: float | None = None, *, last: bool = False) -> bool:
        """Release the lock until notified; False after the timeout. `last`: notify all other waiters first."""
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

    def notify(self, count: int = 1) -> None:
        for _ in range(min(count, len(self._calls))):
            self._calls.pop().release()

    def notify_all(self) -> None:
        self.notify(len(self._calls))
