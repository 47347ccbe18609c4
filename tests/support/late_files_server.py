"""The process behind `LateFiles`: a network file system whose caches are some seconds old."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections import deque
from typing import Any

import mfusepy

from support.slow_files_server import SlowServer

LOOK_S = 0.2  # how often the directory is looked at


class LateServer(SlowServer):
    """New entries of other hosts are seen late; removed ones stay as long, but cannot be opened."""

    def __init__(self, backing: str, orders: str, late_s: float) -> None:
        super().__init__(backing, orders)
        self._late_s = late_s
        self._looks: deque[tuple[float, dict[str, os.stat_result]]] = deque([(0.0, {})])
        self._own: dict[str, tuple[float, bool]] = {}  # what this host did: when, and whether the name is there now
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            now, tree = time.monotonic(), {}
            for directory, names, files in os.walk(self._backing):
                for name in (*names, *files):
                    path = os.path.join(directory, name)
                    try:
                        tree[path[len(self._backing) :]] = os.lstat(path)
                    except FileNotFoundError:
                        continue
            self._looks.append((now, tree))
            while self._looks[1][0] < now - self._late_s:
                self._looks.popleft()
            time.sleep(LOOK_S)

    def _did(self, path: str, *, there: bool) -> None:
        self._own[path] = time.monotonic(), there

    def _seen(self) -> dict[str, os.stat_result | None]:
        """The entries as this host sees them; None: made by itself a moment ago."""
        seen: dict[str, os.stat_result | None] = dict(self._looks[0][1])
        for path, (at, there) in list(self._own.items()):
            if time.monotonic() - at > self._late_s + 2 * LOOK_S:
                del self._own[path]
            elif there:
                seen.setdefault(path, None)
            else:
                seen.pop(path, None)
        return seen

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        seen = {"/": None, **self._seen()}
        if path not in seen:
            raise mfusepy.FuseOSError(errno.ENOENT)
        status = seen[path]
        try:
            status = os.lstat(self._backing + path)
        except FileNotFoundError:
            if status is None:
                raise
        fields = {
            f"st_{name}": getattr(status, f"st_{name}") for name in ("mode", "nlink", "size", "uid", "gid", "ino")
        }
        return fields | {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}

    def readdir(self, path: str, fh: int) -> list[Any]:
        here = path.rstrip("/")
        entries: list[Any] = []
        for each in self._seen():
            if each.rpartition("/")[0] == here:
                with contextlib.suppress(FileNotFoundError):
                    entries.append((each[len(here) + 1 :], self.getattr(each), 0))
        return entries

    def open(self, path: str, flags: int) -> int:
        if path not in self._seen():
            raise mfusepy.FuseOSError(errno.ENOENT)
        return super().open(path, flags)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._did(path, there=False)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        super().rename(old, new, flags)
        self._did(old, there=False)
        self._did(new, there=True)

    def create(self, path: str, mode: int, fi: object = None) -> int:
        fd = super().create(path, mode, fi)
        self._did(path, there=True)
        return fd


if __name__ == "__main__":
    place, backing, orders, late_s = sys.argv[1:]
    server = LateServer(backing, orders, float(late_s))
    mfusepy.FUSE(server, place, foreground=True, max_threads=20, allow_other=os.geteuid() == 0, use_ino=True)
