"""Names of threads for ps, top and gdb: before Python 3.14 the kernel does not know them."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_NAME_BYTES = 15  # the kernel's limit
_TASKS = Path("/proc/self/task")


class ThreadNames:
    """Used by the supervisor's thread alone."""

    def __init__(self) -> None:
        self._told: set[int] = {os.getpid()}  # the main thread's name is the process's

    def publish(self) -> None:
        """Name the threads that have started since the last call. Never raises."""
        running = {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id}
        for number in running.keys() - self._told:
            with contextlib.suppress(OSError):  # the thread has ended
                (_TASKS / str(number) / "comm").write_text(running[number][:_NAME_BYTES], errors="replace")
        self._told &= running.keys() | {os.getpid()}  # the kernel reuses numbers
        self._told |= running.keys()
