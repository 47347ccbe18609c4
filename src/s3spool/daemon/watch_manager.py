"""Keeps the folder watched: by inotify or by scans alone, whatever becomes of the root or of the watching thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from s3spool.config.schema import WatchConfig
from s3spool.discovery.scan import Scan
from s3spool.discovery.watch import Watch, WatchUnavailableError
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.folder.mounts import remote_file_system
from s3spool.heartbeat import Heartbeat
from s3spool.queue.inbox import Inbox
from s3spool.queue.settle import Settle, SettleReason
from s3spool.upload.stats import Stats

LISTED = 1000  # names in the inbox beyond which a new directory's files wait: a worker has each in less than a second
log = structlog.get_logger()


class WatchManager:
    """Only the supervisor's thread calls this; the watcher's thread comes back through `_hint`, `_rescan`, `wake`."""

    def __init__(
        self,
        folder: Folder,
        scan: Scan,
        settle: Settle,
        inbox: Inbox,
        stats: Stats,
        config: WatchConfig,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called from the watcher's thread when it has lost the root: `look` finds out why."""
        self._folder = folder
        self._scan = scan
        self._settle = settle
        self._inbox = inbox
        self._stats = stats
        self._config = config
        self._wake = wake
        self.heartbeat = Heartbeat()  # of watchdog's thread
        self.watch: Watch | None = None  # None: polling, or the folder is gone
        self.backend = ""
        self.lost = False
        self._partial = False  # more directories than can be watched: the others are left to scans

    def start(self) -> None:
        """Arm the watch; without inotify say why, and poll."""
        wanted = self._config.backend
        remote = remote_file_system(self._folder.root) if wanted == "auto" else ""
        why = f"inotify does not see what others do on {remote}" if remote else 'watch.backend = "poll"'
        if wanted != "poll" and not remote:
            watch = Watch(
                self._folder.root,
                self._scan.names,
                recursive=self._config.recursive,
                hint=self._hint,
                rescan=self._rescan,
                lost=self._wake,
                deep=self._scan.deep,
                room=self._has_room,
                heartbeat=self.heartbeat,
            )
            try:
                watch.start()
            except WatchUnavailableError as exc:
                why = str(exc)
            else:
                self._use(watch)
                self.backend = "inotify"
                log.info("watch.started", directory=str(self._folder.root), backend="inotify")
                return
        self._poll(why)

    def look(self) -> None:
        """Whether the root is there and watched; if not, do what can be done."""
        self._look_after_root()
        self._look_after_watch()
        if self.watch is None:
            self.heartbeat.beat()  # scans alone find files
        elif time.monotonic() - self.heartbeat.last >= self.heartbeat.capped(None):
            self.watch.self_test()

    def apply(self, names: FileFilter) -> None:
        if self.watch is not None:
            self.watch.apply(names)

    def stop(self) -> None:
        if self.watch is not None:
            self.watch.stop()

    def _poll(self, why: str) -> None:
        self.stop()
        self._use(None)
        self.backend = "poll"
        log.warning("watch.polling", directory=str(self._folder.root), reason=why)
        log.info("watch.started", directory=str(self._folder.root), backend="poll")
        self._scan.want("poll")

    def _use(self, watch: Watch | None) -> None:
        self.watch = watch
        self._scan.use(watch)

    def _hint(self, path: str, quiet: SettleReason) -> None:
        """From the watcher's thread."""
        if not self._settle.add(path, quiet):
            self._scan.want("full")

    def _has_room(self) -> bool:
        """From the watcher's listers: not before what happens now, which would wait behind a hundred thousand names."""
        return self._settle.has_room() and self._inbox.counts()[0] < LISTED

    def _rescan(self, reason: str) -> None:
        """From the watcher's thread, or the scan's."""
        self._scan.want(reason)
        if reason == "limit":
            self._wake()  # from here on scans alone find what comes

    def _look_after_root(self) -> None:
        if self._folder.still_there():
            if self.lost:
                self._restored()
            return
        if not self.lost:
            self.lost = True
            self._stats.last_error = f"{self._folder.root} is gone"
            log.error(
                "watch.lost",
                directory=str(self._folder.root),
                hint="nothing is lost: it is taken up again when the directory is back",
            )
            self.stop()
        if self._folder.reopen():
            self._restored()

    def _restored(self) -> None:
        self.lost = False
        log.info("watch.restored", directory=str(self._folder.root))
        self._start_again()

    def _look_after_watch(self) -> None:
        if self.watch is None or self.lost:
            return
        if self.watch.exhausted:
            if not self._partial:  # what is watched stays so: others must not wait for a scan of all those directories
                log.warning("watch.polling", directory=str(self._folder.root), reason=self.watch.exhausted)
            self.backend = "inotify+poll"
        elif self._partial:
            self.backend = "inotify"
        self._partial = bool(self.watch.exhausted)
        if not self.watch.alive():
            log.error("watch.lost", directory=str(self._folder.root), hint="the watching thread died: starting another")
            self.stop()
            self._start_again()

    def _start_again(self) -> None:
        self._use(None)
        self.start()
        self._scan.want("restored")
