"""Which CPU the threads share. One at a time holds the GIL; waking the next one is cheap on the same CPU only.

Measured with 100 workers on two CPUs: handing the GIL to a thread on an idle CPU takes about 20 us, on the same
CPU 2 us, and a file needs several such hand-overs. Kept on one CPU, small files take less than half the CPU time.
Work that runs outside the GIL, checksums and bodies of large files, roams over all CPUs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

CROWDED = 0.5  # share of the home CPU that others take before we look for another one
ROOM = 0.25  # what a CPU may be busy at most to be moved to
log = structlog.get_logger()


class CpuAffinity:
    """The home CPU of this process. `roaming` is for any thread, all else for the supervisor."""

    def __init__(self) -> None:
        """Looks only; nothing is changed before `settle`."""
        self._allowed = os.sched_getaffinity(0)
        self._busy_s = _busy_s()
        self._own_s = time.process_time()
        self._looked_at = time.monotonic()
        self.home: int | None = None  # None: the threads run wherever the kernel likes

    def settle(self) -> None:
        """Move all threads to the least busy CPU; those started later by them inherit it."""
        if len(self._allowed) > 1:
            self._move(min(self._allowed, key=lambda cpu: self._busy_s.get(cpu, 0.0)))

    def look(self) -> None:
        """Move when other processes crowd the home CPU while another one has room. Every few seconds is enough."""
        busy_s, own_s, now = _busy_s(), time.process_time(), time.monotonic()
        elapsed_s = now - self._looked_at
        if self.home is None or elapsed_s <= 0:
            return
        load = {cpu: (busy_s.get(cpu, 0.0) - self._busy_s.get(cpu, 0.0)) / elapsed_s for cpu in self._allowed}
        others = load[self.home] - (own_s - self._own_s) / elapsed_s
        self._busy_s, self._own_s, self._looked_at = busy_s, own_s, now
        idlest = min(self._allowed - {self.home}, key=load.__getitem__)
        if others > CROWDED and load[idlest] < ROOM:
            self._move(idlest)

    @contextlib.contextmanager
    def roaming(self) -> Iterator[None]:
        """Let the calling thread run on all CPUs meanwhile."""
        if self.home is None:
            yield
            return
        os.sched_setaffinity(0, self._allowed)
        try:
            yield
        finally:
            home = self.home
            os.sched_setaffinity(0, self._allowed if home is None else {home})

    def _move(self, cpu: int) -> None:
        try:
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.sched_setaffinity(int(thread), {cpu})
        except OSError as exc:  # a sandbox forbids it: slower, not wrong
            log.debug("library.warning", logger="cores", message=f"cannot stay on one CPU: {exc}")
            self.home = None
        else:
            self.home = cpu


def _busy_s() -> dict[int, float]:
    """Seconds each CPU has been busy since boot: proc(5), /proc/stat, all but idle and iowait."""
    busy: dict[int, float] = {}
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    with contextlib.suppress(OSError):
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name.startswith("cpu") and name != "cpu":
                ticks = [int(field) for field in fields[:8]]
                busy[int(name[3:])] = (sum(ticks) - ticks[3] - ticks[4]) * tick_s
    return busy
