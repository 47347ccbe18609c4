"""Inotify through watchdog: turns events of the folder into hints, and asks for a rescan when events may be lost.

Built on InotifyFD, the layer below watchdog's Observer: it reports queue overflows, and an event takes a sixth of
the Observer's time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog
from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, WatchCallback, WatchDescriptor

from s3spool.discovery.deep_directories import DeepDirectories
from s3spool.discovery.directory_watches import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    GONE,
    MOVED_FROM,
    MOVED_TO,
    DirectoryWatches,
    limit_hint,
)
from s3spool.discovery.inotify import Inotify
from s3spool.discovery.lister import Lister
from s3spool.discovery.watch_table import steps_up
from s3spool.folder.directories import NotAFileError, listed, opened_directory
from s3spool.folder.filters import FileFilter
from s3spool.heartbeat import Heartbeat
from s3spool.queue.settle import SettleReason

ISDIR = int(InotifyConstants.IN_ISDIR)
UNMOUNTED = int(InotifyConstants.IN_UNMOUNT)
ROOT_GONE = int(InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT)
CHECK_ENTRIES = 1000  # after this many entries, check that the directory still exists and settle has room
RECENT_DIRECTORIES = 64  # where files arrived last: listed at once after an overflow, before the scan comes to them
RECENT_S = 60.0  # only files that changed so recently: an overflow loses the events of seconds
WAIT_S = 0.05  # how often to look for room
log = structlog.get_logger()

Hint = Callable[[str, SettleReason], None]


class WatchUnavailableError(Exception):
    """Inotify cannot be used here; `str()` says why and what to do."""


class Watch(WatchCallback):
    """Watches a directory tree.

    `hint(path, reason)`, `rescan(reason)` and `lost()` are called on watchdog's thread and on the listers' threads:
    they must not block. Watchdog's thread accesses only the root's file system, because a mounted one may hang.
    """

    def __init__(
        self,
        root: Path,
        names: FileFilter,
        *,
        recursive: bool,
        hint: Hint,
        rescan: Callable[[str], None],
        lost: Callable[[], None],
        deep: DeepDirectories | None = None,
        room: Callable[[], bool] = lambda: True,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        """`room`: whether settle has room for files that a listing finds; else the listing waits."""
        self._deep = deep or DeepDirectories()
        self._room = room
        self._root = os.fsencode(root)
        self.names = names
        self._recursive = recursive
        self._hint = hint
        self._rescan = rescan
        self._lost = lost
        self.watches = DirectoryWatches(self._root, rescan)
        self._device = 0  # the root's
        self._inotify: Inotify | None = None
        self._heartbeat = heartbeat or Heartbeat()  # of watchdog's thread
        self.overflows = 0
        self._lister = Lister("watch-new", self._list, rescan)
        self._recent: deque[str] = deque(maxlen=RECENT_DIRECTORIES)
        self._recent_lister = Lister("watch-recent", self._list_recent, rescan)
        self._mounts_lister = Lister("watch-mounts", self._list, rescan)  # these may hang

    def apply(self, names: FileFilter) -> None:
        """Other include and exclude patterns, from the next event on."""
        self.names = names

    def start(self) -> None:
        """Watch the root; raises WatchUnavailableError.

        The first scan watches and lists what the root holds already, each directory in this order: no file falls
        between the two, and a million waiting files do not delay the start.
        """
        try:
            self._inotify = Inotify(self, self._heartbeat)
        except OSError as exc:
            raise WatchUnavailableError(limit_hint(exc)) from exc
        self._inotify.start()
        self.watches.open(self._inotify)
        if not self.watches.add(""):
            self.stop()
            raise WatchUnavailableError(self.watches.exhausted or f"{os.fsdecode(self._root)} cannot be watched")
        self._device = (self.watches.table.identity("") or (0,))[0]

    def stop(self) -> None:
        self._lister.close()
        self._mounts_lister.close()
        self._recent_lister.close()
        inotify, self._inotify = self._inotify, None
        self.watches.close()
        if inotify is not None:
            inotify.stop()
            inotify.join(5.0)
        self.watches.clear()

    def alive(self) -> bool:
        return self._inotify is not None and self._inotify.is_alive()

    # WatchCallback, called on watchdog's thread: an exception would end that thread.

    def on_event(self, event: InotifyEvent) -> None:
        try:
            self._handle(event)
        except Exception:
            log.exception("library.warning", message="a file system event could not be handled; rescanning")
            self._rescan("error")

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        if self.watches.removed(wd) == "":
            self._lost()

    def on_queue_overflow(self) -> None:
        self.overflows += 1
        log.warning("watch.overflowed", overflows=self.overflows)
        self.watches.overflowed()
        self._recent_lister.add("")
        self._rescan("overflow")

    def _handle(self, event: InotifyEvent) -> None:
        mask = event.mask
        directory = self.watches.table.directory(event.wd)
        if directory is None:
            return
        if mask & ISDIR and event.name:
            self._handle_directory(mask, f"{directory}{os.fsdecode(event.name)}")
        elif mask & (CLOSE_WRITE | MOVED_TO | CREATE):
            path = directory + os.fsdecode(event.name)
            if self.names.accepts_file(path):
                if not self._recent or self._recent[-1] != directory:
                    self._recent.append(directory)
                self._hint(path, SettleReason.CREATED if mask & CREATE else SettleReason.CHANGED)
        elif mask & ROOT_GONE and not directory:
            self._lost()
        elif mask & UNMOUNTED:
            self._rescan("unmounted")  # the files below the mount point are visible again

    def _handle_directory(self, mask: int, path: str) -> None:
        if not self._recursive:
            return
        directory = f"{path}/"
        if mask & MOVED_FROM:
            self.watches.forget(directory)
        elif mask & ATTRIB and (directory in self.watches.table or self.watches.exhausted):
            return  # only those that could not be read are of interest
        elif mask & (CREATE | MOVED_TO | ATTRIB) and self.names.enters_directory(path):
            if self.names.too_deep(path):
                self._deep.note(path)
            elif self._is_mounted(directory):
                self.watches.forget(directory)
                self._mounts_lister.add(directory)
            elif not (mask & CREATE and self.watches.is_verified(directory) and self.watches.is_current(directory)):
                # A former directory of this name keeps its watch as long as a process has it open.
                self.watches.forget(directory)
                if self.watches.add(directory) or self.watches.exhausted:
                    # Files that arrived before the watch made no event.
                    self._lister.add(directory)

    def _is_mounted(self, directory: str) -> bool:
        """Whether the parent of this new directory is on another device than the root."""
        parent, _ = next(steps_up(directory))
        return (self.watches.table.identity(parent) or (self._device,))[0] != self._device

    def _list(self, directory: str) -> None:
        """Watch a new directory and all below it, and hint at its files. Runs on a lister's thread."""
        pending = [directory]
        while pending and self._inotify is not None:
            current = pending.pop()
            if not self.watches.add(current) and not self.watches.exhausted:
                continue
            try:
                self._list_one(current, pending)
            except NotAFileError:
                continue
            except OSError as exc:
                if exc.errno not in GONE:
                    self._rescan("error")

    def _list_one(self, directory: str, pending: list[str]) -> None:
        """Hint at the files of one directory; add its subdirectories to `pending`. Raises NotAFileError, OSError."""
        with opened_directory(self._root, directory) as fd, listed(fd) as entries:
            for number, entry in enumerate(entries):
                if number % CHECK_ENTRIES == 0 and not self._may_continue(directory):
                    return
                path = directory + entry.name
                if not entry.is_dir(follow_symlinks=False):
                    if self.names.accepts_file(path):
                        self._hint(path, SettleReason.CREATED)
                elif self.names.enters_directory(path):
                    if self.names.too_deep(path):
                        self._deep.note(path)
                    elif len(pending) < CHECK_ENTRIES:
                        pending.append(f"{path}/")
                    else:
                        self._lister.add(f"{path}/")

    def _list_recent(self, _: str) -> None:
        """Hint at new files of the root and of the directories where files arrived last: their events may be lost."""
        since = time.time() - RECENT_S
        for directory in dict.fromkeys(("", *self._recent.copy())):
            # What goes wrong here the scan reports.
            with (
                contextlib.suppress(NotAFileError, OSError),
                opened_directory(self._root, directory) as fd,
                listed(fd) as entries,
            ):
                for entry in entries:
                    path = directory + entry.name
                    is_new = entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_ctime > since
                    if is_new and self.names.accepts_file(path):
                        self._hint(path, SettleReason.CREATED)

    def _may_continue(self, directory: str) -> bool:
        """Wait for room; False if the directory was removed or renamed meanwhile (then its new name is listed)."""
        while not self._room() and self._inotify is not None:
            time.sleep(WAIT_S)
        return self._inotify is not None and (directory in self.watches.table or bool(self.watches.exhausted))
