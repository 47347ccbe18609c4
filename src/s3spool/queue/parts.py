"""Large files on their way: which of their parts wait for a worker, and which are done."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from s3spool.errors import Fault, UploadError
from s3spool.failure.breaker import Times
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.ledger.rows import Multipart, Part
from s3spool.queue.item import Item
from s3spool.queue.part_concurrency import PartConcurrency
from s3spool.s3.content import Content

COMPLETE = 0  # the number of the last act: parts count from 1
OPEN_TRANSFERS = 24  # one with 10,000 confirmed parts takes 4 MB
OPEN_OF_ONE_OWNER = 12
SLOW_BEGIN_S = 1.0  # a transfer that S3 has not begun after so long holds up no other one


class GivenUp(NamedTuple):
    """Why a large file is tried again later, and whose fault it is."""

    error: UploadError
    fault: Fault


@dataclass(eq=False, slots=True)
class Transfer:
    """One large file. Its descriptor stays open from the first part to the last act."""

    item: Item
    content: Content
    upload: Multipart
    count: int  # how many parts it has
    times: Times  # when its first attempt began
    parts: dict[int, Part]  # confirmed, by number
    pending: deque[int]
    owner: int = 0  # of the file: a user's number
    taken: int = 0  # the queue's count when a part of it was taken last
    in_flight: int = 0
    failures: dict[int, int] = field(default_factory=dict)  # by part number
    retried_immediately: set[int] = field(default_factory=set)  # parts sent once more, see UploadError
    slow: bool = False  # in a slow directory: its parts have a limit of their own
    over: GivenUp | str = ""  # why no further part is sent: an error, or what happened to the file

    @property
    def bytes_done(self) -> int:
        return sum(part.size for part in list(self.parts.values()))


class PartItem(NamedTuple):
    """One part, or the completion, in a worker's hands."""

    transfer: Transfer
    number: int

    @property
    def path(self) -> str:
        return self.transfer.item.path


