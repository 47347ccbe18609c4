"""Large files on their way: which of their parts wait for a worker, and which are done."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from s3spool.content import Content
from s3spool.errors import UploadError
from s3spool.ledger.rows import Multipart, Part
from s3spool.pipeline.item import Item

COMPLETE = 0  # the number of the last act: parts count from 1


@dataclass(eq=False, slots=True)
class Transfer:
    """One large file. Its descriptor stays open from the first part to the last act."""

    item: Item
    content: Content
    upload: Multipart
    count: int  # how many parts it has
    read_at: float  # Unix seconds
    started: float  # monotonic seconds
    parts: dict[int, Part]  # confirmed, by number
    pending: deque[int]
    in_flight: int = 0
    failures: dict[int, int] = field(default_factory=dict)  # by part number
    over: UploadError | str = ""  # why no further part is sent: an error, or what happened to the file

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
    """The transfers under way, oldest first. Thread-safe; nothing blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transfers: list[Transfer] = []

    def add(self, transfer: Transfer) -> None:
        with self._lock:
            self._transfers.append(transfer)

    def take(self) -> PartItem | None:
        """A part of the oldest file that has one left: what was begun first is whole first."""
        with self._lock:
            for transfer in self._transfers:
                if transfer.pending:
                    transfer.in_flight += 1
                    return PartItem(transfer, transfer.pending.popleft())
            return None

    def put_back(self, item: PartItem) -> None:
        """Unsent, or to be sent again. The caller still holds it, until `release`."""
        with self._lock:
            if not item.transfer.over:
                item.transfer.pending.appendleft(item.number)

    def done(self, item: PartItem, part: Part) -> None:
        """S3 has confirmed this part; with the last one the completion can be taken."""
        transfer = item.transfer
        with self._lock:
            transfer.parts[item.number] = part
            if len(transfer.parts) == transfer.count and not transfer.over:
                transfer.pending.append(COMPLETE)

    def stop(self, transfer: Transfer, why: UploadError | str) -> None:
        """No further part of it goes out. The first reason stays."""
        with self._lock:
            transfer.over = transfer.over or why
            transfer.pending.clear()

    def release(self, item: PartItem) -> bool:
        """The worker is through with this part; True if the transfer is over and nobody else holds a part of it."""
        transfer = item.transfer
        with self._lock:
            transfer.in_flight -= 1
            if not transfer.over or transfer.in_flight or transfer not in self._transfers:
                return False
            self._transfers.remove(transfer)
            return True

    def waiting(self) -> int:
        """How many parts wait for a worker."""
        with self._lock:
            return sum(len(transfer.pending) for transfer in self._transfers)

    def transfers(self) -> list[Transfer]:
        with self._lock:
            return list(self._transfers)
