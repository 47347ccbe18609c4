"""Reacts to what other daemons do that share the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable

from s3spool.daemon.operator_pause import OperatorPause
from s3spool.ledger.protocol import Listener
from s3spool.ledger.rows import NodeLoad, Pause
from s3spool.queue.inbox import Inbox
from s3spool.upload.retry import RetryThread
from s3spool.upload.stats import Stats


class OtherNodes(Listener):
    """All methods run on the ledger's thread."""

    def __init__(
        self,
        inbox: Inbox,
        retry: RetryThread,
        pause: OperatorPause,
        stats: Stats,
        marker: str,
        rescan: Callable[[str], None],
    ) -> None:
        self._inbox = inbox
        self._retry = retry
        self._pause = pause
        self._rescan = rescan
        self._stats = stats
        self._marker = marker
        self._at, self._uploaded = time.monotonic(), 0

    def node_gone(self) -> None:
        self._rescan("takeover")
        self._retry.wake()

    def may_start(self) -> None:
        self._inbox.wake_all()
        self._retry.wake()

    def load(self) -> NodeLoad:
        now, uploaded = time.monotonic(), self._stats.uploaded
        rate = (uploaded - self._uploaded) * 60 / max(now - self._at, 1.0)
        self._at, self._uploaded = now, uploaded
        return NodeLoad(self._inbox.counts()[1], round(rate, 1), self._marker)

    def paused(self, pause: Pause | None) -> None:
        self._pause.follow(pause)
