"""The daemon's components without the daemon: built as in production, in front of a bucket in memory."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

from s3spool.config.schema import (
    AfterConfig,
    Config,
    DestinationConfig,
    LogConfig,
    RetryConfig,
    ServiceConfig,
    StateConfig,
    UploadConfig,
    WatchConfig,
)
from s3spool.daemon.components import Remote, build
from s3spool.failure.breaker import CircuitBreaker
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.ledger.queries import Known
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Identity, Receipt, Retry
from s3spool.ledger.store import Ledger
from s3spool.queue.item import Item
from s3spool.s3.bandwidth import BandwidthLimiter
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.store import Store
from support.memory_bucket import MemoryBucket
from support.rows import a_receipt
from support.waiting import eventually

Build = Callable[..., "House"]


def a_breaker(*, initial_s: float, max_s: float) -> CircuitBreaker:
    """With a limiter of its own."""
    return CircuitBreaker("memory", initial_s=initial_s, max_s=max_s, limiter=ConcurrencyLimiter("memory", max_s=max_s))


class House:
    """`start` runs what a test names; `close` ends all that runs."""

    def __init__(
        self,
        directory: Path,
        *,
        action: Any = "keep",
        settle_s: float = 0.0,
        size: int = 1000,
        workers: int = 4,
        rescan_s: float = 3600.0,
        recursive: bool = True,
        probes_s: tuple[float, float] = (0.01, 0.02),
        policy: RetryConfig | None = None,
        threshold: int = 2**30,
        part_size: int = 2**20,
        bandwidth: Any = None,
        blocking: bool = False,
        root: Path | None = None,
        ledger: str = "",
    ) -> None:
        """`probes_s`: the shortest and the longest time between two rounds of the circuit breaker's probes.

        `root` and `ledger`: a folder and the URL of a ledger that several houses share.
        """
        self.root = root or directory / "spool"
        self.archive = directory / "archive"
        self.root.mkdir(exist_ok=True)
        self.bucket = MemoryBucket()
        config = Config(
            watch=WatchConfig(
                directory=self.root, recursive=recursive, exclude=(".*",), settle_s=settle_s, rescan_s=rescan_s
            ),
            destination=DestinationConfig(bucket="memory"),
            upload=UploadConfig(workers=workers, queue_size=size, multipart_threshold=threshold, part_size=part_size),
            after=AfterConfig(action=action, archive_directory=self.archive),
            retry=RetryConfig(initial_s=probes_s[0], max_s=probes_s[1]),
            state=StateConfig(directory=directory, ledger=ledger),
            service=ServiceConfig(control_socket=directory / "control.sock"),
            log=LogConfig(),
        )
        store = cast("Store", self.bucket)
        self.components = build(
            config, remote=Remote(store, cast("MultipartStore", self.bucket.parts), bandwidth or BandwidthLimiter())
        )
        self.components.retry.apply(policy or RetryConfig(initial_s=0.01, max_s=0.02, max_attempts=0))
        self.folder = self.components.folder
        self.scan = self.components.scan
        self.settle = self.components.settle
        self.deduplicator = self.components.deduplicator
        self.settle_thread = self.components.settle_thread
        self.inbox = self.components.inbox
        self.retry = self.components.retry
        self.breaker = self.components.breaker
        self.workers = self.components.workers
        self.upload = self.components.upload
        if blocking:
            self.workers._limited = lambda: True
        self.large = self.components.large
        self.results = self.components.results
        self.ledger = cast("Ledger", self.components.ledger)
        self.after = self.components.after
        self.stats = self.components.stats
        self._running: list[Any] = []
        self._sigio = signal.signal(signal.SIGIO, signal.SIG_IGN)  # as the daemon does: a broken lease sends it

    @property
    def rescans(self) -> list[str]:
        """The reasons of the scans that are due; a scan that runs takes them."""
        return sorted(self.scan.reasons)

    def start(self, *components: Any) -> Self:
        """Without names: all but the scan."""
        for component in components or (self.ledger, self.after, self.workers, self.retry, self.settle_thread):
            component.start()
            self._running.append(component)
        return self

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
        assert not [each for each in running if each is not self.workers and each.alive()]
        if self._sigio is not None:
            signal.signal(signal.SIGIO, self._sigio)
            self._sigio = None
            if self.ledger not in running:
                self.ledger.start()
                self.ledger.close(10)  # the thread closes the connection
            self.folder.close()
            self.components.lock.release()

    def drop(self, path: str, content: bytes = b"content", *, mtime_ns: int | None = 10**18) -> Path:
        """A file, old enough to be settled unless `mtime_ns` is None."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if mtime_ns is not None:
            os.utime(file, ns=(mtime_ns, mtime_ns))
        return file

    def drop_many(self, count: int) -> list[str]:
        return [self.drop(f"{number:03d}").name for number in range(count)]

    def offer(self, *paths: str) -> None:
        self.inbox.offer([Item(path) for path in paths])

    def identity(self, path: str) -> Identity:
        return Identity.of((self.root / path).lstat())

    def known(self, path: str) -> Known | None:
        with Reader(self.ledger.path) as reader:
            return reader.known([path]).get(path)

    def receipt_of(self, path: str) -> Receipt:
        known = self.known(path)
        assert known is not None
        assert known.receipt is not None
        return known.receipt

    def retry_of(self, path: str) -> Retry:
        known = self.known(path)
        assert known is not None
        assert known.retry is not None
        return known.retry

    def record(self, *rows: Receipt | Retry) -> None:
        """Durable when it returns; the ledger has to run."""
        for row in rows:
            if isinstance(row, Receipt):
                self.ledger.record_receipt(row)
            else:
                self.ledger.record_retry(row)
        assert self.ledger.flush(10)

    def receipt_for(self, path: str, **fields: Any) -> Receipt:
        """A receipt of the file as it is now."""
        here = {"identity": self.identity(path), "destination": self.ledger.destination}
        return a_receipt(path, **(here | fields))

    def wait_sent(self, *paths: str) -> None:
        eventually(lambda: set(paths) <= set(self.bucket.objects), message=str(paths))
        self.quiet()

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
