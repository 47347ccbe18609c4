"""The supervisor's sleep; signal handlers and other threads may end it."""

from __future__ import annotations

import os
import select


class Wakeup:
    """A pipe: threading.Event must not be set by a signal handler of the thread that waits for it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        """End the sleep, or the next one. Any thread, and signal handlers."""
        try:
            os.write(self._write, b"!")
        except BlockingIOError:
            return  # earlier calls have filled the pipe

    def sleep(self, duration_s: float) -> None:
        ready, _, _ = select.select([self._read], [], [], duration_s)
        if ready:
            os.read(self._read, 4096)
