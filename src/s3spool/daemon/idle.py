"""How long the supervisor may sleep: a while as long as something is under way, else until something happens."""

from __future__ import annotations

import os
import select
import time

from s3spool.daemon.components import Components
from s3spool.daemon.liveness import Pulse
from s3spool.daemon.path_monitor import Tripwire
from s3spool.daemon.retry_summary import RetrySummary
from s3spool.daemon.watch_manager import WatchManager

TICK_S = 5.0  # how often the supervisor looks after its threads and the root while there is something to do
LOST_TICK_S = 0.5  # the same while the folder is gone
DOZE_S = 300.0  # the same while there is nothing to do
ANSWERS_S = 1.0  # rooms with nothing to do answer within milliseconds


class Doze:
    """`wake` is for any thread and for signal handlers, all else for the supervisor's thread."""

    def __init__(self, components: Components) -> None:
        self._rooms = components
        self._tripwire = Tripwire(components.folder.root, components.ledger.path)
        self._awake_until = 0.0  # monotonic seconds
        self._quiet = False  # whether no file was on its way before the last look at everything
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake(self) -> None:
        try:
            os.write(self._wake_w, b"!")
        except BlockingIOError:
            return  # it is awake already

    def nap(self, duration_s: float) -> None:
        """So long, or until it is woken."""
        ready, _, _ = select.select([self._wake_r], [], [], duration_s)
        self._wakened(ready)

    def arm(self) -> None:
        """Before a look at everything: what happens from here on is told of, what was before is found by looking."""
        self._tripwire.arm()
        # Files that end between the look and the sleep would be told of as on their way for minutes.
        self._rooms.inbox.stirred = self.wake  # before looking whether there is anything
        self._quiet = self._no_file()
        if not self._quiet:
            self._rooms.inbox.stirred = None

    def sleep(self, watch_manager: WatchManager, backlog: RetrySummary, pulse: Pulse, longest_s: float) -> None:
        """Until the next look is due, or something happens that asks for one."""
        wires, mounts = self._tripwire.readable, self._tripwire.exceptional
        due = time.monotonic() + min(longest_s, self._duration_s(watch_manager, backlog, pulse))
        while True:
            # What is nothing to us must not put off what is due: systemd waits for it.
            ready, _, odd = select.select([self._wake_r, *wires], [], mounts, max(0.0, due - time.monotonic()))
            if odd:  # before anything in it is opened
                self._rooms.slow.refresh(self._rooms.folder.root)
            disturbed = self._tripwire.disturbed(ready, odd)
            if self._wakened(ready) or disturbed:
                self._awake_until = time.monotonic() + TICK_S
                return
            if time.monotonic() >= due:
                return

    def close(self) -> None:
        self._tripwire.close()

    def _wakened(self, ready: list[int]) -> bool:
        if self._wake_r not in ready:
            return False
        os.read(self._wake_r, 4096)
        return True

    def _duration_s(self, watch_manager: WatchManager, backlog: RetrySummary, pulse: Pulse) -> float:
        if watch_manager.lost:
            return LOST_TICK_S
        if watch_manager.watch is None or not self._tripwire.armed or time.monotonic() < self._awake_until:
            return TICK_S
        if self._nothing_to_do(backlog) and pulse.all_answer(ANSWERS_S):
            return DOZE_S
        return TICK_S

    def _nothing_to_do(self, backlog: RetrySummary) -> bool:
        return (
            self._quiet
            and self._no_file()
            and not backlog.oldest_ns
            and not self._rooms.breaker.open
            and self._rooms.ledger.failing_since is None
        )

    def _no_file(self) -> bool:
        return self._rooms.inbox.counts() == (0, 0) and not len(self._rooms.settle)
