"""The state of each unsent file, in the words of `list`: counted for `status` and the live line, listed for `list`."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from s3spool.control import views
from s3spool.control.status import Files, LargeFile
from s3spool.control.views import Live
from s3spool.daemon.components import Components
from s3spool.daemon.ledger_figures import LedgerFigures
from s3spool.errors import LedgerError
from s3spool.ledger.rows import to_text
from s3spool.queue.settle import SettleReason
from s3spool.upload.large import PartJob

LOOK_S = 0.1  # between two looks of `run --once`
LOOKS = 2  # a file may be between two components at one look
LISTED = 100_000  # more than the inbox holds by default
MEASURED = 500  # files whose sizes are looked up; the sizes of more are estimated from these
_SETTLING = {
    SettleReason.CHANGED: "changed a moment ago: sent when it stays unchanged for watch.settle_s",
    SettleReason.CREATED: "its name appeared a moment ago: sent when it stays unchanged for watch.settle_s",
    SettleReason.BUSY: "open for writing by another process: sent when that process has closed it",
}


class FileStates:
    """Thread-safe."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._speed = Speed()
        self.ledger = LedgerFigures(components.ledger)

    def in_memory(self) -> dict[str, str]:
        """The path and state of each file that is settling, queued or uploading; a path has one state."""
        queued, uploading = self._components.inbox.listing(LISTED)
        states = dict.fromkeys(self._components.settle.paths(LISTED), "settling")
        return states | dict.fromkeys(queued, "queued") | dict.fromkeys(uploading, "uploading")

    def count(self) -> Files:
        """How many files are in each state."""
        ledger, memory = self.ledger.now(), Counter(self.in_memory().values())
        waiting = ledger.waiting - ledger.claimed
        return Files(**memory, waiting=waiting, parked=ledger.parked, uploaded=ledger.uploaded)

    def unsent_bytes(self) -> int:
        """What is left to send; an estimate if there are many files in memory."""
        memory = [path for path in self.in_memory() if not self._components.slow.holds(path)]
        sizes = []
        for path in memory[:MEASURED]:
            with suppress(OSError):
                identity = self._components.folder.identity_of(path)
                sizes.append(identity.size if identity else 0)
        size = sum(sizes) * len(memory) // max(1, len(sizes))
        left = max(0, size - sum(file.bytes_uploaded for file in self.large_files().values()))
        return left + self.ledger.now().unsent_bytes

    def live(self, path: str) -> Live | None:
        """Where this file is in memory, and why; None: it is not."""
        components = self._components
        state = components.inbox.state_of(path)
        if state == "queued" and components.pause.current:
            return Live(state, "complete, and waits: uploads are paused by hand (`s3spool resume`)")
        if state == "queued" and components.breaker.open:
            return Live(state, "complete, and waits until the paused destination takes files again")
        if state == "queued":
            return Live(state, "complete, and waits for a free worker")
        if state == "uploading":
            return Live(state, "it is sent, or was sent and its receipt is written")
        reason = components.settle.reason_of(path)
        return Live("settling", _SETTLING[reason]) if reason else None

    def row(self, path: str, state: str) -> dict[str, Any]:
        """The row of `list` for a file in memory."""
        row: dict[str, Any] = {"path": to_text(path), "state": state}
        if self._components.slow.holds(path):
            return row  # a look might hang
        with suppress(OSError):
            identity = self._components.folder.identity_of(path)
            if identity is not None:
                row |= {"bytes": identity.size, "age_s": views.age_s(identity.ctime_ns)}
        return row

    def large_files(self) -> dict[str, LargeFile]:
        """The large files under way, by path."""
        components = self._components
        sending: Counter[str] = Counter()
        for job in components.workers.jobs():
            if isinstance(job, PartJob):
                sending[job.item.path] += job.position
        now = time.monotonic()
        return self._speed.of(
            [(path, min(size, done + sending[path]), size) for path, done, size in components.large.progress()], now
        )

    def oldest_unsent_s(self) -> float:
        """For how many seconds the oldest unsent file has been as it is; 0: there is none.

        The ctime counts, as a copied file keeps its mtime.
        """
        waiting_ns = self.ledger.now().oldest_ns
        found = [waiting_ns] if waiting_ns else []
        for path in self._components.inbox.oldest():
            if self._components.slow.holds(path):
                continue  # a look might hang, and with it the supervisor
            with suppress(OSError):
                identity = self._components.folder.identity_of(path)
                if identity is not None:
                    found.append(identity.ctime_ns)
        return views.age_s(min(found)) if found else 0.0

    def progress(self) -> dict[str, Any]:
        """The figures that `wait` and `run --once` need."""
        components = self._components
        # In the order of the flow: a file on its way cannot be missed between two looks.
        finished = components.scan.mounts.ended(components.scan.finished)
        settling = components.settle.pending()
        queued, in_flight = components.inbox.counts()
        with components.ledger.reader() as reader:
            elsewhere = reader.claimed_elsewhere()
            counts = reader.counts()
        return {
            "scan": finished,
            "left": settling + queued + in_flight + elsewhere + counts["waiting"],
            "parked": counts["parked"],
            # If the folder is gone, its files are unknown, and a scan of it ends at once.
            "folder_there": components.folder.still_there(),
        }

    def untried(self) -> tuple[bool, int]:
        """Whether files wait for their first verdict, and how many could not be sent, for `run --once`."""
        components = self._components
        scan = components.scan
        # A scan that is under way or wanted may find more. One for removals finds only sent files.
        scanned = scan.mounts.ended(scan.finished) == scan.started > 0 and not scan.reasons - {"removals"}
        if not scanned or not components.folder.still_there():
            return True, 0
        if components.settle.pending() or any(components.inbox.counts()):
            return True, 0
        with components.ledger.reader() as reader:
            counts = reader.counts()
            return bool(reader.claimed_elsewhere() or reader.waiting_without_proof()), counts["waiting"] + counts[
                "parked"
            ]


class OnceDone:
    """The end of `s3spool run --once`: each file was sent, or failed by its own fault. Only the supervisor calls it."""

    def __init__(self, files: FileStates) -> None:
        self._files = files
        self._quiet_looks = 0
        self.left = 0  #: files that were not sent

    def look(self) -> bool:
        """Whether two looks in a row found nothing to do after the first scan."""
        try:
            trying, self.left = self._files.untried()
        except (LedgerError, OSError):
            trying = True
        self._quiet_looks = 0 if trying else self._quiet_looks + 1
        return self._quiet_looks >= LOOKS


class Speed:
    """The speed of each large file since it was seen first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: dict[str, tuple[float, int]] = {}

    def of(self, files: list[tuple[str, int, int]], now: float) -> dict[str, LargeFile]:
        """`files`: path, bytes sent, bytes; `now`: monotonic seconds."""
        with self._lock:
            self._first = {path: self._first.get(path, (now, done)) for path, done, _ in files}
            first = self._first
        return {path: _large_file(path, done, size, now, *first[path]) for path, done, size in files}


def _large_file(path: str, done: int, size: int, now: float, since: float, before: int) -> LargeFile:
    rate = max(0, done - before) / (now - since) if now > since else 0.0
    return LargeFile(
        path=to_text(path),
        bytes=size,
        bytes_uploaded=done,
        bytes_per_s=round(rate, 1),
        left_s=round((size - done) / rate, 1) if rate else None,
    )
