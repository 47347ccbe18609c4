"""How a thread proves that it still goes round: what was asked of it is answered where it comes by."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable

Answer = Callable[[], None]


class Bell:
    """`ring` from any thread; `answer` on the thread that is asked, also where it waits for others. Never blocks."""

    def __init__(self) -> None:
        self._rung: deque[Answer] = deque()

    def ring(self, answer: Answer) -> None:
        self._rung.append(answer)

    def answer(self) -> None:
        while self._rung:
            self._rung.popleft()()

    def __bool__(self) -> bool:
        return bool(self._rung)


class HangDetector:
    """Who has had the same thing in hands for `patience_s`, and has not even used the CPU meanwhile.

    A worker that waits for S3 is not one of those: libcurl looks at its clock each second, and gives up in time. Only
    the supervisor's thread calls `look`.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self._seen: dict[int, tuple[object, int, float]] = {}  # by thread: in its hands, its CPU time, since when

    def look(self, hands: Iterable[tuple[int, object]], now: float) -> list[int]:
        """`hands`: the kernel's number of each busy thread, and what it has; the numbers of those that hang."""
        seen, hanging = {}, []
        for thread, what in hands:
            before = self._seen.get(thread)
            cpu_ns = cpu_time_ns(thread)
            if before is not None and before[0] is what and before[1] == cpu_ns:
                seen[thread] = before
                if now - before[2] > self.patience_s:
                    hanging.append(thread)
            else:
                seen[thread] = (what, cpu_ns, now)
        self._seen = seen
        return hanging


def cpu_time_ns(thread: int) -> int:
    """What a thread of this process has used; -1 if it has ended."""
    # The clock's number as clock_getcpuclockid(3) makes it. Its pthread sister takes a thread that may have ended.
    try:
        return time.clock_gettime_ns(~thread << 3 | 0b110)
    except OSError:
        return -1 if not os.path.exists(f"/proc/self/task/{thread}") else time.monotonic_ns()
