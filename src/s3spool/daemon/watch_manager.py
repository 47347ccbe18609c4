"""Keeps the folder watched, by inotify or by scans alone, when the root or the watching thread is lost."""

from __future__ import annotations

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

LISTED = 1000  # untried files in the inbox beyond which listings of new directories wait
log = structlog.get_logger()


class WatchManager:
    """Called by the supervisor's thread; the watcher's thread calls `_hint`, `_rescan` and `wake`."""

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
        """The watcher's thread calls `wake` when it has lost the root: `check` finds out why."""
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
        self._partial = False  # some directories have no watch: scans find their files

    def start(self) -> None:
        """Arm the watch; without inotify log the reason, and poll."""
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

    def check(self) -> None:
        """Watch the root again if it was lost, replaced, or its watching thread died."""
        self._check_root()
        self._check_watch()
        if self.watch is None or self.lost:
            self.heartbeat.beat()  # no thread watches: scans find the files

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
        self._scan.use(watch.watches if watch else None)

    def _hint(self, path: str, quiet: SettleReason) -> None:
        """Called by the watcher's thread."""
        if not self._settle.add(path, quiet):
            self._scan.want("full")

    def _has_room(self) -> bool:
        """Called by the watcher's listers: present events must not wait behind a hundred thousand listed names."""
        return self._settle.has_room() and self._inbox.untried() < LISTED

    def _rescan(self, reason: str) -> None:
        """Called by the watcher's thread or the scan's."""
        self._scan.want(reason)
        if reason == "limit":
            self._wake()  # scans alone find new files from here on

    def _check_root(self) -> None:
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

    def _check_watch(self) -> None:
        if self.watch is None or self.lost:
            return
        if self.watch.watches.exhausted:
            if not self._partial:  # once; the other directories stay watched
                log.warning("watch.polling", directory=str(self._folder.root), reason=self.watch.watches.exhausted)
            self.backend = "inotify+poll"
        elif self._partial:
            self.backend = "inotify"
        self._partial = bool(self.watch.watches.exhausted)
        if not self.watch.alive():
            log.error("watch.lost", directory=str(self._folder.root), hint="the watching thread died: starting another")
            self.stop()
            self._start_again()

    def _start_again(self) -> None:
        self._use(None)
        self.start()
        self._scan.want("restored")
