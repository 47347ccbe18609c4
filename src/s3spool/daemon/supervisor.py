"""Starts all components in order, watches over them, drains and stops them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

import structlog

from s3spool import __version__
from s3spool.config.schema import Config
from s3spool.control.server import ControlServer, Handler
from s3spool.daemon import memory
from s3spool.daemon.cleaning import DailyCleaning
from s3spool.daemon.components import build
from s3spool.daemon.file_states import LOOK_S, FileStates, OnceDone
from s3spool.daemon.liveness import LivenessCheck
from s3spool.daemon.rate import RateMeter
from s3spool.daemon.status_line import StatusLine
from s3spool.daemon.thread_names import ThreadNames
from s3spool.daemon.watch_manager import WatchManager
from s3spool.errors import ConfigError
from s3spool.logs import excepthooks
from s3spool.logs.log_thread import LogWriter
from s3spool.systemd.notify import Notifier

if TYPE_CHECKING:
    from s3spool.http.server import HttpServer

TICK_S = 5.0  # seconds between two ticks
LOST_TICK_S = 0.5  # the same while the folder is gone
EXTEND_S = 10.0  # asked of systemd again and again while the daemon drains: a hanging one is killed after it
EXTEND_EVERY_S = 2.0
FLUSH_S = 30.0  # longer than the steps after the drain may take
log = structlog.get_logger()


class Daemon:
    """One spool folder, one bucket. `run` blocks until a signal ends it."""

    def __init__(
        self,
        config: Config,
        writer: LogWriter,
        *,
        overrides: Mapping[str, object] | None = None,
        workers: int = 0,
        handlers: Callable[[Daemon], dict[str, Handler]] = lambda _: {},
        reload: Callable[[Daemon], None] = lambda _: None,
        http_server: Callable[[Daemon, Mapping[str, Handler]], HttpServer | None] = lambda *_: None,
        once: bool = False,
    ) -> None:
        """Build; no thread starts yet. Raises ConfigError, LedgerError, AlreadyRunningError, OSError.

        `overrides`: the command line's settings, for a reload; `workers`: fewer than configured, where descriptors are
        scarce; `handlers`: of the control socket; `reload`: the action on SIGHUP; `http_server` starts one where it is
        configured; `once`: stop when all files were tried.
        """
        self.config = config
        self.overrides = overrides or {}
        self._writer = writer
        self._handlers = handlers
        self._reload = reload
        self._http_server = http_server
        self.state = "starting"
        # threading.Event must not be set by a signal handler of the thread that waits for it.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self.components = components = build(config, workers=workers)
        folder, scan, ledger = components.folder, components.scan, components.ledger
        self.watch_manager = WatchManager(
            folder, scan, components.settle, components.inbox, components.stats, config.watch, self.wake
        )
        self.liveness = LivenessCheck(components, self.watch_manager.heartbeat)
        self.files = FileStates(components)
        self.rate = RateMeter(components)
        sees_all = components.marker.sees_all
        self._cleaning = DailyCleaning(folder, components.large, ledger, config.state, self._is_unsafe, sees_all)
        self._freed = 0
        self._once = OnceDone(self.files) if once else None
        self._status_line = StatusLine(components, self.files, self.rate, with_bar=once)
        self._signals: list[int] = []
        self._on_terminal = os.isatty(0)
        self._notifier = Notifier()
        self._thread_names = ThreadNames()
        self._control: ControlServer | None = None
        self._http: HttpServer | None = None

    # Start

    def run(self) -> int:
        """Start, supervise until told to stop, drain. Returns the exit code."""
        components = self.components
        start = time.monotonic()
        log.info("daemon.starting", version=__version__, pid=os.getpid(), config=str(self.config.source or ""))
        self._install_signals()
        excepthooks.tell(then=self.wake)
        self._start_control()
        components.slow.refresh(components.folder.root)
        components.cpu_affinity.settle()  # before the threads start: they inherit it
        components.ledger.start()
        components.store.start()
        components.hook.start()
        components.after.start()
        components.workers.start()
        components.retry.start()
        components.settle_thread.start()
        self.watch_manager.start()
        self._thread_names.publish()  # before the scan, whose work would slow these writes down
        components.scan.want("start")
        components.scan.start()
        self._thread_names.publish()
        self.state = "running"
        self._notifier.ready()
        self._notifier.status(self.summary())
        log.info(
            "daemon.ready",
            directory=str(components.folder.root),
            bucket=self.config.destination.bucket,
            prefix=self.config.destination.prefix,
            endpoint=components.store.endpoint.url,
            duration_s=round(time.monotonic() - start, 3),
            pid=os.getpid(),
        )
        self._supervise()
        return self._stop()

    def _start_control(self) -> None:
        path = self.config.service.control_socket
        try:
            handlers = self._handlers(self)
            self._control = ControlServer(path, handlers)
            self._control.start()
        except OSError as exc:
            raise ConfigError("service.control_socket", str(path), f"cannot be made: {exc.strerror or exc}") from exc
        self._http = self._http_server(self, handlers)

    # Supervise

    def _install_signals(self) -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent for a broken lease; its default action ends the process
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self.wake()

    def wake(self) -> None:
        """Tick now. Any thread, and signal handlers."""
        self._wakeups.put(None)

    def _sleep(self, duration_s: float) -> None:
        with suppress(Empty):
            self._wakeups.get(timeout=duration_s)
            while True:
                self._wakeups.get_nowait()

    def _supervise(self) -> None:
        while not self.components.ledger.damaged:
            if self._once is not None and self._once.look():
                return
            tick_s = LOST_TICK_S if self.watch_manager.lost else TICK_S if self._once is None else LOOK_S
            self._sleep(min(tick_s, self._notifier.watchdog_interval_s or tick_s))
            while self._signals:
                if self._signals.pop(0) != signal.SIGHUP or (self._on_terminal and not os.isatty(0)):
                    return  # a signal to stop, or the terminal is gone
                self._on_hangup()
            self.tick(time.monotonic())

    @property
    def left(self) -> int:
        """How many files `once` could not send."""
        return self._once.left if self._once else 0

    def tick(self, now: float) -> None:
        """Replace dead workers, check the folder, report to systemd."""
        self.components.workers.replace_dead()
        self.liveness.find_hanging_files(now)
        self._thread_names.publish()
        self.watch_manager.check()
        self.components.cpu_affinity.avoid_busy_cpu()
        self._give_back()
        if self._notifier.watchdog_interval_s and self._healthy(now):
            self._notifier.watchdog()
        self._notifier.status(self.summary())
        self._cleaning.run_if_due(now)

    def _healthy(self, now: float) -> bool:
        """Whether the threads that cannot be replaced are alive; if not, systemd's watchdog restarts the daemon."""
        components = self.components
        if components.ledger.failing_since is not None:
            components.ledger.heartbeat.beat()  # a restart does not repair a disk
        dead = self.silent_threads(now) + components.workers.hanging(now)
        if dead:
            log.error("daemon.unhealthy", components=", ".join(dead), hint="systemd's watchdog restarts the service")
        return not dead

    def silent_threads(self, now: float) -> list[str]:
        """The names of threads that died, or whose heartbeat is old. Any thread."""
        dead = self.liveness.silent(now)
        return dead if self._http is None or self._http.alive() else [*dead, "http"]

    def _give_back(self) -> None:
        """After large files or closed connections: boto3 keeps its connections, and the C library freed memory."""
        freed = self.components.large.ended + self.components.workers.closed_idle
        if freed != self._freed and not self.components.large.progress():
            self._freed = freed
            self.components.store.close_idle()
            memory.give_back()

    def _is_unsafe(self, path: str) -> bool:
        """Whether an access to this path could hang, or the folder is gone."""
        return self.watch_manager.lost or bool(self.liveness.hanging_files and self.components.slow.holds(path))

    def apply(self, config: Config) -> None:
        """Use the settings of `config` that can change while the daemon runs."""
        self.config = config
        self.components.apply(config)
        self.watch_manager.apply(self.components.scan.names)
        self._writer.set_level(config.log.level)
        self.components.scan.want("reload")

    def _on_hangup(self) -> None:
        self._notifier.reloading()
        self._reload(self)
        self._notifier.ready()

    # Stop

    def _stop(self) -> int:
        """In this order: close the intake, let requests finish, make all rows durable."""
        components = self.components
        start = time.monotonic()
        self.state = "draining"
        drain_s = 0.0 if components.ledger.damaged else self.config.service.drain_s  # no receipt can be written
        deadline = start + drain_s
        self._signals.clear()  # timeout(1) and terminals may send a signal twice; only later ones skip the drain
        log.info("daemon.draining", drain_s=drain_s, uploading=len(components.workers.jobs()))
        self._notifier.stopping()
        self._notifier.extend_timeout(EXTEND_S)
        self.watch_manager.stop()
        components.settle.close()
        components.inbox.close()
        components.limiter.close()
        components.scan.close(1.0)

        def remaining_s() -> float:
            return 0.0 if self._signals else deadline - time.monotonic()

        drained = self._drain_workers(remaining_s)
        self._notifier.extend_timeout(FLUSH_S)
        components.bandwidth.close()
        components.retry.close(1.0)
        components.settle_thread.join(1.0)
        flushed = components.ledger.close(10.0)
        components.after.close(5.0)
        components.marker.remove()
        components.hook.close()
        if self._http is not None:
            self._http.close()
        if self._control is not None:
            self._control.close()
        self.files.ledger.close()
        components.store.close()
        log.info(
            "daemon.stopped",
            duration_s=round(time.monotonic() - start, 3),
            uploaded=components.stats.uploaded,
            drained=drained,
            ledger_flushed=flushed,
        )
        self._writer.close(2.0)
        components.lock.release()
        if not (drained and flushed):
            # Threads are inside libcurl: the interpreter must not shut down around them.
            os._exit(0 if flushed else 1)
        return 0 if flushed else 1

    def _drain_workers(self, remaining_s: Any) -> bool:
        extended = time.monotonic()
        while not self.components.workers.close(lambda: min(0.0, remaining_s())):
            wait_s = remaining_s()
            if wait_s <= 0 or self.components.workers.only_hanging(time.monotonic()):
                return False
            if time.monotonic() - extended > EXTEND_EVERY_S:
                extended = time.monotonic()
                self._notifier.extend_timeout(EXTEND_S)
                self._notifier.status(self.summary())
            self._sleep(min(wait_s, 0.05))
        return True

    def summary(self) -> str:
        """The line for `systemctl status` and for a terminal. Any thread."""
        return self._status_line.text(self.state)
