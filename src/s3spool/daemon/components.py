"""Every room of the daemon, built and handed to those that need it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from s3spool.config.loader import Config
from s3spool.daemon.liveness import HEARTBEAT_TIMEOUT_S
from s3spool.daemon.operator_pause import OperatorPause
from s3spool.discovery.deduplicate import Deduplicator, SettleThread
from s3spool.discovery.scan import Scan
from s3spool.errors import ConfigError
from s3spool.failure.breaker import CircuitBreaker
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.failure.retry_policy import Policy
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.ledger.database import DirectoryLock
from s3spool.ledger.store import Ledger
from s3spool.queue.inbox import Inbox
from s3spool.queue.parts import OPEN_TRANSFERS
from s3spool.queue.settle import Settle
from s3spool.s3.bandwidth import BandwidthLimiter
from s3spool.s3.client import Connection
from s3spool.s3.keys import too_deep
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.options import ObjectOptions
from s3spool.s3.store import Store
from s3spool.upload.cpu_affinity import CpuAffinity
from s3spool.upload.event_hook import EventHook
from s3spool.upload.large import LargeUploads
from s3spool.upload.post_upload import PostUpload
from s3spool.upload.receipt_marks import ReceiptMarks
from s3spool.upload.result import ResultHandler
from s3spool.upload.retry import RetryThread
from s3spool.upload.small import SmallUploads
from s3spool.upload.stats import Stats
from s3spool.upload.workers import Workers


class Components:
    """What works together on one spool folder and one bucket. Nothing runs yet; `daemon.py` says in which order."""

    def __init__(self, config: Config, workers: int = 0, *, on_damage: Callable[[], None] = lambda: None) -> None:
        """Take the state directory's lock and build. Raises ConfigError, LedgerError, AlreadyRunningError, OSError.

        `on_damage` is called on the ledger's thread when the ledger cannot be used any more.
        """
        workers = workers or config.upload.workers
        self.stats = Stats()
        self.lock = DirectoryLock(config.state.directory)
        self.bandwidth = BandwidthLimiter(config.upload.max_bandwidth)
        self.store = store_of(config, self.bandwidth)
        self.ledger = Ledger(ledger_path(config), destination=self.store.name, on_damage=on_damage)
        self.folder = _folder(config)
        self.names = filter_of(config)
        retry = config.retry
        name = f"s3://{config.destination.bucket}/{config.destination.prefix}"
        self.limiter = ConcurrencyLimiter(name, max_s=retry.max_s)
        self.breaker = CircuitBreaker(name, initial_s=retry.initial_s, max_s=retry.max_s, limiter=self.limiter)
        self.slow = SlowDirectories()
        self.inbox = Inbox(
            config.upload.queue_size,
            workers,
            self.breaker,
            sent_bytes=lambda: self.bandwidth.granted,
            slow=self.slow,
        )
        self.hook = EventHook(config.after.exec, config.destination.bucket, self.breaker)
        self.pause = OperatorPause(self.ledger, self.inbox, self.hook.paused)
        self.settle = Settle(config.watch.settle_s, config.upload.queue_size)
        policy = Policy(initial_s=retry.initial_s, max_s=retry.max_s, max_attempts=retry.max_attempts)
        self.after = PostUpload(
            self.folder,
            self.inbox,
            self.settle,
            self.stats,
            action=config.after.action,
            archive=config.after.archive_directory,
            rescan=lambda reason: self.scan.want(reason),  # noqa: PLW0108 - there is no scan yet
            slow=self.slow,
            marks=ReceiptMarks(config.after.receipt, self.folder, self.ledger, config.destination.bucket),
            on_uploaded=self.hook.uploaded,
        )
        self.deduplicator = Deduplicator(self.folder, self.ledger, self.inbox, self.after.finish, self.slow)
        self.scan = Scan(
            self.folder,
            self.names,
            recursive=config.watch.recursive,
            settle_s=config.watch.settle_s,
            rescan_s=config.watch.rescan_s,
            settle=self.settle,
            inbox=self.inbox,
            deduplicator=self.deduplicator,
            ledger=self.ledger,
            slow=self.slow,
        )
        self.settle_thread = SettleThread(self.settle, self.deduplicator, self.ledger, self.inbox, self.scan.want)
        self.retry = RetryThread(self.ledger, self.inbox, policy)
        results = ResultHandler(
            self.store,
            self.ledger,
            self.inbox,
            self.settle,
            self.breaker,
            self.after,
            self.retry,
            self.stats,
            rescan=self.scan.want,
            on_parked=self.hook.parked,
        )
        self.large = LargeUploads(
            self.folder,
            MultipartStore(self.store),
            self.ledger,
            self.inbox,
            self.breaker,
            results,
            threshold=config.upload.multipart_threshold,
            part_size=config.upload.part_size,
            limit=max(workers, OPEN_TRANSFERS),
        )
        self.upload = SmallUploads(
            self.folder,
            self.store,
            self.inbox,
            self.breaker,
            results,
            self.large,
            settle_s=config.watch.settle_s,
            max_size=config.watch.max_size,
            slow=self.slow,
        )
        self.cpu_affinity = CpuAffinity()
        self.workers = Workers(
            workers,
            self.store,
            self.inbox,
            self.upload,
            self.breaker,
            self.stats,
            self.cpu_affinity,
            limited=lambda: self.bandwidth.limited,
            hang_timeout_s=HEARTBEAT_TIMEOUT_S + config.upload.timeout_s,
            slow=self.slow,
        )


def ledger_path(config: Config) -> Path:
    return config.state.directory / "ledger.sqlite3"


def filter_of(config: Config) -> FileFilter:
    return FileFilter(
        config.watch.include, config.watch.exclude, too_deep=partial(too_deep, prefix=config.destination.prefix)
    )


def connection_of(config: Config) -> Connection:
    destination = config.destination
    return Connection(
        destination.bucket,
        destination.endpoint_url,
        destination.region,
        destination.profile,
        destination.addressing_style,
        destination.ca_bundle,
        config.upload.timeout_s,
    )


def store_of(config: Config, bandwidth: BandwidthLimiter | None = None) -> Store:
    """The bucket of a configuration. Raises ConfigError."""
    destination = config.destination
    return Store(
        connection_of(config),
        ObjectOptions(
            destination.prefix,
            destination.storage_class,
            destination.sse,
            destination.kms_key_id,
            destination.acl,
            destination.expected_bucket_owner,
            destination.overwrite,
            destination.checksum,
            destination.tags,
            destination.metadata,
        ),
        bandwidth=bandwidth,
    )


def _folder(config: Config) -> Folder:
    try:
        return Folder(config.watch.directory)
    except OSError as exc:
        raise ConfigError("watch.directory", str(config.watch.directory), f"cannot be opened: {exc.strerror}") from exc
