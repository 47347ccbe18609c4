"""Reacts to what other daemons do that share the ledger."""

from __future__ import annotations

from collections.abc import Callable

from s3spool.daemon.operator_pause import OperatorPause
from s3spool.ledger.protocol import Listener
from s3spool.ledger.rows import Pause
from s3spool.queue.inbox import Inbox
from s3spool.upload.retry import RetryThread


class OtherNodes(Listener):
    """All methods run on the ledger's thread."""

    def __init__(self, inbox: Inbox, retry: RetryThread, pause: OperatorPause, rescan: Callable[[str], None]) -> None:
        self._inbox = inbox
        self._retry = retry
        self._pause = pause
        self._rescan = rescan

    def node_gone(self) -> None:
        self._rescan("takeover")
        self._retry.wake()

    def may_start(self) -> None:
        self._inbox.wake_all()
        self._retry.wake()

    def paused(self, pause: Pause | None) -> None:
        self._pause.follow(pause)
