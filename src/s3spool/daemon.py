"""The only room that knows all parts: builds them, starts them in order, watches over them, drains and stops."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from s3spool import __version__
from s3spool.config import Config
from s3spool.errors import ConfigError
from s3spool.ledger.database import DirectoryLock
from s3spool.ledger.reader import Reader
from s3spool.ledger.store import Ledger
from s3spool.pipeline.after import After
from s3spool.pipeline.cores import Cores
from s3spool.pipeline.destination import Destination
from s3spool.pipeline.folder import Folder
from s3spool.pipeline.inbox import Inbox
from s3spool.pipeline.large import Large
from s3spool.pipeline.names import Names
from s3spool.pipeline.outcome import Outcome
from s3spool.pipeline.retry import Policy, RetryThread
from s3spool.pipeline.scan import Scan
from s3spool.pipeline.settle import Quiet, Settle
from s3spool.pipeline.sift import SettleThread, Sift
from s3spool.pipeline.stats import Stats
from s3spool.pipeline.upload import Upload
from s3spool.pipeline.watch import Watch, WatchUnavailableError, remote_file_system
from s3spool.pipeline.workers import Workers
from s3spool.pulse import Pulse
from s3spool.s3.client import Connection
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.pace import Pace
from s3spool.s3.store import ObjectOptions, Store
from s3spool.service import memory
from s3spool.service.control import ControlServer
from s3spool.service.logs import LogWriter
from s3spool.service.systemd import Notifier

TICK_S = 5.0  # how often the supervisor looks after its threads and the root
LOST_TICK_S = 0.5  # the same while the folder is gone
DAY_S = 86400.0
log = structlog.get_logger()


class Daemon:
    """One spool folder, one bucket. `run` blocks until a signal ends it."""

    def __init__(self, config: Config, writer: LogWriter, *, overrides: Mapping[str, object] | None = None) -> None:
        """Wire the parts; nothing runs yet. Raises ConfigError, LedgerError, AlreadyRunningError, OSError.

        `overrides` are the command line's, which a reload has to apply again.
        """
        self.config = config
        self.overrides = overrides or {}
        self._writer = writer
        self.state = "starting"
        self.stats = Stats()
        self._lock = DirectoryLock(config.state.directory)
        self.pace = Pace(config.upload.max_bandwidth)
        self.store = store_of(config, self.pace)
        self.ledger = Ledger(ledger_path(config), destination=self.store.name)
        self.folder = _folder(config)
        self.names = Names(config.watch.include, config.watch.exclude)
        self.inbox = Inbox(config.upload.queue_size, config.upload.workers)
        self.settle = Settle(config.watch.settle_s, config.upload.queue_size)
        retry = config.retry
        policy = Policy(initial_s=retry.initial_s, max_s=retry.max_s, max_attempts=retry.max_attempts)
        self.destination = Destination(
            f"s3://{config.destination.bucket}/{config.destination.prefix}",
            initial_s=retry.initial_s,
            max_s=retry.max_s,
        )
        self.after = After(
            self.folder,
            self.inbox,
            self.settle,
            self.stats,
            action=config.after.action,
            archive=config.after.archive_directory,
            rescan=lambda reason: self.scan.want(reason),  # noqa: PLW0108 - there is no scan yet
        )
        self.sift = Sift(self.folder, self.ledger, self.inbox, self.after.finish)
        self.scan = Scan(
            self.folder,
            self.names,
            recursive=config.watch.recursive,
            settle_s=config.watch.settle_s,
            rescan_s=config.watch.rescan_s,
            settle=self.settle,
            inbox=self.inbox,
            sift=self.sift,
            ledger=self.ledger,
        )
        self.settle_thread = SettleThread(self.settle, self.sift, self.ledger, self.inbox, self.scan.want)
        self.retry = RetryThread(self.ledger, self.inbox, policy)
        outcome = Outcome(
            self.store,
            self.ledger,
            self.inbox,
            self.settle,
            self.destination,
            self.after,
            self.retry,
            self.stats,
            rescan=self.scan.want,
        )
        self.large = Large(
            self.folder,
            MultipartStore(self.store),
            self.ledger,
            self.inbox,
            self.destination,
            outcome,
            threshold=config.upload.multipart_threshold,
            part_size=config.upload.part_size,
            limit=config.upload.workers,
        )
        self.upload = Upload(
            self.folder,
            self.store,
            self.inbox,
            self.destination,
            outcome,
            self.large,
            settle_s=config.watch.settle_s,
        )
        self.cores = Cores()
        self.workers = Workers(
            config.upload.workers, self.store, self.inbox, self.upload, self.destination, self.stats, self.cores
        )
        self._pulse = Pulse({"ledger": self.ledger.ping, "after": self.after.ping, "workers": self.workers.ping})
        self.watch: Watch | None = None
        self.backend = ""
        self._lost = False
        self._last_cleaning = 0.0
        self._ended_large = 0
        self._signals: list[int] = []
        self._on_terminal = os.isatty(0)
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._notifier = Notifier()
        self._control: ControlServer | None = None
        self.on_tick: Any = None  # a callable the terminal summary hangs itself into

    # Start

    def run(self) -> int:
        """Start, supervise until told to stop, drain. Returns the exit code."""
        start = time.monotonic()
        log.info("daemon.starting", version=__version__, pid=os.getpid(), config=str(self.config.source or ""))
        self._install_signals()
        self._start_control()
        self.cores.settle()  # before the threads start: they inherit it
        self.ledger.start()
        self.store.start()
        self.after.start()
        self.workers.start()
        self.retry.start()
        self.settle_thread.start()
        self._start_watch()
        self.scan.want("start")
        self.scan.start()
        self.state = "running"
        self._notifier.ready()
        log.info(
            "daemon.ready",
            directory=str(self.folder.root),
            bucket=self.config.destination.bucket,
            prefix=self.config.destination.prefix,
            endpoint=self.store.endpoint.url,
            transport=self.store.kind,
            duration_s=round(time.monotonic() - start, 3),
            pid=os.getpid(),
        )
        self._supervise()
        return self._stop()

    def _start_watch(self) -> None:
        wanted = self.config.watch.backend
        remote = remote_file_system(self.folder.root) if wanted == "auto" else ""
        why = f"inotify does not see what others do on {remote}" if remote else 'watch.backend = "poll"'
        if wanted != "poll" and not remote:
            watch = Watch(
                self.folder.root,
                self.names,
                recursive=self.config.watch.recursive,
                hint=self._hint,
                rescan=self.scan.want,
                lost=self._root_lost,
            )
            try:
                watch.start()
            except WatchUnavailableError as exc:
                if wanted == "inotify":
                    log.warning("watch.polling", directory=str(self.folder.root), reason=str(exc))
                why = str(exc)
            else:
                self.watch = self.scan.watch = watch
                self.backend = "inotify"
                log.info("watch.started", directory=str(self.folder.root), backend="inotify")
                return
        self._poll(why)

    def _poll(self, why: str) -> None:
        watch, self.watch, self.scan.watch = self.watch, None, None
        if watch is not None:
            watch.stop()
        self.backend = "poll"
        log.warning("watch.polling", directory=str(self.folder.root), reason=why)
        log.info("watch.started", directory=str(self.folder.root), backend="poll")
        self.scan.want("poll")

    def _hint(self, path: str, quiet: Quiet) -> None:
        """From the watcher's thread."""
        if not self.settle.touch(path, quiet):
            self.scan.want("full")

    def _root_lost(self) -> None:
        """From the watcher's thread: the supervisor finds out what it means."""
        self._poke()

    def _start_control(self) -> None:
        from s3spool.answers import handlers  # noqa: PLC0415 - knows this class

        path = self.config.service.control_socket
        try:
            self._control = ControlServer(path, handlers(self))
            self._control.start()
        except OSError as exc:
            raise ConfigError("service.control_socket", str(path), f"cannot be made: {exc.strerror or exc}") from exc

    # Supervise

    def _install_signals(self) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # a broken lease sends it; its default action is death
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self._poke()

    def _poke(self) -> None:
        try:
            os.write(self._wake_w, b"!")
        except BlockingIOError:
            return  # it is awake already

    def _supervise(self) -> None:
        while True:
            ready, _, _ = select.select([self._wake_r], [], [], LOST_TICK_S if self._lost else self._tick_s())
            if ready:
                os.read(self._wake_r, 4096)
            while self._signals:
                if self._signals.pop(0) != signal.SIGHUP or (self._on_terminal and not os.isatty(0)):
                    return  # told to, or the terminal it was started on is gone
                self._reload()
            self.tick(time.monotonic())

    def _tick_s(self) -> float:
        return min(TICK_S, self._notifier.watchdog_interval_s or TICK_S)

    def tick(self, now: float) -> None:
        """One look at everything: heal what can be healed, report, and prove to systemd that we live."""
        self.workers.replace_dead()
        self._look_after_root()
        self._look_after_watch()
        self.cores.look()
        self._give_memory_back()
        if self._notifier.watchdog_interval_s and self._sound(now):
            self._notifier.watchdog()
        self._notifier.status(self.summary())
        if now - self._last_cleaning > DAY_S or not self._last_cleaning:
            self._last_cleaning = now
            threading.Thread(target=self._clean, name="clean", daemon=True).start()
        if self.on_tick is not None:
            self.on_tick()

    def _sound(self, now: float) -> bool:
        """Whether what cannot be replaced is alive and answers; if not, systemd's watchdog restarts us."""
        threads = (self.ledger, self.after, self.retry, self.settle_thread, self.scan)
        dead = [type(thread).__name__ for thread in threads if not thread.alive()] + self._pulse.silent(now)
        if dead:
            log.error("daemon.unsound", rooms=", ".join(dead), hint="systemd's watchdog restarts the service")
        return not dead

    def _look_after_root(self) -> None:
        if self.folder.still_there():
            if self._lost:
                self._root_restored()
            return
        if not self._lost:
            self._lost = True
            self.stats.last_error = f"{self.folder.root} is gone"
            log.error(
                "watch.lost",
                directory=str(self.folder.root),
                hint="nothing is lost: it is taken up again when the directory is back",
            )
            if self.watch is not None:
                self.watch.stop()
        if self.folder.reopen():
            self._root_restored()

    def _root_restored(self) -> None:
        self._lost = False
        log.info("watch.restored", directory=str(self.folder.root))
        self.watch = self.scan.watch = None
        self._start_watch()
        self.scan.want("restored")

    def _look_after_watch(self) -> None:
        if self.watch is None or self._lost:
            return
        if self.watch.exhausted:
            self._poll(self.watch.exhausted)
        elif not self.watch.alive():
            log.error("watch.lost", directory=str(self.folder.root), hint="the watching thread died: starting another")
            self.watch.stop()
            self.watch = self.scan.watch = None
            self._start_watch()
            self.scan.want("restored")

    def _give_memory_back(self) -> None:
        """Once large files are through: the C library keeps what a hundred workers freed, if nobody asks."""
        if self.large.ended != self._ended_large and not self.large.progress():
            self._ended_large = self.large.ended
            memory.give_back()

    def _clean(self) -> None:
        """At start and once a day: drop what the ledger knows of files and uploads that are long gone."""
        self.large.sweep(time.time() - self.config.state.abort_stale_multipart_days * DAY_S)
        limit = time.time() - self.config.state.receipt_days * DAY_S
        with Reader(self.ledger.path) as reader:
            batch: list[str] = []
            for receipt in reader.receipts_before(limit):
                try:
                    if self._lost or self.folder.identity_of(receipt.path) is not None:
                        continue
                except OSError:
                    continue
                batch.append(receipt.path)
                if len(batch) == 500:  # noqa: PLR2004 - a group's worth
                    self.ledger.drop_receipts(batch)
                    batch = []
            self.ledger.drop_receipts(batch)

    def set_log_level(self, level: str) -> None:
        self._writer.set_level(level)

    def _reload(self) -> None:
        from s3spool.reload import reload  # noqa: PLC0415 - knows this class

        self._notifier.reloading()
        reload(self)
        self._notifier.ready()

    # Stop

    def _stop(self) -> int:
        """In this order: nothing new comes in, what is under way ends, what is known becomes durable."""
        start = time.monotonic()
        self.state = "draining"
        drain_s = self.config.service.drain_s
        deadline = start + drain_s
        log.info("daemon.draining", drain_s=drain_s, uploading=len(self.workers.jobs()))
        self._notifier.stopping()
        self._notifier.extend_timeout(drain_s + 10)
        if self.watch is not None:
            self.watch.stop()
        self.settle.close()
        self.inbox.close()
        self.destination.close()
        self.scan.close(1.0)

        def remaining_s() -> float:
            return 0.0 if self._signals else deadline - time.monotonic()

        drained = self._drain_workers(remaining_s)
        self.pace.close()
        self.retry.close(1.0)
        self.settle_thread.join(1.0)
        flushed = self.ledger.close(10.0)
        self.after.close(5.0)
        if self._control is not None:
            self._control.close()
        self.store.close()
        log.info(
            "daemon.stopped",
            duration_s=round(time.monotonic() - start, 3),
            uploaded=self.stats.uploaded,
            drained=drained,
            ledger_flushed=flushed,
        )
        self._writer.close(2.0)
        self._lock.release()
        if not (drained and flushed):
            # Threads are inside libcurl; the interpreter must not be taken down around them.
            os._exit(0 if flushed else 1)
        return 0 if flushed else 1

    def _drain_workers(self, remaining_s: Any) -> bool:
        while not self.workers.close(lambda: min(0.0, remaining_s())):
            wait_s = remaining_s()
            if wait_s <= 0:
                return False
            ready, _, _ = select.select([self._wake_r], [], [], min(wait_s, 0.05))
            if ready:
                os.read(self._wake_r, 4096)
        return True

    # Report

    def summary(self) -> str:
        """The line for `systemctl status`."""
        queued, in_flight = self.inbox.counts()
        reason = self.destination.reason
        if self.destination.paused and reason is not None and self.destination.paused_at is not None:
            since = time.strftime("%H:%M:%S", time.localtime(self.destination.paused_at))
            return f"destination paused: {reason.code} since {since}, next try in {self.destination.next_probe_s:.0f} s"
        text = f"{self.stats.uploaded:,} uploaded, {in_flight} in flight, {queued + len(self.settle)} waiting"
        oldest_s = self.oldest_unsent_s()
        return f"{text}, oldest unsent {oldest_s:.0f} s" if oldest_s else text

    def oldest_unsent_s(self) -> float:
        """Age in seconds of the file that waits longest in the inbox; 0 if none does."""
        path = self.inbox.oldest()
        if path is None:
            return 0.0
        try:
            identity = self.folder.identity_of(path)
        except OSError:
            return 0.0
        return 0.0 if identity is None else round(max(0.0, time.time() - identity.mtime_ns / 1e9), 1)


def ledger_path(config: Config) -> Path:
    return config.state.directory / "ledger.sqlite3"


def store_of(config: Config, pace: Pace | None = None) -> Store:
    """The bucket of a configuration. Raises ConfigError."""
    destination = config.destination
    return Store(
        Connection(
            destination.bucket,
            destination.endpoint_url,
            destination.region,
            destination.profile,
            destination.addressing_style,
            destination.ca_bundle,
            config.upload.timeout_s,
        ),
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
        pace=pace,
    )


def _folder(config: Config) -> Folder:
    try:
        return Folder(config.watch.directory)
    except OSError as exc:
        raise ConfigError("watch.directory", str(config.watch.directory), f"cannot be opened: {exc.strerror}") from exc
