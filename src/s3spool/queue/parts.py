"""The large files under way: which of their parts wait for a worker, and which are done."""

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

COMPLETE = 0  # the number of the completion request; parts count from 1
OPEN_TRANSFERS = 24  # a transfer with 10,000 confirmed parts takes 4 MB
OPEN_OF_ONE_OWNER = 12
SLOW_BEGIN_S = 1.0  # a transfer that S3 has not begun after so long holds up no other one


class GivenUp(NamedTuple):
    """The failure of a large file, and whose fault it is."""

    error: UploadError
    fault: Fault | None  #: None: descriptors or memory are scarce, and no attempt is counted


@dataclass(eq=False, slots=True)
class Transfer:
    """One large file. Its descriptor stays open until the transfer ends."""

    item: Item
    content: Content
    upload: Multipart
    count: int  # how many parts it has
    times: Times  # when its first attempt began
    parts: dict[int, Part]  # confirmed, by number
    pending: deque[int]
    owner: int = 0  # user ID of the file
    taken: int = 0  # `PartQueue._takes` when its last part was taken
    in_flight: int = 0
    failures: dict[int, int] = field(default_factory=dict)  # by part number
    retried_immediately: set[int] = field(default_factory=set)  # part numbers; see UploadError
    slow: bool = False  # in a slow directory: such parts have their own limit
    over: GivenUp | str = ""  # why no further part is sent: an error, or what happened to the file

    @property
    def bytes_done(self) -> int:
        return sum(part.size for part in list(self.parts.values()))


class PartItem(NamedTuple):
    """One part, or the completion, that a worker holds."""

    transfer: Transfer
    number: int

    @property
    def path(self) -> str:
        return self.transfer.item.path


