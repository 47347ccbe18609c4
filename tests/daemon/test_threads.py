"""The kernel's names of threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from s3spool.daemon.thread_names import ThreadNames

TASKS = Path("/proc/self/task")


def name_of(number: int | None) -> str:
    return (TASKS / str(number) / "comm").read_text().rstrip("\n")


def test_threads_have_their_names_outside_of_python() -> None:
    """Those that come later, too, cut to what the kernel keeps; the process keeps its own."""
    process, end = name_of(os.getpid()), threading.Event()
    names = ThreadNames()
    threads = [threading.Thread(target=end.wait, name=name) for name in ("upload-000", "a name that is too long")]
    try:
        for thread in threads:
            thread.start()
            names.publish()

        assert [name_of(thread.native_id) for thread in threads] == ["upload-000", "a name that is "]
        assert name_of(os.getpid()) == process
    finally:
        end.set()
        for thread in threads:
            thread.join()