class PartQueue:
    """The transfers under way. Thread-safe; nothing blocks.

    Parts are taken by turns: from each owner of files, and of an owner's files from each. So neither a huge file nor a
    user with many large ones holds up the others.
    """

    def __init__(
        self, sent_bytes: Callable[[], int], max_tried: int, slow: SlowDirectories | None = None, max_slow: int = 1
    ) -> None:
        """`sent_bytes`: how much all workers have sent up to now.

        `max_tried`: workers for files that have failed; `max_slow`: parts of slow files at a time.
        """
        self._slow = slow or SlowDirectories()
        self._max_slow = max_slow
        self._max_tried = max_tried
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []
        self._lanes = PartConcurrency(sent_bytes)
        self._beginning: list[tuple[float, int]] = []  # transfers about to be added: monotonic seconds, owner
        self._takes = 0
        self.in_flight = 0  #: parts that workers hold
        self.limit = OPEN_TRANSFERS  #: how many may be under way, where each is another owner's
        self._owners_taken: dict[int, int] = {}  # like Transfer.taken; only owners that have a transfer
        self._aside: dict[str, int] = {}  # files that wait until a transfer may begin, with their owners
        self._owners_aside: Counter[int] = Counter()

    def add(self, transfer: Transfer) -> None:
        transfer.slow = self._slow.holds(transfer.item.path)
        with self._lock:
            self._transfers.append(transfer)

    def begin(self, owner: int) -> tuple[float, int] | None:
        """A token if one more transfer of this owner may begin; `begun` has to follow then, even without `add`."""
        with self._lock:
            if not self._may_begin(owner):
                return None
            token = time.monotonic(), owner
            self._beginning.append(token)
            return token

    def begun(self, token: tuple[float, int]) -> None:
        with self._lock:
            self._beginning.remove(token)

    def put_aside(self, path: str, owner: int) -> None:
        """The file waits in the inbox until `waiting` is 0; `taken_up` has to follow when a worker takes it."""
        with self._lock:
            self._aside[path] = owner
            self._owners_aside[owner] += 1

    def taken_up(self, path: str) -> None:
        with self._lock:
            owner = self._aside.pop(path, None)
            if owner is not None:
                self._owners_aside -= Counter({owner: 1})  # drops what is 0

    def take(self) -> PartItem | None:
        """A part, or the completion, of the file whose turn it is."""
        now = time.monotonic()
        with self._lock:
            transfer = self._next(now)
            if transfer is None:
                return None
            transfer.in_flight += 1
            self.in_flight += 1
            self._takes += 1
            transfer.taken = self._owners_taken[transfer.owner] = self._takes
            part = PartItem(transfer, transfer.pending.popleft())
            if part.number != COMPLETE and not transfer.slow:
                self._lanes.enter(part, now)
            return part

    def next_in_s(self) -> float | None:
        """After how long to ask again whether a part or a file put aside can be taken (0: a part can); None: never."""
        now = time.monotonic()
        with self._lock:
            if self._next(now) is not None:
                return 0.0
            waits = any(transfer.pending and not transfer.slow for transfer in self._transfers)
            dues = [self._lanes.open_in_s(now)] if waits else []
            if self._aside:
                slow_in_s = (since + SLOW_BEGIN_S - now for since, _ in self._beginning)
                dues += [due_s for due_s in slow_in_s if due_s > 0]
            return min(dues, default=None)

    def put_back(self, item: PartItem) -> None:
        """Unsent, or to be sent again. The caller still holds it, until `release`."""
        with self._lock:
            if not item.transfer.over:
                item.transfer.pending.appendleft(item.number)

    def give_back(self, item: PartItem) -> bool:
        """Unsent, and the worker lets go of it; False, and it does not, if the file was given up: end it then."""
        with self._lock:
            if item.transfer.over:
                return False
            item.transfer.pending.appendleft(item.number)
            self._lanes.leave(item)
            item.transfer.in_flight -= 1
            self.in_flight -= 1
            return True

    def done(self, item: PartItem, part: Part) -> None:
        """S3 has confirmed this part; with the last one the completion can be taken."""
        transfer = item.transfer
        with self._lock:
            transfer.parts[item.number] = part
            if len(transfer.parts) == transfer.count and not transfer.over:
                transfer.pending.append(COMPLETE)

    def stop(self, transfer: Transfer, why: GivenUp | str) -> None:
        """No further part of it goes out. The first reason stays."""
        with self._lock:
            transfer.over = transfer.over or why
            transfer.pending.clear()

    def release(self, item: PartItem) -> bool:
        """The worker is through with this part; True if the transfer is over and nobody else holds a part of it."""
        transfer = item.transfer
        with self._lock:
            self._lanes.leave(item)
            transfer.in_flight -= 1
            self.in_flight -= 1
            if not transfer.over or transfer.in_flight or transfer not in self._transfers:
                return False
            self._transfers.remove(transfer)
            if all(other.owner != transfer.owner for other in self._transfers):
                self._owners_taken.pop(transfer.owner, None)
            return True

    def waiting(self) -> int:
        """How many parts wait for a worker; 0 if a file that was put aside may begin, more if none of those may.

        Parts of slow files do not count: they may wait for long.
        """
        with self._lock:
            if any(self._may_begin(owner) for owner in self._owners_aside):
                return 0
            return sum(len(it.pending) for it in self._transfers if not it.slow) or len(self._aside)

    def transfers(self) -> list[Transfer]:
        with self._lock:
            return list(self._transfers)

    def _may_begin(self, owner: int) -> bool:
        slow = time.monotonic() - SLOW_BEGIN_S
        owners = [owner for since, owner in self._beginning if since > slow]
        owners += [transfer.owner for transfer in self._transfers]
        its = owners.count(owner)
        return its < OPEN_OF_ONE_OWNER and len(owners) < (min(self.limit, OPEN_TRANSFERS) if its else self.limit)

    def _next(self, now: float) -> Transfer | None:
        """The transfer whose turn it is. A completion needs no lane: it has no body, and makes room for another file.

        An owner of whom nothing is under way needs none either: parts of a huge file may take the lanes for minutes.
        Nor does a file of which nothing is under way while the lanes are silent.
        """
        open_now = self._lanes.open_in_s(now) == 0
        silent = self._lanes.silent(now)
        busy = {transfer.owner for transfer in self._transfers if transfer.in_flight}
        tried = sum(transfer.in_flight for transfer in self._transfers if transfer.item.tried)
        slow = sum(transfer.in_flight for transfer in self._transfers if transfer.slow)

        def may_go(transfer: Transfer) -> bool:
            if (transfer.item.tried and tried >= self._max_tried) or (transfer.slow and slow >= self._max_slow):
                return False
            no_lane = transfer.slow or transfer.pending[0] == COMPLETE or transfer.owner not in busy
            return open_now or no_lane or (silent and not transfer.in_flight)

        def poll(transfer: Transfer) -> tuple[bool, int, int]:
            return transfer.pending[0] != COMPLETE, self._owners_taken.get(transfer.owner, 0), transfer.taken

        ready = [transfer for transfer in self._transfers if transfer.pending and may_go(transfer)]
        return min(ready, key=poll, default=None)