class PartQueue:
    """The transfers under way. Thread-safe; nothing blocks.

    Parts are taken round robin: by owner, then by file of this owner. Neither a huge file nor a user with many large
    files delays other large files.
    """

    def __init__(
        self,
        sent_bytes: Callable[[], int],
        max_tried: int,
        slow: SlowDirectories | None = None,
        max_slow: int = 1,
        *,
        limit: int = OPEN_TRANSFERS,
    ) -> None:
        """`sent_bytes` returns how much all workers have sent so far.

        `max_tried`: workers for files that have failed; `max_slow`: parts of slow files at a time; `limit`: transfers
        under way if each has another owner (each holds a descriptor).
        """
        self._slow = slow or SlowDirectories()
        self._max_slow = max_slow
        self._max_tried = max_tried
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []
        self._concurrency = PartConcurrency(sent_bytes)
        self._reservations: list[tuple[float, int]] = []  # monotonic seconds, owner
        self._takes = 0
        self.in_flight = 0  #: parts that workers hold
        self.bytes_done = 0  #: of all parts that S3 has confirmed
        self._limit = limit
        self._owners_taken: dict[int, int] = {}  # like Transfer.taken; only owners that have a transfer
        self._deferred: dict[str, int] = {}  # path -> owner of a file that waits for a reservation
        self._deferred_owners: Counter[int] = Counter()

    def add(self, transfer: Transfer) -> None:
        transfer.slow = self._slow.holds(transfer.item.path)
        with self._lock:
            self._transfers.append(transfer)

    def reserve(self, owner: int) -> tuple[float, int] | None:
        """Reserve room for a transfer of this owner; the caller has to give the reservation to `end_reservation`."""
        with self._lock:
            if not self._may_begin(owner):
                return None
            reservation = time.monotonic(), owner
            self._reservations.append(reservation)
            return reservation

    def end_reservation(self, reservation: tuple[float, int]) -> None:
        with self._lock:
            self._reservations.remove(reservation)

    def defer(self, path: str, owner: int) -> None:
        """The file waits in the inbox while `waiting` is not 0; then a worker calls `deferred_taken`."""
        with self._lock:
            self._deferred[path] = owner
            self._deferred_owners[owner] += 1

    def deferred_taken(self, path: str) -> None:
        with self._lock:
            owner = self._deferred.pop(path, None)
            if owner is not None:
                self._deferred_owners -= Counter({owner: 1})  # removes an owner without deferred files

    def take(self) -> PartItem | None:
        """Take a part, or the completion, of the next file in turn."""
        if not self._transfers:
            return None
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
                self._concurrency.enter(part, now)
            return part

    def next_in_s(self) -> float | None:
        """Seconds until a part (0: now) or a deferred file may be taken; None: as long as nothing else happens."""
        now = time.monotonic()
        with self._lock:
            if self._next(now) is not None:
                return 0.0
            waits = any(transfer.pending and not transfer.slow for transfer in self._transfers)
            dues = [self._concurrency.next_slot_in_s(now)] if waits else []
            if self._deferred:
                slow_in_s = (since + SLOW_BEGIN_S - now for since, _ in self._reservations)
                dues += [due_s for due_s in slow_in_s if due_s > 0]
            return min(dues, default=None)

    def requeue(self, item: PartItem) -> None:
        """The part will be sent again. The caller still holds it until `release`."""
        with self._lock:
            if not item.transfer.over:
                item.transfer.pending.appendleft(item.number)

    def return_unsent(self, item: PartItem) -> bool:
        """Queue and release an unsent part; False if its transfer has stopped: the caller still holds the part."""
        with self._lock:
            if item.transfer.over:
                return False
            item.transfer.pending.appendleft(item.number)
            self._concurrency.leave(item)
            item.transfer.in_flight -= 1
            self.in_flight -= 1
            return True

    def done(self, item: PartItem, part: Part) -> None:
        """S3 has confirmed this part; after the last one the completion can be taken."""
        transfer = item.transfer
        with self._lock:
            transfer.parts[item.number] = part
            self.bytes_done += part.size
            if len(transfer.parts) == transfer.count and not transfer.over:
                transfer.pending.append(COMPLETE)

    def stop_transfer(self, transfer: Transfer, why: GivenUp | str) -> None:
        """Send no further part. The first reason is kept."""
        with self._lock:
            transfer.over = transfer.over or why
            transfer.pending.clear()

    def release(self, item: PartItem) -> bool:
        """The worker has finished with this part; True if the transfer is over and no worker holds a part of it."""
        transfer = item.transfer
        with self._lock:
            self._concurrency.leave(item)
            transfer.in_flight -= 1
            self.in_flight -= 1
            if not transfer.over or transfer.in_flight or transfer not in self._transfers:
                return False
            self._transfers.remove(transfer)
            if all(other.owner != transfer.owner for other in self._transfers):
                self._owners_taken.pop(transfer.owner, None)
            return True

    def waiting(self) -> int:
        """How many parts, or deferred files, wait; 0 if a deferred file may begin. Slow files do not count."""
        with self._lock:
            if any(self._may_begin(owner) for owner in self._deferred_owners):
                return 0
            return sum(len(it.pending) for it in self._transfers if not it.slow) or len(self._deferred)

    def pending(self) -> bool:
        """Whether any part waits, of slow files also."""
        with self._lock:
            return any(transfer.pending for transfer in self._transfers)

    def transfers(self) -> list[Transfer]:
        with self._lock:
            return list(self._transfers)

    def _may_begin(self, owner: int) -> bool:
        slow = time.monotonic() - SLOW_BEGIN_S
        owners = [owner for since, owner in self._reservations if since > slow]
        owners += [transfer.owner for transfer in self._transfers]
        its = owners.count(owner)
        return its < OPEN_OF_ONE_OWNER and len(owners) < (min(self._limit, OPEN_TRANSFERS) if its else self._limit)

    def _next(self, now: float) -> Transfer | None:
        """The next transfer in turn.

        These need no slot of the part concurrency: a completion, because it has no body; the first part of an owner,
        because parts of a huge file may hold all slots for minutes; and, while all parts stall, the first of a file.
        """
        open_now = self._concurrency.next_slot_in_s(now) == 0
        stalled = self._concurrency.stalled(now)
        busy = {transfer.owner for transfer in self._transfers if transfer.in_flight}
        for transfer in self._transfers:
            transfer.slow = transfer.slow and self._slow.holds(transfer.item.path)  # it may be fast again
        tried = sum(transfer.in_flight for transfer in self._transfers if transfer.item.tried)
        slow = sum(transfer.in_flight for transfer in self._transfers if transfer.slow)

        def may_go(transfer: Transfer) -> bool:
            if (transfer.item.tried and tried >= self._max_tried) or (transfer.slow and slow >= self._max_slow):
                return False
            no_slot = transfer.slow or transfer.pending[0] == COMPLETE or transfer.owner not in busy
            return open_now or no_slot or (stalled and not transfer.in_flight)

        def turn(transfer: Transfer) -> tuple[bool, int, int]:
            return transfer.pending[0] != COMPLETE, self._owners_taken.get(transfer.owner, 0), transfer.taken

        ready = [transfer for transfer in self._transfers if transfer.pending and may_go(transfer)]
        return min(ready, key=turn, default=None)
