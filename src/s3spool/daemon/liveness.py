"""Proof of life for systemd's watchdog: rooms that are asked have to answer."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping

HEARTBEAT_TIMEOUT_S = 60.0  # a disk may be slow for long, a deadlock lasts for ever

Answer = Callable[[], None]


class Pulse:
    """Asks each room to call back, and says which did not. Used by the supervisor's thread alone."""

    def __init__(
        self, asks: Mapping[str, Callable[[Answer], None]], *, patience_s: float = HEARTBEAT_TIMEOUT_S
    ) -> None:
        """`asks` by the room's name; each takes the callback, which may come from any thread, and must not block."""
        self._asks = asks
        self._patience_s = patience_s
        self._pending: dict[str, float] = {}  # since when (monotonic seconds) an answer is awaited
        self._none_pending = threading.Event()

    def silent(self, now: float) -> list[str]:
        """The rooms that were asked longer ago than one can wait; all that have answered are asked again."""
        for name, ask in self._asks.items():
            if name not in self._pending:
                self._pending[name] = now
                ask(functools.partial(self._answered, name))
        # A copy: answers come from other threads, at any moment.
        return [name for name, since in list(self._pending.items()) if now - since > self._patience_s]

    def all_answer(self, timeout_s: float) -> bool:
        """Whether nobody owes an answer, within this time."""
        deadline = time.monotonic() + timeout_s
        while self._pending:
            self._none_pending.clear()
            if self._pending and not self._none_pending.wait(max(0.0, deadline - time.monotonic())):
                return False
        return True

    def _answered(self, name: str) -> None:
        self._pending.pop(name, None)
        if not self._pending:
            self._none_pending.set()
