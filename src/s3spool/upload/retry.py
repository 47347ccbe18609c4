"""The retry thread offers files to the inbox when their next attempt is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from s3spool.config.schema import RetryConfig
from s3spool.errors import LedgerError
from s3spool.heartbeat import Heartbeat
from s3spool.ledger.protocol import Claims, LedgerBackend
from s3spool.ledger.queries import LedgerReader
from s3spool.ledger.rows import Node, State
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item, Lane
from s3spool.upload.missing import MissingFiles

BATCH = 500
MAX_PASSED = 5000  # so many due files that are in the inbox hold up no other one; more would take memory
ROOM_S = 1.0  # how long to wait when the inbox has no room
SHARED_S = 5.0  # how often to look for what other daemons, commands and threads have done to a shared list
SLACK_S = 1.0  # a row recorded during a tick may be due slightly later than max_s
log = structlog.get_logger()


class RetryThread:
    """Sleeps until the next waiting file is due, claims it in the ledger and offers it to the inbox."""

    def __init__(
        self,
        ledger: LedgerBackend,
        inbox: Inbox,
        policy: RetryConfig,
        same_folder: Callable[[Sequence[Node]], bool] = lambda _: True,
    ) -> None:
        """`same_folder`: whether this daemon sees the folder of these nodes."""
        self._same_folder = same_folder
        self.missing = MissingFiles()
        self._ledger = ledger
        self._claims = ledger.claims
        self._inbox = inbox
        self.policy = policy
        self._changed = threading.Event()
        self.heartbeat = Heartbeat()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="retry", daemon=True)
        self._in_inbox = 0  # due files that the last tick left out: they changed, and are in the inbox already
        self.ticks = 0

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def apply(self, policy: RetryConfig) -> None:
        self.policy = policy
        self.wake()  # it may sleep for longer than the new max_s

    def wake(self) -> None:
        """The retry list has changed: tick again. Any thread; never blocks."""
        self._changed.set()

    def close(self, timeout_s: float) -> None:
        self._closing = True
        self._changed.set()
        self._thread.join(timeout_s)

    def tick(self, reader: LedgerReader, now: float) -> float | None:
        """Offer the files due at `now` (Unix seconds); returns seconds until the next tick, None: when woken."""
        self.ticks += 1
        left = self.missing.left_to_others(time.monotonic())
        due = reader.due(now, BATCH + len(left) + min(self._in_inbox, MAX_PASSED))
        items = [Item(row.path, Lane.RETRY, row.failures) for row in due if row.path not in left]
        if self._claims is None:
            accepted = self._offer(items)
        else:
            if items:
                self.missing.same_folder = self._same_folder(reader.nodes())
                items = self._claimed(items, self._claims, now)
            accepted = self._inbox.offer_nowait(items)
            self._claims.give_back([item.path for item in items[accepted:]])
        if accepted and accepted + self._in_inbox >= max(len(due), BATCH):
            return 0.0
        if accepted < len(due):  # no room, or a worker or another daemon has some of them
            return ROOM_S
        longest_s = self.policy.max_s if self._claims is None else min(self.policy.max_s, SHARED_S)
        upcoming = reader.next_due()
        if upcoming is None:
            return None if self._claims is None else longest_s
        if (reader.last_due() or now) > now + self.policy.max_s + SLACK_S:
            # The clock was set back, or max_s was lowered: no file waits longer than max_s.
            committed = threading.Event()
            self._ledger.hasten(now, now + self.policy.max_s, committed.set)
            self._wait(committed)
            return 0.0
        return min(max(0.0, upcoming - now), longest_s)

    def _offer(self, items: list[Item]) -> int:
        """Claim and queue these; returns how many had room.

        The claim goes to the ledger before a worker can take the file, and so before the row of its next failure: a
        claim of that row would last until the next start, because no worker has the file.
        """
        new = [item for item in items if self._inbox.state_of(item.path) is None]
        self._in_inbox = len(items) - len(new)
        committed = threading.Event()
        accepted = self._inbox.offer_nowait(new, lambda paths: self._ledger.claim(paths, committed.set))
        if accepted:
            self._wait(committed)  # the next tick would find the same rows due again
        return accepted

    def _claimed(self, items: list[Item], claims: Claims, now: float) -> list[Item]:
        """Those that no other daemon has taken or tried meanwhile. Raises LedgerError."""
        known = claims.take([item.path for item in items], self.heartbeat.beat)
        retries = [row.retry for row in known.values() if row.retry is not None]
        due = {row.path for row in retries if row.state is State.WAITING and row.next_attempt <= now}
        claims.give_back([*known.keys() - due])
        return [item for item in items if item.path in due]

    def _wait(self, committed: threading.Event) -> None:
        while not committed.wait(1.0) and not self._closing and self._ledger.alive():
            self.heartbeat.beat()  # a ledger whose disk is full is no hang of this thread

    def _run(self) -> None:
        reader: LedgerReader | None = None
        complaint = ""  # logged once, not every ten seconds
        while not self._closing:
            self._changed.clear()
            try:
                if reader is None:
                    reader = self._ledger.reader()
                wait_s = self.tick(reader, time.time())
                complaint = ""
            except (LedgerError, OSError) as exc:
                complaint = self._ledger.report_read_error(exc, complaint)
                if reader is not None:
                    reader.close()
                reader = None
                wait_s = ROOM_S * 10
            self.heartbeat.wait(self._changed, wait_s)
        if reader is not None:
            reader.close()
