"""Signs of life: the heartbeat of a thread, and a detector of workers that hang."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable

BEAT_S = 10.0  # the longest wait of a thread without a beat
HEARTBEAT_TIMEOUT_S = 60.0  # a slow disk may block a thread for long; a deadlock never ends


class Heartbeat:
    """Time of a thread's last beat. The thread beats on each loop iteration and while it waits; any thread reads."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def beat(self) -> None:
        self.last = time.monotonic()

    def capped(self, timeout_s: float | None) -> float:
        """The part of this time-out (None: without end) that may pass without a beat."""
        return BEAT_S if timeout_s is None else min(timeout_s, BEAT_S)

    def wait(self, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait for the event and beat meanwhile; False after the time-out."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self.beat()
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if event.wait(self.capped(left_s)):
                return True
            if left_s is not None and left_s <= BEAT_S:
                return False


class HangDetector:
    """Finds threads that have had the same job for some time and used no CPU time meanwhile.

    A worker that waits for S3 is not among them: libcurl checks its clock each second. Only the supervisor's thread
    calls `find`.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, int, float]] = {}  # by thread: its job, its CPU time, since when

    def find(self, jobs: Iterable[tuple[int, object]], now: float, for_s: float) -> list[int]:
        """`jobs`: native id and job of each busy thread. Returns the native ids of those that hang for so long."""
        seen, hanging = {}, []
        for thread, job in jobs:
            before = self._seen.get(thread)
            cpu_ns = cpu_time_ns(thread)
            if before is not None and before[0] is job and before[1] == cpu_ns:
                seen[thread] = before
                if now - before[2] > for_s:
                    hanging.append(thread)
            else:
                seen[thread] = (job, cpu_ns, now)
        self._seen = seen
        return hanging


def cpu_time_ns(thread: int) -> int:
    """CPU time of a thread of this process; -1 if the thread has ended."""
    # The clock's number as clock_getcpuclockid(3) makes it; pthread_getcpuclockid(3) is unsafe for an ended thread.
    try:
        return time.clock_gettime_ns(~thread << 3 | 0b110)
    except OSError:
        return -1 if not os.path.exists(f"/proc/self/task/{thread}") else time.monotonic_ns()
