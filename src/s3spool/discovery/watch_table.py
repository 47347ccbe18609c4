"""Which directory each inotify watch is for, and which watches lie below a directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import WatchDescriptor

WATCH_BYTES = 300  # memory per watch, without its path


class Watched(NamedTuple):
    """A directory ("" or "a/b/"), with its device and inode when it was watched."""

    directory: str
    device: int
    inode: int


class WatchTable:
    """The caller holds a lock for changes."""

    def __init__(self) -> None:
        self._of: dict[WatchDescriptor, Watched] = {}
        self._wd_of: dict[str, WatchDescriptor] = {}
        # directory -> children with watches at or below them: a rename must not search the whole table
        self._below: dict[str, set[str]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, directory: str) -> bool:
        return directory in self._wd_of

    def directory(self, wd: WatchDescriptor) -> str | None:
        watched = self._of.get(wd)
        return None if watched is None else watched.directory

    def descriptor(self, directory: str) -> WatchDescriptor | None:
        return self._wd_of.get(directory)

    def identity(self, directory: str) -> tuple[int, int] | None:
        """Device and inode."""
        wd = self._wd_of.get(directory)
        watched = None if wd is None else self._of.get(wd)
        return None if watched is None else watched[1:]

    def add(self, wd: WatchDescriptor, directory: str, identity: tuple[int, int]) -> None:
        self._of[wd] = Watched(directory, *identity)
        self._wd_of[directory] = wd
        self.bytes += WATCH_BYTES + sys.getsizeof(directory)
        for parent, child in steps_up(directory):
            children = self._below.setdefault(parent, set())
            if child in children:
                break
            children.add(child)

    def remove(self, wd: WatchDescriptor) -> str | None:
        """Returns the directory of this watch."""
        watched = self._of.pop(wd, None)
        if watched is None:
            return None
        directory = watched.directory
        if self._wd_of.get(directory) == wd:
            del self._wd_of[directory]
        self.bytes -= WATCH_BYTES + sys.getsizeof(directory)
        for parent, child in steps_up(directory):
            if child in self._wd_of or child in self._below:
                break
            if children := self._below.get(parent):
                children.discard(child)
                if not children:
                    del self._below[parent]
        return directory

    def below(self, directory: str) -> list[WatchDescriptor]:
        """The watches of this directory and all below it, deepest last."""
        found = []
        pending = [directory]
        while pending:
            path = pending.pop()
            pending.extend(self._below.get(path, ()))
            if (wd := self._wd_of.get(path)) is not None:
                found.append(wd)
        return found

    def below_root(self, *, same_device: bool) -> set[WatchDescriptor]:
        """The watches of all directories below the root that are on its device, or are not."""
        device, _ = self.identity("") or (0, 0)
        return {
            wd for wd, watched in self._of.items() if watched.directory and (watched.device == device) is same_device
        }

    def clear(self) -> None:
        self._of.clear()
        self._wd_of.clear()
        self._below.clear()
        self.bytes = 0


def steps_up(directory: str) -> Iterator[tuple[str, str]]:
    """("a/b/", "a/b/c/"), ("a/", "a/b/"), ("", "a/") for "a/b/c/"; nothing for the root."""
    while directory:
        parent = directory[: directory.rfind("/", 0, -1) + 1]
        yield parent, directory
        directory = parent
