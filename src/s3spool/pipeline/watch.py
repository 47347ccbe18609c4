"""Inotify through watchdog: turns what happens in the folder into hints, and owns up when it may have missed some.

Built on watchdog's InotifyFD, the layer below its Observer: it tells us of queue overflows, which the Observer
keeps to itself, and costs a sixth of the time an event.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
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

from s3spool.pipeline.bell import Answer, Bell
from s3spool.pipeline.echo import Echo
from s3spool.pipeline.folder import NotAFileError, listed, opened_directory
from s3spool.pipeline.names import Names
from s3spool.pipeline.settle import Quiet

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
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM}  # or not for us, which the scan says
log = structlog.get_logger()

Hint = Callable[[str, Quiet], None]


class WatchUnavailableError(Exception):
    """Inotify cannot be used here; `str()` says why and what to do."""


class Watch(WatchCallback):
    """Watches a directory tree.

    `hint(path, quiet)`, `rescan(reason)` and `lost()` are called on watchdog's thread: they must not block. The maps
    are guarded by a lock, because the scan arms directories that the events did not tell of.
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
    ) -> None:
        self._root = os.fsencode(root)
        self.names = names
        self._recursive = recursive
        self._hint = hint
        self._rescan = rescan
        self._lost = lost
        self._lock = threading.RLock()
        self._directory_of: dict[WatchDescriptor, str] = {}  # "" or "a/b/"
        self._watch_of: dict[str, WatchDescriptor] = {}
        self._identity_of: dict[WatchDescriptor, tuple[int, int]] = {}  # device and inode
        self._inotify: InotifyFD | None = None
        self._bell = Bell()
        self._echo: Echo | None = None
        self.overflows = 0
        self.exhausted = ""  # why not all directories could be watched

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
        with contextlib.suppress(OSError):
            self._echo = Echo(self._inotify, self)
            self._echo.cause()  # to learn whether it comes back

    def stop(self) -> None:
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.stop()
            inotify.join(5.0)
        echo, self._echo = self._echo, None
        if echo is not None:
            echo.close()
        self._bell.answer()  # by the thread that stops it: there is nobody else any more
        with self._lock:
            self._directory_of.clear()
            self._watch_of.clear()
            self._identity_of.clear()

    def alive(self) -> bool:
        return self._inotify is not None and self._inotify.is_alive()

    def ping(self, answer: Answer) -> None:
        """Call back from watchdog's thread, over an event that we cause; at once where that is not to be had."""
        echo = self._echo
        self._bell.ring(answer)
        if echo is None or not echo.cause():
            self._bell.answer()

    def directories(self) -> int:
        return len(self._watch_of)

    def ensure(self, directory: str) -> None:
        """Watch this directory ("a/b/") if it is not watched yet; called by the scan for each one it walks."""
        if self._inotify is None or self.exhausted:
            return
        if directory and self._is_covered(directory):
            self._disarm(directory)
        if directory not in self._watch_of:
            self._add(directory)

    # WatchCallback: called on watchdog's thread, where an exception would end the watching for good.

    def on_event(self, event: InotifyEvent) -> None:
        try:
            self._handle(event)
        except Exception:
            log.exception("library.warning", message="a file system event could not be handled; rescanning")
            self._rescan("error")

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        with self._lock:
            self._identity_of.pop(wd, None)
            directory = self._directory_of.pop(wd, None)
            if directory is not None and self._watch_of.get(directory) == wd:
                del self._watch_of[directory]
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
        if self._echo is not None and self._echo.is_it(event):
            self._bell.answer()
            return
        directory = self._directory_of.get(event.wd)
        if directory is None:
            return
        mask = event.mask
        if mask & ISDIR and event.name:
            self._handle_directory(mask, f"{directory}{os.fsdecode(event.name)}")
        elif mask & (CLOSE_WRITE | MOVED_TO | CREATE):
            path = directory + os.fsdecode(event.name)
            if self.names.file(path):
                self._hint(path, Quiet.CREATED if mask & CREATE else Quiet.CHANGED)
        elif mask & ROOT_GONE and not directory:
            self._lost()
        elif mask & UNMOUNTED:
            self._rescan("unmounted")  # what was below it is there again

    def _handle_directory(self, mask: int, path: str) -> None:
        if not self._recursive:
            return
        if mask & MOVED_FROM:
            self._disarm(f"{path}/")
        elif mask & (CREATE | MOVED_TO) and self.names.directory(path):
            if f"{path}/" in self._watch_of:
                if mask & CREATE and self._is_current(f"{path}/"):
                    return  # who armed it has looked: a deep new tree is not walked again from each of its levels
                # Another directory had this name; its watch may live on for as long as somebody has it open.
                self._disarm(f"{path}/")
            # Files may have arrived before the watch did, and make no event of their own.
            self._arm(f"{path}/")

    def _arm(self, directory: str) -> None:
        """Watch a new directory and all below it, and hint at what it holds.

        Without recursion: a tree may be deeper than Python's stack.
        """
        if not self._recursive or not self._add(directory):
            return
        pending = [directory]
        while pending:
            current = pending.pop()
            try:
                with opened_directory(self._root, current) as fd, listed(fd) as entries:
                    for entry in entries:
                        path = current + entry.name
                        if entry.is_dir(follow_symlinks=False):
                            if self.names.directory(path) and self._add(f"{path}/"):
                                pending.append(f"{path}/")
                        elif self.names.file(path):
                            self._hint(path, Quiet.CREATED)
            except NotAFileError:
                continue
            except OSError as exc:
                if exc.errno not in GONE:
                    self._rescan("error")

    def _add(self, directory: str) -> bool:
        inotify = self._inotify
        if inotify is None:
            return False
        with self._lock:
            if directory in self._watch_of:
                return True
            try:
                with opened_directory(self._root, directory) as fd:
                    identity = _identity(fd)
                    # Not its path: inotify would follow a symlink that was swapped in on the way.
                    wd = inotify.add_callback(b"/proc/self/fd/%d" % fd, MASK, self, _callback_id(directory))
            except NotAFileError:
                return False
            except OSError as exc:
                if exc.errno in {errno.ENOSPC, errno.ENOMEM}:
                    self.exhausted = _limit_hint(exc)
                    self._rescan("limit")
                elif exc.errno not in GONE:
                    self._rescan("error")  # no descriptor left, say: the scan comes back to it until it can be armed
                return False
            if wd < 0:
                # watchdog passes over EACCES, and notes a watch all the same; the scan reports the directory.
                inotify.remove_callbacks([(wd, _callback_id(directory))])
                return False
            before = self._directory_of.get(wd)
            if before is not None:
                # The scan came to the new name of a renamed directory before its events did.
                del self._watch_of[before]
                inotify.remove_callbacks([(wd, _callback_id(before))])
            self._directory_of[wd] = directory
            self._watch_of[directory] = wd
            self._identity_of[wd] = identity
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
        with self._lock:
            wd = self._watch_of.get(directory)
            return (None if wd is None else self._identity_of.get(wd)), there

    def _disarm(self, directory: str) -> None:
        """Forget this directory ("a/b/") and all below it; "" stands for all below the root."""
        inotify = self._inotify
        with self._lock:
            gone = [(path, wd) for path, wd in self._watch_of.items() if path and path.startswith(directory)]
            for path, wd in gone:
                del self._watch_of[path]
                self._directory_of.pop(wd, None)
                self._identity_of.pop(wd, None)
        if inotify is not None and gone:
            with contextlib.suppress(OSError):
                inotify.remove_callbacks([(wd, _callback_id(path)) for path, wd in gone])


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
