"""Work for a child process: the memory that it took goes with the child."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def in_child(work: Callable[[], str]) -> str | None:
    """What `work` returns, in a fork of this process; None when that did not work out, for whatever reason.

    Only as long as this is the only thread: a fork has no others, but the locks they hold.
    """
    if threading.active_count() > 1:
        return None
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reading, "rb") as pipe:
        try:
            child = os.fork()
        except OSError:  # no process or memory left
            os.close(writing)
            return None
        if child == 0:
            status = 1
            try:
                os.write(writing, work().encode())
                status = 0
            finally:
                os._exit(status)  # nothing of the parent's is to be flushed or tidied up twice
        os.close(writing)
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return told.decode() if status == 0 else None
