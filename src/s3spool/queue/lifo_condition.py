"""A condition that wakes the latest waiter first: its connection is warm, and older waiters can close theirs."""

from __future__ import annotations

import threading


class LifoCondition:
    """Like threading.Condition, but last in, first out. The caller of each method holds `lock`."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.waiting: list[threading.Lock] = []  #: one locked lock per waiter that was not notified; a release wakes it

    def wait(self, timeout_s: float | None = None, *, last: bool = False) -> bool:
        """Release the lock until notified; False after the timeout. `last`: notify all other waiters first."""
        call = threading.Lock()
        call.acquire()
        self.waiting.insert(0 if last else len(self.waiting), call)
        self._lock.release()
        try:
            called = call.acquire(timeout=-1 if timeout_s is None else timeout_s)
        finally:
            self._lock.acquire()
        if not called and call in self.waiting:
            self.waiting.remove(call)
            return False
        return True

    def notify(self, count: int = 1) -> None:
        for _ in range(min(count, len(self.waiting))):
            self.waiting.pop().release()

    def notify_all(self) -> None:
        self.notify(len(self.waiting))
