"""Adds and removes the inotify watches of directories; detects a directory that was renamed or mounted over."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable

from watchdog.observers.inotify_c import InotifyConstants, Mask, WatchDescriptor

from s3spool.discovery.inotify import Inotify
from s3spool.discovery.watch_table import WatchTable, steps_up
from s3spool.folder.directories import NotAFileError, opened_directory

CREATE = int(InotifyConstants.IN_CREATE)
CLOSE_WRITE = int(InotifyConstants.IN_CLOSE_WRITE)
MOVED_TO = int(InotifyConstants.IN_MOVED_TO)
MOVED_FROM = int(InotifyConstants.IN_MOVED_FROM)
# CREATE is needed for hard links and new directories. No deletions of files: the daemon causes most of them.
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
WATCHED_BYTES = 32 * 1024 * 1024  # memory limit for watches: about 100,000 directories
ATTRIB = int(InotifyConstants.IN_ATTRIB)  # only of directories that hold one that may not be read
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM}  # gone, or not readable, which the scan reports


class DirectoryWatches:
    """The watches of a directory tree. Thread-safe: events, listers and the scan add watches.

    No file system call is made under the lock: a call may hang.
    """

    def __init__(self, root: bytes, rescan: Callable[[str], None]) -> None:
        self._root = root
        self._rescan = rescan
        self._lock = threading.RLock()
        self._inotify: Inotify | None = None
        self._renames = 0  # how often directories may have been renamed
        self._overflowed = False  # since the last walk began
        self._unverified: set[WatchDescriptor] = set()  # since an overflow, these may have another name or be gone
        self._refused = False  # since the last walk began: more watches are not asked for
        self.table = WatchTable()
        self.exhausted = ""  #: why some directories cannot be watched; existing watches stay

    def open(self, inotify: Inotify) -> None:
        self._inotify = inotify

    def close(self) -> None:
        """Any thread may still call the other methods; they do nothing."""
        self._inotify = None

    def clear(self) -> None:
        with self._lock:
            self.table.clear()

    def ensure(self, directory: str) -> None:
        """Watch this directory ("a/b/") if it is not watched yet; the scan calls it for each directory it walks."""
        if self._inotify is None:
            return
        if directory not in self.table:
            if self._refused:
                return
        elif directory and self.is_verified(directory) and self._is_covered(directory):
            self.forget(directory)
        self.add(directory)

    def overflowed(self) -> None:
        """Events of renamed and removed directories may be lost: the next walk verifies the watches.

        They stay: removing 100,000 watches makes as many events, which overflow the queue again.
        """
        with self._lock:
            self._overflowed = True
            self._renames += 1
            self._unverified = self.table.below_root(same_device=True)
            # A mount has a walk of its own, which may hang.
            self._remove(self.table.below_root(same_device=False))

    def begin_walk(self) -> None:
        """The scan visits each directory now: watches may be available again."""
        self._refused = False
        self._overflowed = False

    def end_walk(self) -> None:
        """The scan has visited each directory: unverified ones have left the folder."""
        if not self._refused:
            self.exhausted = ""
        with self._lock:
            if not self._overflowed:
                unverified, self._unverified = self._unverified, set()
                self._remove(unverified)

    def is_verified(self, directory: str) -> bool:
        """Whether this directory is watched under its present name, as far as events tell."""
        wd = self.table.descriptor(directory)
        return wd is not None and wd not in self._unverified

    def removed(self, wd: WatchDescriptor) -> str | None:
        """The kernel has removed this watch; returns its directory."""
        with self._lock:
            return self.table.remove(wd)

    def add(self, directory: str) -> bool:
        """Watch this directory; True also if it is watched already, False if that is impossible now."""
        awaited = False
        while not self.is_verified(directory):
            renames = self._renames
            try:
                with opened_directory(self._root, directory) as fd:
                    # fstat may block. Adding the watch under the lock does not ask the file system again.
                    identity = _identity(fd)
                    with self._lock:
                        # The directory may have been renamed since it was opened.
                        if renames == self._renames:
                            return self._add_opened(directory, fd, identity)
            except NotAFileError:
                return False
            except OSError as exc:
                if exc.errno in {errno.ENOSPC, errno.ENOMEM}:
                    self._refuse(limit_hint(exc))
                elif exc.errno == errno.EACCES and not awaited:
                    awaited = True
                    self._await_permission(directory)
                    continue  # it may have been given before
                elif exc.errno not in GONE:
                    self._rescan("error")  # no descriptor left, for example: the scan tries again
                return False
        return True

    def _await_permission(self, directory: str) -> None:
        """Have the parent's watch report when this directory, which may not be read, gets other permissions."""
        parent, _ = next(steps_up(directory), ("", ""))
        with contextlib.suppress(OSError, NotAFileError), opened_directory(self._root, parent) as fd:
            identity = _identity(fd)
            with self._lock:
                if self._inotify is not None and self.table.identity(parent) == identity:
                    self._inotify.add(b"/proc/self/fd/%d" % fd, Mask(MASK | ATTRIB))

    def _refuse(self, reason: str) -> None:
        self._refused = True
        known, self.exhausted = self.exhausted, reason
        if not known:
            self._rescan("limit")

    def _add_opened(self, directory: str, fd: int, identity: tuple[int, int]) -> bool:
        """The caller holds the lock. Raises OSError."""
        inotify = self._inotify
        if inotify is None:
            return False
        if self.is_verified(directory):
            return True
        known = self.table.descriptor(directory)
        if known is None and self.table.bytes > WATCHED_BYTES:
            self._refuse(f"{len(self.table):,} directories are watched, more would take too much memory")
            return False
        # Not by its path: inotify would follow a symlink that replaced a component.
        wd = inotify.add(b"/proc/self/fd/%d" % fd, MASK)
        self._unverified.discard(wd)
        if wd != known:
            if known is not None:
                self._remove([known])
            # The scan may reach the new name of a renamed directory before the event of the rename.
            self.table.remove(wd)
            self.table.add(wd, directory, identity)
        return True

    def is_current(self, directory: str) -> bool:
        """Whether the watched directory is the one that has this name now."""
        watched, there = self._watched_and_there(directory)
        return there is not None and watched == there

    def _is_covered(self, directory: str) -> bool:
        """Whether another directory has this name now: a mount, for example, makes no event."""
        watched, there = self._watched_and_there(directory)
        return None not in {watched, there} and watched != there

    def _watched_and_there(self, directory: str) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        there = None
        with contextlib.suppress(OSError, NotAFileError), opened_directory(self._root, directory) as fd:
            there = _identity(fd)
        return self.table.identity(directory), there

    def forget(self, directory: str) -> None:
        """Remove the watches of this directory ("a/b/") and all below it."""
        with self._lock:
            self._renames += 1
            self._remove(reversed(self.table.below(directory)))

    def _remove(self, wds: Iterable[WatchDescriptor]) -> None:
        """The caller holds the lock: a watch that another thread adds again may get the same descriptor."""
        gone = [wd for wd in wds if self.table.remove(wd) is not None]
        inotify = self._inotify
        if gone and inotify is not None:
            inotify.remove(gone)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def limit_hint(exc: OSError) -> str:
    sysctl = "max_user_instances" if exc.errno == errno.EMFILE else "max_user_watches"
    if exc.errno in {errno.EMFILE, errno.ENOSPC}:
        return f"the inotify limit is reached; raise fs.inotify.{sysctl} (sysctl) and restart"
    return f"inotify: {exc.strerror}"
