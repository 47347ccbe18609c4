"""Starts all rooms in order, watches over them, drains and stops them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog

from s3spool import __version__
from s3spool.config.loader import Config
from s3spool.control.server import ControlServer, Handler
from s3spool.daemon import memory
from s3spool.daemon.components import Rooms
from s3spool.daemon.idle import DOZE_S, Doze
from s3spool.daemon.liveness import Pulse
from s3spool.daemon.retry_summary import Backlog, going, paused
from s3spool.daemon.thread_names import ThreadNames
from s3spool.daemon.watch_manager import Lookout
from s3spool.errors import ConfigError, LedgerError
from s3spool.ledger.reader import Reader
from s3spool.logs import excepthooks as deaths
from s3spool.logs.log_thread import LogWriter
from s3spool.s3.client import Endpoint
from s3spool.systemd.notify import Notifier

EXTEND_S = 10.0  # what a stopping daemon asks systemd for, again and again: one that hangs is killed when it is over
EXTEND_EVERY_S = 2.0
FLUSH_S = 30.0  # more than all that follows the drain may take
DAY_S = 86400.0
log = structlog.get_logger()


class Daemon:
    """One spool folder, one bucket. `run` blocks until a signal ends it."""

    def __init__(
        self,
        config: Config,
        writer: LogWriter,
        *,
        overrides: Mapping[str, object] | None = None,
        endpoint: Endpoint | None = None,
        workers: int = 0,
        handlers: Callable[[Daemon], dict[str, Handler]] = lambda _: {},
        reload: Callable[[Daemon], None] = lambda _: None,
    ) -> None:
        """Wire the parts; nothing runs yet. Raises ConfigError, LedgerError, AlreadyRunningError, OSError.

        `overrides` are the command line's, which a reload has to apply again; `endpoint`, where it is known already;
        `workers`: fewer than configured, where the limit of open files asks for that; `handlers`: of the control
        socket; `reload`: what SIGHUP does.
        """
        self.config = config
        self.overrides = overrides or {}
        self._writer = writer
        self._handlers = handlers
        self._apply = reload
        self.state = "starting"
        self.rooms = rooms = Rooms(config, endpoint, workers)
        self._doze = Doze(rooms)
        self.lookout = Lookout(rooms, config.watch, self.wake)
        self._pulse = Pulse(
            {
                "ledger": rooms.ledger.ping,
                "after": rooms.after.ping,
                "workers": rooms.workers.ping,
                "retry": rooms.retry.ping,
                "settle": rooms.settle.ping,
                "scan": rooms.scan.ping,
                "watch": self.lookout.ping,
            }
        )
        self._backlog = Backlog(rooms.ledger)
        self._last_cleaning = 0.0  # monotonic seconds; 0: is due
        self._cleaning_failed = ""  # said once
        self._freed = 0
        self._signals: list[int] = []
        self._on_terminal = os.isatty(0)
        self._notifier = Notifier()
        self._thread_names = ThreadNames()
        self._control: ControlServer | None = None
        self.hanging: list[str] = []  #: files that cannot be opened or read, because their file system does not answer
        self.on_tick: Any = None  # a callable the terminal summary hangs itself into

    # Start

    def run(self) -> int:
        """Start, supervise until told to stop, drain. Returns the exit code."""
        rooms = self.rooms
        start = time.monotonic()
        log.info("daemon.starting", version=__version__, pid=os.getpid(), config=str(self.config.source or ""))
        self._install_signals()
        deaths.tell(then=self.wake)
        self._start_control()
        rooms.slow.refresh(rooms.folder.root)
        rooms.cores.settle()  # before the threads start: they inherit it
        rooms.ledger.start()
        rooms.store.start()
        rooms.after.start()
        rooms.workers.start()
        rooms.retry.start()
        rooms.settle_thread.start()
        self.lookout.start()
        self._thread_names.tell()  # a hundred writes, between which a thread that is busy would take its turns
        rooms.scan.want("start")
        rooms.scan.start()
        self._thread_names.tell()
        self.state = "running"
        self._notifier.ready()
        self._notifier.status(self.summary())
        log.info(
            "daemon.ready",
            directory=str(rooms.folder.root),
            bucket=self.config.destination.bucket,
            prefix=self.config.destination.prefix,
            endpoint=rooms.store.endpoint.url,
            transport=rooms.store.kind,
            duration_s=round(time.monotonic() - start, 3),
            pid=os.getpid(),
        )
        self._supervise()
        return self._stop()

    def _start_control(self) -> None:
        path = self.config.service.control_socket
        try:
            self._control = ControlServer(path, self._handlers(self))
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
        self.wake()

    def wake(self) -> None:
        """Let the supervisor look at everything now. Any thread, and signal handlers."""
        self._doze.wake()

    def _supervise(self) -> None:
        while True:
            longest_s = self._notifier.watchdog_interval_s or DOZE_S
            self._doze.sleep(self.lookout, self._backlog, self._pulse, longest_s)
            while self._signals:
                if self._signals.pop(0) != signal.SIGHUP or (self._on_terminal and not os.isatty(0)):
                    return  # told to, or the terminal it was started on is gone
                self._reload()
            self.tick(time.monotonic())

    def tick(self, now: float) -> None:
        """One look at everything: heal what can be healed, report, and prove to systemd that we live."""
        self._doze.arm()
        self.rooms.workers.replace_dead()
        self._look_for_hanging_files(now)
        self._thread_names.tell()
        self.lookout.look()
        self.rooms.cores.look()
        self._give_memory_back()
        if self._notifier.watchdog_interval_s and self._sound(now):
            self._notifier.watchdog()
        self._backlog.look()
        self._notifier.status(self.summary())
        if now - self._last_cleaning > DAY_S or not self._last_cleaning:
            with suppress(RuntimeError):  # there is no thread to be had: at the next look
                threading.Thread(target=self._clean, name="clean", daemon=True).start()
                self._last_cleaning = now
        if self.on_tick is not None:
            self.on_tick()

    def _look_for_hanging_files(self, now: float) -> None:
        self.rooms.slow.refresh(self.rooms.folder.root)
        before, self.hanging = self.hanging, self.rooms.workers.hanging_files(now)
        for path in set(self.hanging) - set(before):
            log.warning("file.hanging", path=path, hint="the file system does not answer; the other files go on")

    def _sound(self, now: float) -> bool:
        """Whether what cannot be replaced is alive and answers; if not, systemd's watchdog restarts us."""
        rooms = self.rooms
        threads = (rooms.ledger, rooms.after, rooms.retry, rooms.settle_thread, rooms.scan)
        dead = [type(thread).__name__ for thread in threads if not thread.alive()]
        dead += self._pulse.silent(now) + rooms.workers.hanging(now)
        if dead:
            log.error("daemon.unsound", rooms=", ".join(dead), hint="systemd's watchdog restarts the service")
        return not dead

    def _give_memory_back(self) -> None:
        """Once large files are through, or connections closed: the C library keeps what was freed, if nobody asks."""
        freed = self.rooms.large.ended + self.rooms.workers.cooled
        if freed != self._freed and not self.rooms.large.progress():
            self._freed = freed
            memory.give_back()

    def _clean(self) -> None:
        """At start and once a day; again at the next tick where the ledger could not be read."""
        try:
            self._drop_what_is_gone()
        except (LedgerError, OSError) as exc:
            self._cleaning_failed = self.rooms.ledger.doubt(exc, self._cleaning_failed)
            self._last_cleaning = 0.0
        else:
            self._cleaning_failed = ""

    def _drop_what_is_gone(self) -> None:
        """What the ledger knows of files and uploads that are long gone. Raises LedgerError, OSError."""
        rooms = self.rooms
        rooms.large.sweep(time.time() - self.config.state.abort_stale_multipart_days * DAY_S)
        limit = time.time() - self.config.state.receipt_days * DAY_S
        with Reader(rooms.ledger.path) as reader:
            batch: list[str] = []
            for receipt in reader.receipts_before(limit):
                try:
                    if self.hanging and rooms.slow.holds(receipt.path):
                        continue
                    if self.lookout.lost or rooms.folder.identity_of(receipt.path) is not None:
                        continue
                except OSError:
                    continue
                batch.append(receipt.path)
                if len(batch) == 500:  # noqa: PLR2004 - a group's worth
                    rooms.ledger.drop_receipts(batch)
                    batch = []
            rooms.ledger.drop_receipts(batch)

    def set_log_level(self, level: str) -> None:
        self._writer.set_level(level)

    def _reload(self) -> None:
        self._notifier.reloading()
        self._apply(self)
        self._notifier.ready()

    # Stop

    def _stop(self) -> int:
        """In this order: nothing new comes in, what is under way ends, what is known becomes durable."""
        rooms = self.rooms
        start = time.monotonic()
        self.state = "draining"
        drain_s = self.config.service.drain_s
        deadline = start + drain_s
        self._signals.clear()  # timeout(1) and terminals may send one twice; only those from here on are impatience
        log.info("daemon.draining", drain_s=drain_s, uploading=len(rooms.workers.jobs()))
        self._notifier.stopping()
        self._notifier.extend_timeout(EXTEND_S)
        self.lookout.stop()
        rooms.settle.close()
        rooms.inbox.close()
        rooms.limiter.close()
        rooms.scan.close(1.0)

        def remaining_s() -> float:
            return 0.0 if self._signals else deadline - time.monotonic()

        drained = self._drain_workers(remaining_s)
        self._notifier.extend_timeout(FLUSH_S)
        rooms.pace.close()
        rooms.retry.close(1.0)
        rooms.settle_thread.join(1.0)
        flushed = rooms.ledger.close(10.0)
        rooms.after.close(5.0)
        if self._control is not None:
            self._control.close()
        rooms.store.close()
        log.info(
            "daemon.stopped",
            duration_s=round(time.monotonic() - start, 3),
            uploaded=rooms.stats.uploaded,
            drained=drained,
            ledger_flushed=flushed,
        )
        self._writer.close(2.0)
        self._doze.close()
        rooms.lock.release()
        if not (drained and flushed):
            # Threads are inside libcurl; the interpreter must not be taken down around them.
            os._exit(0 if flushed else 1)
        return 0 if flushed else 1

    def _drain_workers(self, remaining_s: Any) -> bool:
        extended = time.monotonic()
        while not self.rooms.workers.close(lambda: min(0.0, remaining_s())):
            wait_s = remaining_s()
            if wait_s <= 0 or self.rooms.workers.only_hanging(time.monotonic()):
                return False
            if time.monotonic() - extended > EXTEND_EVERY_S:
                extended = time.monotonic()
                self._notifier.extend_timeout(EXTEND_S)
                self._notifier.status(self.summary())
            self._doze.nap(min(wait_s, 0.05))
        return True

    # Report

    def summary(self) -> str:
        """The line for `systemctl status` and the terminal. Any thread; quick."""
        rooms = self.rooms
        if self.state == "draining":
            return f"stopping, {len(rooms.workers.jobs())} in flight may finish"
        reason, since = rooms.breaker.reason, rooms.breaker.paused_at
        if rooms.breaker.open and reason is not None and since is not None:
            return paused(reason.short, since, rooms.breaker.next_probe_s, time.time())
        queued, in_flight = rooms.inbox.counts()
        waiting = queued + len(rooms.settle) + self._backlog.waiting
        return going(rooms.stats.uploaded, in_flight, waiting, self._backlog.parked, self.oldest_unsent_s())

    def oldest_unsent_s(self) -> float:
        """For how many seconds the oldest file that is queued, sent or tried again has been as it is; 0: there is none.

        By its ctime, which is not older than the drop: a copied file brings its mtime along.
        """
        found = [self._backlog.oldest_ns] if self._backlog.oldest_ns else []
        for path in self.rooms.inbox.oldest():
            if self.rooms.slow.holds(path):
                continue  # it might hang here, and with it the supervisor
            with suppress(OSError):
                identity = self.rooms.folder.identity_of(path)
                if identity is not None:
                    found.append(identity.ctime_ns)
        return round(max(0.0, time.time() - min(found) / 1e9), 1) if found else 0.0
