"""How long one request may take: a silence ends it, and so does an answer that never comes to its end."""

from __future__ import annotations

from collections.abc import Callable

ANSWER_TIMES = 10  # times the longest silence: for an answer that trickles, or never ends
LOOK_S = 1.0  # how often the kernel is asked what it still holds


class Patience:
    """Not libcurl's own LOW_SPEED_TIME: that goes by averages, and looks late at one of many requests in a thread."""

    __slots__ = (
        "_heard",
        "_length",
        "_next_look",
        "_sent",
        "_sent_all_at",
        "_since",
        "_unsent",
        "_waiting",
        "timeout_s",
    )

    def __init__(self, timeout_s: float, unsent: Callable[[], int]) -> None:
        """`unsent`: how many bytes the kernel holds that were sent, but not acknowledged."""
        self.timeout_s = timeout_s
        self._unsent = unsent
        self.begin(0, 0.0)

    def begin(self, length: int, now: float) -> None:
        """A request with a body of so many bytes sets out; `now` is monotonic seconds."""
        self._length = length
        self._sent = self._heard = self._waiting = 0
        self._since = self._next_look = now
        self._sent_all_at: float | None = None

    def excuse(self, now: float) -> None:
        """We ourselves have held it up until now."""
        self._since = now

    def over(self, sent: int, heard: int, now: float) -> str:
        """Why it is to be given up, "" if it is not. `sent` of its body, `heard` of the answer: they only grow."""
        if sent != self._sent or heard != self._heard:
            self._sent, self._heard = sent, heard
            self._since = now
        elif self._drains(now):
            self._since = now
        elif now - self._since >= self.timeout_s:
            return f"no progress for {self.timeout_s:g} s"
        if sent < self._length or self._waiting:
            return ""
        if self._sent_all_at is None:
            self._sent_all_at = now
        longest_s = ANSWER_TIMES * self.timeout_s
        if now - self._sent_all_at >= longest_s:
            return f"the answer was not complete {longest_s:g} s after the body had been sent"
        return ""

    def _drains(self, now: float) -> bool:
        """Whether some of what the kernel holds has left since the last look."""
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_S
        before, self._waiting = self._waiting, self._unsent()
        return self._waiting != before
