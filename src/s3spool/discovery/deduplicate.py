"""Compares found and hinted files with the ledger: a known, unchanged file is not sent again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain

import structlog

from s3spool.errors import LedgerError
from s3spool.folder.folder import Folder
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.ledger.protocol import CLAIMED_ROWS, Claims, LedgerBackend
from s3spool.ledger.queries import Known, LedgerReader
from s3spool.ledger.rows import NO_IDENTITY, Identity, Receipt
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item, Lane
from s3spool.queue.settle import Ripe, Settle, SettleReason

# Kernels before 6.13 have file times of 1-10 ms: a write so soon after our read may not change mtime and ctime.
RACY_S = 0.02
UNKNOWN = Known(None, None)
log = structlog.get_logger()

Candidate = tuple[str, Identity | None, Identity | None]  # path, identity, identity seen one settle time ago


class Verdict(Enum):
    """What to do with a file that was found or hinted at."""

    SEND = "send"
    CHECK = "check"  #: sent before; only a checksum shows whether it has changed
    FINISH = "finish"  #: sent and committed, but not removed: the process died in between
    SKIP = "skip"  #: sent, or in the retry list and unchanged


def verdict(known: Known | None, identity: Identity, *, destination: int, hinted: bool) -> Verdict:
    """Pure; `hinted`: an event of the file has just arrived."""
    if known is None:
        return Verdict.SEND
    if known.retry is not None:
        return Verdict.SKIP if known.retry.identity == identity else Verdict.SEND
    receipt = known.receipt
    if receipt is None or receipt.destination != destination:
        return Verdict.SEND
    if receipt.identity == identity:
        if hinted and receipt.read_at - identity.mtime_ns / 1e9 < RACY_S:
            return Verdict.CHECK
        return Verdict.SKIP if receipt.after == "keep" else Verdict.FINISH
    return Verdict.CHECK if receipt.identity.may_hold_the_same(identity) else Verdict.SEND


class Deduplicator:
    """Compares candidates with the ledger. `sort` is called by the settle thread and the scan thread."""

    def __init__(
        self,
        folder: Folder,
        ledger: LedgerBackend,
        inbox: Inbox,
        finish: Callable[[Receipt], None],
        rescan: Callable[[str], None],
        slow: SlowDirectories | None = None,
    ) -> None:
        self._rescan = rescan
        self._slow = slow or SlowDirectories()
        self._folder = folder
        self._ledger = ledger
        self._claims = ledger.claims
        self._inbox = inbox
        self._finish = finish

    def sort(
        self,
        candidates: Sequence[Candidate],
        reader: LedgerReader,
        *,
        hinted: bool,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[list[Item]]:
        """The items to send, in pieces. Raises LedgerError, but never OSError.

        The worker, not this thread, looks at a file that is not in the ledger.
        """
        if self._claims is None:
            yield self._items(candidates, reader.known([path for path, _, _ in candidates]), hinted=hinted)
        else:
            yield from self._claimed(candidates, self._claims, hinted=hinted, meanwhile=meanwhile)

    def _claimed(
        self, candidates: Sequence[Candidate], claims: Claims, *, hinted: bool, meanwhile: Callable[[], None]
    ) -> Iterator[list[Item]]:
        """Claim a piece, which may block, and yield it; the next piece when that one is queued.

        Each daemon begins with another piece. A file of another daemon is left out; the next scan looks at it again.
        """
        lane = Lane.ARRIVED if hinted else Lane.FOUND
        pieces = [candidates[start : start + CLAIMED_ROWS] for start in range(0, len(candidates), CLAIMED_ROWS)]
        first = self._ledger.owner % len(pieces) if pieces else 0
        for piece in pieces[first:] + pieces[:first]:
            before = {path for path, _, _ in piece if claims.holds(path)}  # another thread may give them back meanwhile
            known = claims.take([path for path, _, _ in piece], meanwhile)
            rows = {path: row for path, row in known.items() if row != UNKNOWN}
            items = self._items([each for each in piece if each[0] in known], rows, hinted=hinted)
            claims.give_back([*known.keys() - {item.path for item in items}])
            # The inbox knows these: it remembers that they were offered again.
            held = [each for each in piece if each[0] not in known and (each[0] in before or claims.holds(each[0]))]
            yield items + [Item(path, lane, seen=seen) for path, _, seen in held]
            # A claim is over before its file leaves the inbox: these have not come in.
            paths = [item.path for item in items]
            claims.give_back([path for path in paths if self._inbox.state_of(path) is None and claims.holds(path)])

    def _items(self, candidates: Sequence[Candidate], known: Mapping[str, Known], *, hinted: bool) -> list[Item]:
        items: list[Item] = []
        lane = Lane.ARRIVED if hinted else Lane.FOUND
        for path, found, seen in candidates:
            row = known.get(path)
            if row is None:
                items.append(Item(path, lane, seen=seen))
                continue
            if found is None and self._slow.holds(path):
                # A look may hang, and all files wait for this thread: the worker compares the checksum.
                receipt = row.receipt if row.retry is None else None
                known_here = receipt is not None and receipt.destination == self._ledger.destination
                items.append(Item(path, lane, seen=seen, receipt=receipt if known_here else None))
                continue
            identity = found or self._identity_of(path)
            if identity is None:
                continue  # removed meanwhile
            choice = verdict(row, identity, destination=self._ledger.destination, hinted=hinted)
            if choice is Verdict.SEND:
                items.append(Item(path, lane, seen=seen))
            elif choice is Verdict.CHECK:
                items.append(Item(path, lane, seen=seen, receipt=row.receipt))
            elif choice is Verdict.FINISH and row.receipt is not None:
                if self._inbox.claim(path):
                    self._finish(row.receipt)
                else:
                    self._rescan("removals")
            else:
                reason = "uploaded" if row.retry is None else row.retry.state.value
                log.debug("file.skipped", path=path, reason=reason)
        return items

    def sort_found(
        self,
        found: Sequence[tuple[str, Identity]],
        reader: LedgerReader,
        settles: Callable[[str, Identity], bool],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[list[Item]]:
        """`sort` for the files of a scan, of which almost all are unchanged; fastest in the order of paths.

        `settles`: whether this file changed a moment ago, and waits in settle from now on.
        """
        if self._claims is not None:  # a file that settles is not claimed yet
            news = reader.news(found, self._ledger.destination)
            ready = [(path, identity, None) for path, identity in found if path in news and not settles(path, identity)]
            yield from self.sort(ready, reader, hinted=False, meanwhile=meanwhile)
            return
        identities = dict(found)
        yield [item for item in self._news(found, reader) if not settles(item.path, identities[item.path])]

    def _news(self, found: Sequence[tuple[str, Identity]], reader: LedgerReader) -> list[Item]:
        if log.is_enabled_for(logging.DEBUG):  # one line per file
            return [*chain(*self.sort([(path, identity, None) for path, identity in found], reader, hinted=False))]
        news = reader.news(found, self._ledger.destination)
        unknown = [Item(path, Lane.FOUND) for path, known in news.items() if not known]
        known = [(path, identity, None) for path, identity in found if news.get(path)]
        return [*chain(unknown, *self.sort(known, reader, hinted=False))]

    def _identity_of(self, path: str) -> Identity | None:
        try:
            return self._folder.identity_of(path)
        except OSError:
            return NO_IDENTITY  # the worker will meet the same error, and report it


class SettleThread:
    """Takes due paths from Settle, and offers to the inbox those that have to be sent."""

    def __init__(
        self,
        settle: Settle,
        deduplicator: Deduplicator,
        ledger: LedgerBackend,
        inbox: Inbox,
        rescan: Callable[[str], None],
    ) -> None:
        self._settle = settle
        self._deduplicator = deduplicator
        self._ledger = ledger
        self._inbox = inbox
        self._rescan = rescan
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        reader: LedgerReader | None = None
        complaint = ""  # logged once, not for each file
        while ripe := self._settle.wait_due():
            try:
                if reader is None:
                    reader = self._ledger.reader()
                self._step(ripe, reader)
                complaint = ""
            except (LedgerError, OSError) as exc:
                # Forget these hints; the scan finds the files again.
                complaint = self._ledger.report_read_error(exc, complaint)
                if reader is not None:
                    reader.close()
                reader = None
                self._rescan("ledger")
        if reader is not None:
            reader.close()

    def _step(self, ripe: Sequence[Ripe], reader: LedgerReader) -> None:
        beat = self._settle.heartbeat.beat
        busy = {path for path, _, was_busy in ripe if was_busy}
        with self._inbox.lookup([path for path, _, _ in ripe]) as (here, taken):
            candidates = [(path, None, seen) for path, seen, _ in ripe if path not in here]
            for items in self._deduplicator.sort(candidates, reader, hinted=True, meanwhile=beat):
                # Files that are tried again and again take turns with those of the scan: new ones do not wait for them.
                again = [item._replace(lane=Lane.FOUND) for item in items if item.path in busy]
                for item in again[self._inbox.offer_nowait(again) :]:
                    if not self._settle.add(item.path, SettleReason.BUSY, item.seen):
                        self._rescan("full")
                if not self._inbox.offer((item for item in items if item.path not in busy), beat, taken):
                    return
