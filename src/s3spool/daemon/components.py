"""The composition root: builds all parts of the daemon once, and hands each of them what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from s3spool.config.schema import Config
from s3spool.daemon.operator_pause import OperatorPause
from s3spool.daemon.other_nodes import OtherNodes
from s3spool.discovery.deduplicate import Deduplicator, SettleThread
from s3spool.discovery.scan import Scan
from s3spool.errors import ConfigError
from s3spool.failure.breaker import CircuitBreaker
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.folder.marker import FolderMarker
from s3spool.folder.rules import FileRules
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.heartbeat import HEARTBEAT_TIMEOUT_S
from s3spool.ledger.database import DirectoryLock
from s3spool.ledger.opening import open_ledger
from s3spool.ledger.protocol import LedgerBackend
from s3spool.queue.inbox import Inbox
from s3spool.queue.settle import Settle
from s3spool.s3.bandwidth import BandwidthLimiter
from s3spool.s3.keys import too_deep
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.object_rules import ObjectRules
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

CLAIMED_PER_WORKER = 10


class Remote(NamedTuple):
    """The bucket: whole objects, objects in parts, and the bandwidth limit of both."""

    store: Store
    parts: MultipartStore
    bandwidth: BandwidthLimiter


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The parts of one daemon, in the order of the flow. `build` makes them; the supervisor starts and stops them."""

    lock: DirectoryLock
    folder: Folder
    marker: FolderMarker
    slow: SlowDirectories
    scan: Scan
    settle: Settle
    deduplicator: Deduplicator
    settle_thread: SettleThread
    inbox: Inbox
    pause: OperatorPause
    retry: RetryThread
    breaker: CircuitBreaker
    limiter: ConcurrencyLimiter
    workers: Workers
    cpu_affinity: CpuAffinity
    upload: SmallUploads
    large: LargeUploads
    bandwidth: BandwidthLimiter
    store: Store
    results: ResultHandler
    ledger: LedgerBackend
    after: PostUpload
    hook: EventHook
    stats: Stats

    def apply(self, config: Config) -> None:
        """Hand on the settings that can change while the daemon runs."""
        self.scan.apply(filter_of(config))
        self.retry.apply(config.retry)
        self.breaker.apply(initial_s=config.retry.initial_s, max_s=config.retry.max_s)
        self.limiter.apply(max_s=config.retry.max_s)
        self.bandwidth.set_rate(config.upload.max_bandwidth)
        self.after.apply(config.after.action, config.after.archive_directory, rule_action_of(config))
        self.store.apply(rules_of(config))


