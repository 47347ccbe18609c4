"""Inotify through watchdog: turns what happens in the folder into hints, and owns up when it may have missed some.

Built on watchdog's InotifyFD, the layer below its Observer: it tells us of queue overflows, which the Observer
keeps to itself, and costs a sixth of the time an event.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

from s3spool.discovery.deep_directories import DeepDirectories
from s3spool.discovery.inotify_self_test import InotifySelfTest
from s3spool.discovery.lister import Lister
from s3spool.discovery.watch_table import WatchTable, steps_up
from s3spool.folder.directories import NotAFileError, listed, opened_directory
from s3spool.folder.filters import Names
from s3spool.heartbeat import Answer, Bell
from s3spool.queue.settle import SettleReason

CREATE = int(InotifyConstants.IN_CREATE)
CLOSE_WRITE = int(InotifyConstants.IN_CLOSE_WRITE)
MOVED_TO = int(InotifyConstants.IN_MOVED_TO)
MOVED_FROM = int(InotifyConstants.IN_MOVED_FROM)
ISDIR = int(InotifyConstants.IN_ISDIR)
UNMOUNTED = int(InotifyConstants.IN_UNMOUNT)
ROOT_GONE = int(InotifyConstants.IN_DELETE_SELF | InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT)
# CREATE is needed for hard links and new directories; deletions of files are not asked for, we cause most of them.
MASK = Mask(
    CREATE
    | CLOSE_WRITE
    | MOVED_TO
    | MOVED_FROM
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_ONLYDIR
    | InotifyConstants.IN_EXCL_UNLINK
)
WATCHED_BYTES = 64 * 1024 * 1024  # the memory that watches may take: some 100,000 directories
LOOK_ENTRIES = 1000  # after so many names of a directory: is it still there, is there room for more
WAIT_S = 0.05  # for room
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM}  # or not for us, which the scan says
log = structlog.get_logger()
# We tell of an overflow ourselves, with what follows from it.
logging.getLogger(InotifyFD.__module__).addFilter(lambda record: "overflowed" not in record.getMessage())

Hint = Callable[[str, SettleReason], None]


class WatchUnavailableError(Exception):
    """Inotify cannot be used here; `str()` says why and what to do."""


class Watch(WatchCallback):
    """Watches a directory tree.

    `hint(path, quiet)`, `rescan(reason)` and `lost()` are called on watchdog's thread and the listers': they must not
    block. The maps are guarded by a lock, because the scan and the listers arm directories too. No file system is
    asked anything while it is held, and watchdog's thread asks only the root's: another one may hang.
    """

    def __init__(
        self,
        root: Path,
        names: Names,
        *,
        recursive: bool,
        hint: Hint,
        rescan: Callable[[str], None],
        lost: Callable[[], None],
        deep: DeepDirectories | None = None,
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`room`: whether what a listing finds should go on; else it waits, so that events keep their room."""
        self._deep = deep or DeepDirectories()
        self._room = room
        self._root = os.fsencode(root)
        self.names = names
        self._recursive = recursive
        self._hint = hint
        self._rescan = rescan
        self._lost = lost
        self._lock = threading.RLock()
        self._table = WatchTable()
        self._disarmals = 0
        self._device = 0  # the root's
        self._inotify: InotifyFD | None = None
        self._bell = Bell()
        self._self_test: InotifySelfTest | None = None
        self.overflows = 0
        self.exhausted = ""  # why not all directories can be watched; what is watched stays watched
        self._refused = False  # since the last walk began: no use in asking for each directory
        self._lister = Lister("watch-new", self._list, rescan)
        self._mounts_lister = Lister("watch-mounts", self._list, rescan)  # what may hang, holds up its like alone

    def start(self) -> None:
        """Watch the root; raises WatchUnavailableError. What is in it already, directories too, is the scan's business.

        It arms each directory before it lists it, so nothing falls between the two, and a million files that wait
        do not hold the start up.
        """
        try:
            self._inotify = InotifyFD()
        except OSError as exc:
            raise WatchUnavailableError(_limit_hint(exc)) from exc
        self._inotify.name = "watch"
        self._inotify.start()
        if not self._add(""):
            self.stop()
            raise WatchUnavailableError(self.exhausted or f"{os.fsdecode(self._root)} cannot be watched")
        self._device = (self._table.identity("") or (0,))[0]
        with contextlib.suppress(OSError):
            self._self_test = InotifySelfTest(self._inotify, self)
            self._self_test.cause()  # to learn whether it comes back

    def stop(self) -> None:
        self._lister.close()
        self._mounts_lister.close()
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.stop()
            inotify.join(5.0)
        echo, self._self_test = self._self_test, None
        if echo is not None:
            echo.close()
        self._bell.answer()  # by the thread that stops it: there is nobody else any more
        with self._lock:
            self._table.clear()

    def alive(self) -> bool:
        return self._inotify is not None and self._inotify.is_alive()

    def ping(self, answer: Answer) -> None:
        """Call back from watchdog's thread, over an event that we cause; at once where that is not to be had."""
        echo = self._self_test
        self._bell.ring(answer)
        if echo is None or not echo.cause():
            self._bell.answer()

    def directories(self) -> int:
        return len(self._table)

    def ensure(self, directory: str) -> None:
        """Watch this directory ("a/b/") if it is not watched yet; called by the scan for each one it walks."""
        if self._inotify is None or self._refused:
            return
        if directory and self._is_covered(directory):
            self._disarm(directory)
        if directory not in self._table:
            self._add(directory)

    def begin_walk(self) -> None:
        """The scan comes to each directory now: there may be watches for them again."""
        self._refused = False

    def end_walk(self) -> None:
        """The scan came to each directory."""
        if not self._refused:
            self.exhausted = ""

    # WatchCallback: called on watchdog's thread, where an exception would end the watching for good.

    def on_event(self, event: InotifyEvent) -> None:
        try:
            self._handle(event)
        except Exception:
            log.exception("library.warning", message="a file system event could not be handled; rescanning")
            self._rescan("error")

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        with self._lock:
            directory = self._table.remove(wd)
        if directory == "":
            self._lost()

    def on_queue_overflow(self) -> None:
        self._bell.answer()  # its event may be among what was lost
        self.overflows += 1
        log.warning("watch.overflowed", overflows=self.overflows)
        # A rename may be among what was lost: trust no directory's name until the scan has come to it (`ensure`).
        self._disarm("")
        self._rescan("overflow")

    def _handle(self, event: InotifyEvent) -> None:
        if self._self_test is not None and self._self_test.is_it(event):
            self._bell.answer()
            return
        directory = self._table.directory(event.wd)
        if directory is None:
            return
        mask = event.mask
        if mask & ISDIR and event.name:
            self._handle_directory(mask, f"{directory}{os.fsdecode(event.name)}")
        elif mask & (CLOSE_WRITE | MOVED_TO | CREATE):
            path = directory + os.fsdecode(event.name)
            if self.names.file(path):
                self._hint(path, SettleReason.CREATED if mask & CREATE else SettleReason.CHANGED)
        elif mask & ROOT_GONE and not directory:
            self._lost()
        elif mask & UNMOUNTED:
            self._rescan("unmounted")  # what was below it is there again

    def _handle_directory(self, mask: int, path: str) -> None:
        if not self._recursive:
            return
        directory = f"{path}/"
        if mask & MOVED_FROM:
            self._disarm(directory)
        elif mask & (CREATE | MOVED_TO) and self.names.directory(path):
            if self.names.too_deep(path):
                self._deep.note(path)
            elif self._is_mounted(directory):
                self._disarm(directory)
                self._mounts_lister.add(directory)
            elif not (mask & CREATE and directory in self._table and self._is_current(directory)):
                # Another directory may have had this name; its watch lives on for as long as somebody has it open.
                self._disarm(directory)
                if self._add(directory) or self.exhausted:
                    # Files may have arrived before the watch did, and make no event of their own.
                    self._lister.add(directory)

    def _is_mounted(self, directory: str) -> bool:
        """Whether it was made in a directory that another file system holds than the root's."""
        parent, _ = next(steps_up(directory))
        return (self._table.identity(parent) or (self._device,))[0] != self._device

    def _list(self, directory: str) -> None:
        """Watch a new directory and all below it, and hint at what it holds. On a lister's thread."""
        pending = [directory]
        while pending and self._inotify is not None:
            current = pending.pop()
            if not self._add(current) and not self.exhausted:
                continue
            try:
                self._list_one(current, pending)
            except NotAFileError:
                continue
            except OSError as exc:
                if exc.errno not in GONE:
                    self._rescan("error")

    def _list_one(self, directory: str, pending: list[str]) -> None:
        """Its subdirectories go to `pending`. Raises NotAFileError, OSError."""
        with opened_directory(self._root, directory) as fd, listed(fd) as entries:
            for number, entry in enumerate(entries):
                if number % LOOK_ENTRIES == 0 and not self._goes_on(directory):
                    return
                path = directory + entry.name
                if not entry.is_dir(follow_symlinks=False):
                    if self.names.file(path):
                        self._hint(path, SettleReason.CREATED)
                elif self.names.directory(path):
                    if self.names.too_deep(path):
                        self._deep.note(path)
                    elif len(pending) < LOOK_ENTRIES:
                        pending.append(f"{path}/")
                    else:
                        self._lister.add(f"{path}/")

    def _goes_on(self, directory: str) -> bool:
        """Wait for room; False when the directory has gone meanwhile, or another name: then it is listed as that."""
        while not self._room() and self._inotify is not None:
            time.sleep(WAIT_S)
        return self._inotify is not None and (directory in self._table or bool(self.exhausted))

    def _add(self, directory: str) -> bool:
        """Watch it; False where it cannot be, or not at the moment. True also if it is watched already."""
        while directory not in self._table:
            disarmals = self._disarmals
            try:
                with opened_directory(self._root, directory) as fd:
                    # This asks the file system, which may take its time: adding the watch then does not ask again.
                    identity = _identity(fd)
                    with self._lock:
                        # Else it may have got another name since it was opened, and its events have been handled.
                        if disarmals == self._disarmals:
                            return self._added(directory, fd, identity)
            except NotAFileError:
                return False
            except OSError as exc:
                if exc.errno in {errno.ENOSPC, errno.ENOMEM}:
                    self._refuse(_limit_hint(exc))
                elif exc.errno not in GONE:
                    self._rescan("error")  # no descriptor left, say: the scan comes back to it until it can be armed
                return False
        return True

    def _refuse(self, reason: str) -> None:
        self._refused = True
        known, self.exhausted = self.exhausted, reason
        if not known:
            self._rescan("limit")

    def _added(self, directory: str, fd: int, identity: tuple[int, int]) -> bool:
        """The caller holds the lock. Raises OSError."""
        inotify = self._inotify
        if inotify is None:
            return False
        if directory in self._table:
            return True
        if self._table.bytes > WATCHED_BYTES:
            self._refuse(f"{len(self._table):,} directories are watched, more would take too much memory")
            return False
        # Not its path: inotify would follow a symlink that was swapped in on the way.
        wd = inotify.add_callback(b"/proc/self/fd/%d" % fd, MASK, self, _callback_id(directory))
        if wd < 0:
            # watchdog passes over EACCES, and notes a watch all the same; the scan reports the directory.
            inotify.remove_callbacks([(wd, _callback_id(directory))])
            return False
        before = self._table.remove(wd)
        if before is not None:
            # The scan came to the new name of a renamed directory before its events did.
            inotify.remove_callbacks([(wd, _callback_id(before))])
        self._table.add(wd, directory, identity)
        return True

    def _is_current(self, directory: str) -> bool:
        """Whether what is watched under this name is the directory that has it now."""
        watched, there = self._watched_and_there(directory)
        return there is not None and watched == there

    def _is_covered(self, directory: str) -> bool:
        """Whether another directory has the name of one that is watched: mounted over it, say, which nobody tells."""
        watched, there = self._watched_and_there(directory)
        return None not in {watched, there} and watched != there

    def _watched_and_there(self, directory: str) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        there = None
        with contextlib.suppress(OSError, NotAFileError), opened_directory(self._root, directory) as fd:
            there = _identity(fd)
        return self._table.identity(directory), there

    def _disarm(self, directory: str) -> None:
        """Forget this directory ("a/b/") and all below it; "" stands for all below the root."""
        inotify = self._inotify
        with self._lock:
            self._disarmals += 1
            gone = self._table.below(directory)
            for wd, _ in reversed(gone):
                self._table.remove(wd)
            if inotify is not None and gone:
                # Under the lock: a directory that another thread watches again meanwhile may have the same descriptor.
                with contextlib.suppress(OSError):
                    inotify.remove_callbacks([(wd, _callback_id(path)) for wd, path in gone])


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _callback_id(directory: str) -> CallbackId:
    """One for each name: a renamed directory keeps its watch, which then has two names for a moment."""
    return CallbackId(hash(directory))


def _limit_hint(exc: OSError) -> str:
    sysctl = "max_user_instances" if exc.errno == errno.EMFILE else "max_user_watches"
    if exc.errno in {errno.EMFILE, errno.ENOSPC}:
        return f"the inotify limit is reached; raise fs.inotify.{sysctl} (sysctl) and restart"
    return f"inotify: {exc.strerror}"
