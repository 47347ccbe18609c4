"""Told by the kernel what the supervisor would otherwise have to look for every few seconds, idle or not.

That is: the folder or the ledger is not where it was. inotify tells of the ledger's files, of the folder's removal and
of a rename of any directory or symlink on the way to them, /proc/self/mountinfo of what is mounted over them or
unmounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from s3spool.folder.mounts import remote_file_system
from s3spool.ledger.files import SIDES

IN_ATTRIB = 0x4  # the number of links: deleted, or replaced by a rename, while we have it open
IN_CLOSE_WRITE = 0x8
IN_DELETE = 0x200
IN_DELETE_SELF, IN_MOVE_SELF = 0x400, 0x800
IN_IGNORED = 0x8000  # a watch has ended: nothing new
IN_DONT_FOLLOW, IN_MASK_ADD = 0x2000000, 0x20000000
DIRECTORY = IN_DELETE_SELF | IN_MOVE_SELF
LINK = DIRECTORY | IN_ATTRIB | IN_DONT_FOLLOW
# A removed directory does not tell of itself as long as somebody has it open, and we have the folder.
PARENT = DIRECTORY | IN_DELETE
FILE = IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVE_SELF
_LONGEST_WAY = 1000  # symlinks may lead round in circles
_EVENT = struct.Struct("iIII")  # inotify(7): watch, mask, cookie, length of the name that follows
_libc = ctypes.CDLL(None, use_errno=True)


class Tripwire:
    """Only the supervisor's thread uses it."""

    def __init__(self, folder: Path, ledger: Path) -> None:
        """Never raises: what cannot be had leaves `armed` False, and the supervisor looks for itself."""
        self._folder = folder
        self._ledger = ledger
        self.armed = False  #: whether nothing can happen unheard
        self._place = Path()  # of the folder, without symlinks
        self._watches: set[int] = set()
        self._there = self._found()
        self._inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._mounts = -1
        with contextlib.suppress(OSError):
            self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._remote = self._is_remote()

    @property
    def readable(self) -> list[int]:
        """For select(2)."""
        return [self._inotify] if self._inotify >= 0 else []

    @property
    def exceptional(self) -> list[int]:
        """The same: proc(5) says of mountinfo that a change is marked as an exception."""
        return [self._mounts] if self._mounts >= 0 else []

    def arm(self) -> None:
        """Watch what has the names now. What has happened before has to be looked for, afterwards."""
        self._there = self._found()
        self._place = Path(os.path.realpath(self._folder))  # `resolve` raises where symlinks go round in circles
        watches = {self._watch(path, mask) for path, mask in self._places()}
        self.armed = -1 not in watches and self._mounts >= 0 and not self._remote
        for watch in self._watches - watches:
            _libc.inotify_rm_watch(self._inotify, watch)
        self._watches = watches - {-1}

    def disturbed(self, readable: list[int], exceptional: list[int]) -> bool:
        """Whether something has happened, after select(2) gave these; takes it off the kernel's queue."""
        touched = self._inotify in readable and any(self._concerns_us(*event) for event in self._events())
        if self._mounts not in exceptional:
            return touched
        self._remote = self._is_remote()
        return touched or self._remote or self._found() != self._there  # most mounts are nothing to us

    def close(self) -> None:
        for fd in {self._inotify, self._mounts} - {-1}:
            os.close(fd)
        self._inotify = self._mounts = -1
        self.armed = False

    def _places(self) -> Iterator[tuple[Path, int]]:
        for step in _way(self._folder) | _way(self._ledger.parent):
            yield step, LINK if os.path.islink(step) else DIRECTORY  # noqa: PTH114 - never raises
        yield self._place.parent, PARENT
        for side in SIDES:
            yield Path(f"{self._ledger}{side}"), FILE

    def _found(self) -> list[tuple[int, int] | None]:
        """What the two names lead to."""
        found: list[tuple[int, int] | None] = []
        for path in (self._folder, self._ledger):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
        return found

    def _watch(self, path: Path, mask: int) -> int:
        return int(_libc.inotify_add_watch(self._inotify, os.fsencode(path), mask | IN_MASK_ADD))

    def _events(self) -> Iterator[tuple[int, bytes]]:
        """(mask, name) of each."""
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._inotify, 65536)
            place = 0
            while place < len(events):
                _, mask, _, length = _EVENT.unpack_from(events, place)
                place += _EVENT.size + length
                yield mask, events[place - length : place].rstrip(b"\0")

    def _concerns_us(self, mask: int, name: bytes) -> bool:
        if mask & IN_DELETE:
            return name == os.fsencode(self._place.name)  # what else goes there is nothing to us
        return not mask & IN_IGNORED

    def _is_remote(self) -> bool:
        """Where others may change things that no kernel of ours hears of."""
        try:
            return any(remote_file_system(path) for path in (self._folder, self._ledger.parent))
        except OSError:
            return True


def _way(path: Path) -> set[Path]:
    """All directories and symlinks that one passes on the way to `path`, and itself."""
    way: set[Path] = set()
    pending = [path]
    while pending and len(way) < _LONGEST_WAY:
        step = pending.pop()
        if step not in way:
            way.add(step)
            pending.append(step.parent)
            with contextlib.suppress(OSError):
                pending.append(step.parent / step.readlink())
    return way
