"""The process behind slow_files.py: shows a directory through FUSE, and holds calls back as ordered."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy  # loads libfuse: only this process needs it

LOOK_S = 0.02  # how often a held call looks whether it may go on


class SlowServer(mfusepy.Operations):  # type: ignore[misc] # untyped
    use_ns = True

    def __init__(self, backing: str, orders: str) -> None:
        self._backing = backing
        self._orders = orders

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        self._wait("getattr", path)
        status = os.lstat(self._backing + path)
        fields: dict[str, Any] = {f"st_{name}": getattr(status, f"st_{name}") for name in _FIELDS}
        return fields | {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}

    def readdir(self, path: str, fh: int) -> list[str]:
        self._wait("readdir", path)
        return [".", "..", *os.listdir(self._backing + path)]

    def open(self, path: str, flags: int) -> int:
        self._wait("open", path)
        return os.open(self._backing + path, flags & ~os.O_NOFOLLOW)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._wait("read", path)
        return os.pread(fh, size, offset)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def unlink(self, path: str) -> None:
        self._wait("unlink", path)
        Path(self._backing + path).unlink()

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        if flags:
            raise mfusepy.FuseOSError(errno.EINVAL)
        Path(self._backing + old).rename(self._backing + new)

    def create(self, path: str, mode: int, fi: object = None) -> int:
        return os.open(self._backing + path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def mkdir(self, path: str, mode: int) -> None:
        Path(self._backing + path).mkdir(mode)

    def _wait(self, operation: str, path: str) -> None:
        started = time.monotonic()
        while time.monotonic() - started < self._held_s(operation, path):
            time.sleep(LOOK_S)

    def _held_s(self, operation: str, path: str) -> float:
        for order in os.listdir(self._orders):
            wanted, _, name = order.partition(":")
            if wanted == operation and path.endswith(name.replace("|", "/")):
                with contextlib.suppress(FileNotFoundError):
                    return float(Path(self._orders, order).read_text() or "inf")
        return 0.0


_FIELDS = ("mode", "nlink", "size", "uid", "gid")

if __name__ == "__main__":
    place, backing, orders = sys.argv[1:]
    mfusepy.FUSE(SlowServer(backing, orders), place, foreground=True, max_threads=100, allow_other=os.geteuid() == 0)
