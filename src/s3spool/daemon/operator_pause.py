"""`s3spool pause` and `resume`: no new file is taken until a person says so, across restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from s3spool.control.views import iso
from s3spool.errors import S3SpoolError
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.rows import Pause
from s3spool.queue.inbox import Inbox

DURABLE_S = 10.0
log = structlog.get_logger()


class OperatorPause:
    """The pause by hand, as the ledger has it. Any thread."""

    def __init__(
        self, ledger: LedgerBackend, inbox: Inbox, on_paused: Callable[[Pause], None] = lambda _: None
    ) -> None:
        """Take up the pause of an earlier process. Raises LedgerError, OSError."""
        self._ledger = ledger
        self._on_paused = on_paused
        self._inbox = inbox
        self._lock = threading.Lock()
        with ledger.reader() as reader:
            self.current = reader.pause()  #: None while uploads are not paused by hand
        if self.current:
            self._stop_taking(self.current)

    def pause(self, reason: str) -> Pause:
        """Stop taking files; a second pause changes the reason only. Raises S3SpoolError where it is not durable."""
        with self._lock:
            since = self.current.since if self.current else time.time()
            self.current = pause = Pause(since, reason)
            self._stop_taking(pause)
            self._on_paused(pause)
            self._store(pause)
            return pause

    def resume(self) -> bool:
        """Whether there was a pause. Raises S3SpoolError where the end of the pause is not durable."""
        with self._lock:
            pause, self.current = self.current, None
            self._inbox.hold(False)
            if pause:
                log.info("uploads.resumed", duration_s=round(time.time() - pause.since, 3))
            self._store(None)
            return pause is not None

    def follow(self, pause: Pause | None) -> None:
        """Another daemon that shares the ledger may have paused or resumed. Never blocks."""
        if pause == self.current or not self._lock.acquire(blocking=False):
            return  # an order of this daemon is being stored: the next look shows it
        try:
            before, self.current = self.current, pause
            if pause is not None:
                self._stop_taking(pause)
            elif before is not None:
                self._inbox.hold(False)
                log.info("uploads.resumed", duration_s=round(time.time() - before.since, 3))
        finally:
            self._lock.release()

    def _stop_taking(self, pause: Pause) -> None:
        self._inbox.hold(True)
        log.warning("uploads.paused", reason=pause.reason, since=iso(pause.since))

    def _store(self, pause: Pause | None) -> None:
        self._ledger.record_pause(pause)
        if not self._ledger.flush(DURABLE_S):
            raise S3SpoolError("done, but not on disk yet: a restart may forget it; see the log")
