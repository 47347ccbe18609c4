"""Threads under their names in ps, top and gdb: before Python 3.14 only Python itself knows them."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_NAME_BYTES = 15  # the kernel's limit
_TASKS = Path("/proc/self/task")


class ThreadNames:
    """Tells the kernel. Used by the supervisor's thread alone."""

    def __init__(self) -> None:
        self._told: set[int] = {os.getpid()}  # the main thread's name is the process's

    def tell(self) -> None:
        """Whichever threads have come since the last time. Never raises."""
        running = {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id}
        for number in running.keys() - self._told:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                (_TASKS / str(number) / "comm").write_text(running[number][:_NAME_BYTES], errors="replace")
        self._told &= running.keys() | {os.getpid()}  # numbers are used again
        self._told |= running.keys()
