"""Reacts to what other daemons do that share the ledger, and leaves them what this one cannot send."""

from __future__ import annotations

import time
from collections.abc import Callable

from s3spool.daemon.operator_pause import OperatorPause
from s3spool.failure.breaker import CircuitBreaker
from s3spool.ledger.protocol import Listener
from s3spool.ledger.rows import NodeLoad, Pause
from s3spool.queue.inbox import Inbox
from s3spool.upload.result import ResultHandler
from s3spool.upload.retry import RetryThread
from s3spool.upload.stats import Stats

PROBES = 8  # files that a daemon keeps for the probes of a paused destination


class OtherNodes(Listener):
    """`room` and `destination_changed` run on any thread, the other methods on the ledger's."""

    def __init__(
        self,
        inbox: Inbox,
        breaker: CircuitBreaker,
        retry: RetryThread,
        results: ResultHandler,
        pause: OperatorPause,
        stats: Stats,
        marker: str,
        rescan: Callable[[str], None],
        *,
        lease_s: float,
    ) -> None:
        self._inbox = inbox
        self._breaker = breaker
        self._retry = retry
        self._results = results
        self._pause = pause
        self._rescan = rescan
        self._lease_s = lease_s
        self._stats = stats
        self._marker = marker
        self._at, self._uploaded = time.monotonic(), 0
        self._gave_up = False  # in this pause of the destination
        self._skipped = False  # files were left to others
        breaker.on_change(self.destination_changed)

    def node_gone(self) -> None:
        self._rescan("takeover")
        self._results.node_gone()
        self._retry.wake()

    def may_start(self) -> None:
        self._inbox.wake()
        self._retry.wake()

    def load(self) -> NodeLoad:
        now, uploaded = time.monotonic(), self._stats.uploaded
        rate = (uploaded - self._uploaded) * 60 / max(now - self._at, 1.0)
        self._at, self._uploaded = now, uploaded
        return NodeLoad(self._inbox.counts()[1], round(rate, 1), self._marker)

    def paused(self, pause: Pause | None) -> None:
        self._pause.follow(pause)

    def gives_up(self) -> bool:
        """Once per pause of the destination: the network of this host alone may be the trouble."""
        since = self._breaker.paused_at
        if since is None or self._gave_up or time.time() - since < self._lease_s:
            return False
        self._gave_up = True
        return True

    def room(self) -> int | None:
        if self._breaker.open:
            self._skipped = True  # before the look that decides: who closes the breaker later asks for a scan
        return max(0, PROBES - self._inbox.counts()[0]) if self._breaker.open else None

    def destination_changed(self) -> None:
        if not self._breaker.open:
            self._gave_up = False
            if self._skipped:
                self._skipped = False
                self._rescan("takeover")