def build(config: Config, *, remote: Remote | None = None, workers: int = 0) -> Components:
    """Take the state directory's lock and build; no thread starts. A part is built after the parts that it calls.

    `remote`: the configured bucket if None; `workers`: as configured if 0. Raises ConfigError, LedgerError,
    AlreadyRunningError, OSError.
    """
    watch, retry, after = config.watch, config.retry, config.after
    workers = workers or config.upload.workers
    lock = DirectoryLock(config.state.directory)
    store, parts, bandwidth = remote or _remote_of(config)
    ledger = open_ledger(config)
    folder, slow, stats = _folder_of(config, lambda: ledger.owner), SlowDirectories(), Stats()
    name = f"s3://{config.destination.bucket}/{config.destination.prefix}"
    limiter = ConcurrencyLimiter(name, max_s=retry.max_s)
    breaker = CircuitBreaker(name, initial_s=retry.initial_s, max_s=retry.max_s, limiter=limiter)

    def rescan(reason: str) -> None:
        scan.want(reason)  # the scan is built last, and each part may ask for one

    inbox = Inbox(
        queue_size_of(config, ledger, workers),
        workers,
        breaker,
        sent_bytes=lambda: bandwidth.granted,
        slow=slow,
        may_take=ledger.claims.may_start if ledger.claims else lambda: True,
        rescan=rescan,
    )
    bucket = config.destination.bucket
    hook = EventHook(after.exec, bucket, breaker)
    pause = OperatorPause(ledger, inbox, hook.paused)
    settle = Settle(watch.settle_s, config.upload.queue_size)
    node = config.state.node_name if ledger.claims else ""
    marker = FolderMarker(folder.root, node, config.destination.ledger_name)
    retry_thread = RetryThread(ledger, inbox, retry, marker.sees_all)
    post_upload = PostUpload(
        folder,
        inbox,
        settle,
        stats,
        bucket=bucket,
        action=after.action,
        archive=after.archive_directory,
        rule_action=rule_action_of(config),
        rescan=rescan,
        slow=slow,
        marks=ReceiptMarks(after.receipt, folder, ledger, bucket),
        on_uploaded=hook.uploaded,
    )
    results = ResultHandler(
        ledger,
        inbox,
        settle,
        breaker,
        post_upload,
        retry_thread,
        stats,
        rescan=rescan,
        on_parked=hook.parked,
    )
    threshold, part_size = config.upload.multipart_threshold, config.upload.part_size
    large = LargeUploads(folder, parts, ledger, inbox, breaker, results, threshold=threshold, part_size=part_size)
    small = SmallUploads(
        folder, store, inbox, breaker, results, large, settle_s=watch.settle_s, max_size=watch.max_size, slow=slow
    )
    cpu_affinity = CpuAffinity()
    pool = Workers(
        workers,
        store,
        inbox,
        small,
        breaker,
        stats,
        cpu_affinity,
        limited=lambda: bandwidth.limited,
        hang_timeout_s=HEARTBEAT_TIMEOUT_S + config.upload.timeout_s,
        slow=slow,
    )
    deduplicator = Deduplicator(folder, ledger, inbox, post_upload.finish, rescan, slow)
    settle_thread = SettleThread(settle, deduplicator, ledger, inbox, rescan)
    scan = Scan(
        folder,
        filter_of(config),
        recursive=watch.recursive,
        settle_s=watch.settle_s,
        rescan_s=watch.rescan_s,
        settle=settle,
        inbox=inbox,
        deduplicator=deduplicator,
        ledger=ledger,
        slow=slow,
    )
    lease_s = config.state.lease_s
    ledger.listen(
        OtherNodes(inbox, breaker, retry_thread, results, pause, stats, marker.content, rescan, lease_s=lease_s)
    )
    return Components(
        lock=lock,
        folder=folder,
        marker=marker,
        slow=slow,
        scan=scan,
        settle=settle,
        deduplicator=deduplicator,
        settle_thread=settle_thread,
        inbox=inbox,
        pause=pause,
        retry=retry_thread,
        breaker=breaker,
        limiter=limiter,
        workers=pool,
        cpu_affinity=cpu_affinity,
        upload=small,
        large=large,
        bandwidth=bandwidth,
        store=store,
        results=results,
        ledger=ledger,
        after=post_upload,
        hook=hook,
        stats=stats,
    )


def queue_size_of(config: Config, ledger: LedgerBackend, workers: int) -> int:
    """What one of several daemons has claimed, no other daemon can send: it claims little ahead."""
    size = config.upload.queue_size
    return size if ledger.claims is None else min(size, CLAIMED_PER_WORKER * workers)


def filter_of(config: Config) -> FileFilter:
    return FileFilter(
        config.watch.include, config.watch.exclude, too_deep=partial(too_deep, prefixes=FileRules(config).prefixes)
    )


def rules_of(config: Config) -> ObjectRules:
    rules = FileRules(config)
    return ObjectRules(rules.destinations, rules.index)


def rule_action_of(config: Config) -> Callable[[str], str] | None:
    """What becomes of an uploaded file, by its path; None where no rule has a say."""
    return FileRules(config).action if any(rule.after for rule in config.rules) else None


def store_of(config: Config, bandwidth: BandwidthLimiter | None = None) -> Store:
    """The bucket of a configuration. Raises ConfigError."""
    timeout_s = config.upload.timeout_s
    return Store(config.destination, timeout_s=timeout_s, rules=rules_of(config), bandwidth=bandwidth)


def _remote_of(config: Config) -> Remote:
    bandwidth = BandwidthLimiter(config.upload.max_bandwidth)
    store = store_of(config, bandwidth)
    return Remote(store, MultipartStore(store), bandwidth)


def _folder_of(config: Config, owner: Callable[[], int]) -> Folder:
    try:
        return Folder(config.watch.directory, owner)
    except OSError as exc:
        raise ConfigError("watch.directory", str(config.watch.directory), f"cannot be opened: {exc.strerror}") from exc
