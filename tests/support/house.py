"""The pipeline without its daemon: every room real, wired as in wiring.py, in front of a bucket in memory."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3spool.discovery.deduplicate import Deduplicator, SettleThread
from s3spool.discovery.scan import Scan
from s3spool.failure.breaker import CircuitBreaker
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.failure.retry_policy import Policy
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Identity
from s3spool.ledger.store import Ledger
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.settle import Settle
from s3spool.upload.cpu_affinity import CpuAffinity
from s3spool.upload.large import LargeUploads
from s3spool.upload.post_upload import PostUpload
from s3spool.upload.result import ResultHandler
from s3spool.upload.retry import RetryThread
from s3spool.upload.small import SmallUploads
from s3spool.upload.stats import Stats
from s3spool.upload.workers import Workers
from support.memory_bucket import MemoryBucket
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3spool.ledger.reader import Known


def a_breaker(*, initial_s: float, max_s: float) -> CircuitBreaker:
    """With a limiter of its own."""
    return CircuitBreaker("memory", initial_s=initial_s, max_s=max_s, limiter=ConcurrencyLimiter("memory", max_s=max_s))


class House:
    """`start` runs what a test names; `close` ends all that runs."""

    def __init__(
        self,
        directory: Path,
        *,
        action: str = "keep",
        settle_s: float = 0.0,
        size: int = 1000,
        workers: int = 4,
        rescan_s: float = 3600.0,
        recursive: bool = True,
        names: FileFilter | None = None,
        policy: Policy | None = None,
        breaker: CircuitBreaker | None = None,
        threshold: int = 2**30,
        part_size: int = 2**20,
        sent_bytes: Callable[[], int] = lambda: 0,
        carries: bool = True,
    ) -> None:
        self.root = directory / "spool"
        self.archive = directory / "archive"
        self.root.mkdir(exist_ok=True)
        self.folder = Folder(self.root)
        self.bucket = MemoryBucket()
        self.bucket.carries = carries
        self.ledger = Ledger(directory / "ledger.sqlite3", destination="memory")
        self.breaker = breaker or a_breaker(initial_s=0.01, max_s=0.02)
        self.inbox = Inbox(size, workers, self.breaker, sent_bytes=sent_bytes)
        self.settle = Settle(settle_s, size)
        self.stats = Stats()
        self.rescans: list[str] = []
        self.after = PostUpload(
            self.folder,
            self.inbox,
            self.settle,
            self.stats,
            action=action,
            archive=self.archive,
            rescan=self.rescans.append,
        )
        self.deduplicator = Deduplicator(self.folder, self.ledger, self.inbox, self.after.finish)
        self.scan = Scan(
            self.folder,
            names or FileFilter(["*"], [".*"]),
            recursive=recursive,
            settle_s=settle_s,
            rescan_s=rescan_s,
            settle=self.settle,
            inbox=self.inbox,
            deduplicator=self.deduplicator,
            ledger=self.ledger,
        )
        self.settle_thread = SettleThread(self.settle, self.deduplicator, self.ledger, self.inbox, self.rescans.append)
        self.retry = RetryThread(self.ledger, self.inbox, policy or Policy(initial_s=0.01, max_s=0.02, max_attempts=0))
        self.results = ResultHandler(
            self.bucket,
            self.ledger,
            self.inbox,
            self.settle,
            self.breaker,
            self.after,
            self.retry,
            self.stats,
            rescan=self.rescans.append,
        )
        self.large = LargeUploads(
            self.folder,
            self.bucket.parts,
            self.ledger,
            self.inbox,
            self.breaker,
            self.results,
            threshold=threshold,
            part_size=part_size,
            limit=workers,
        )
        self.upload = SmallUploads(
            self.folder, self.bucket, self.inbox, self.breaker, self.results, self.large, settle_s=settle_s
        )
        self.workers = Workers(workers, self.bucket, self.inbox, self.upload, self.breaker, self.stats, CpuAffinity())
        self._running: list[Any] = []
        self._sigio = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as the daemon does: a broken lease sends it

    def start(self, *components: Any) -> None:
        """Without names: all but the scan."""
        for room in components or (self.ledger, self.after, self.workers, self.retry, self.settle_thread):
            room.start()
            self._running.append(room)

    def close(self) -> None:
        """Safe to call twice."""
        running, self._running = self._running, []
        self.settle.close()
        self.inbox.close()
        self.breaker.limiter.close()
        if self.scan in running:
            self.scan.close(10)
        if self.workers in running:
            assert self.workers.close(lambda: 10)
        if self.retry in running:
            self.retry.close(10)
        if self.settle_thread in running:
            self.settle_thread.join(10)
        if self.ledger in running:
            self.ledger.close(10)
        if self.after in running:
            self.after.close(10)
        assert not [room for room in running if room is not self.workers and room.alive()]
        if self._sigio is not None:
            signal.signal(signal.SIGIO, self._sigio)
            self._sigio = None
            self.folder.close()

    def drop(self, path: str, content: bytes = b"content", *, mtime_ns: int | None = 10**18) -> Path:
        """A file, old enough to be settled unless `mtime_ns` is None."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if mtime_ns is not None:
            os.utime(file, ns=(mtime_ns, mtime_ns))
        return file

    def offer(self, *paths: str) -> None:
        self.inbox.offer([Item(path) for path in paths])

    def identity(self, path: str) -> Identity:
        return Identity.of((self.root / path).lstat())

    def known(self, path: str) -> Known | None:
        with Reader(self.ledger.path) as reader:
            return reader.known([path]).get(path)

    def open_files(self) -> list[str]:
        """Files of the spool folder that are open in this process."""
        links = []
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(str(entry.readlink()))
        return [link for link in links if link.startswith(f"{self.root}/")]

    def quiet(self) -> None:
        """Wait until nothing is queued, settling or in flight."""
        eventually(lambda: self.inbox.counts() == (0, 0) and not len(self.settle))
