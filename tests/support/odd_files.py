"""What else than a regular file may lie in a folder, and other processes that have a file open."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest


def make_odd(path: Path, kind: str, target: Path = Path("nowhere")) -> None:
    """A symlink (to `target`), a fifo, a socket, a directory or a device; skips the test where only root may."""
    match kind:
        case "symlink" | "dangling symlink":
            path.symlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "socket":
            # A socket's path may have 107 bytes, pytest's directories are longer.
            here = os.open(path.parent, os.O_RDONLY)
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
        case "device":
            try:
                os.mknod(path, 0o020666, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("device files need root")
        case _:
            raise AssertionError(kind)


_PROGRAM = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
if sys.argv[2] == "lease":
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("open", flush=True)
sys.stdin.readline()
os.close(fd)
print("closed", flush=True)
sys.stdin.readline()
"""


class OtherProcess:
    """Has a file open for writing until `close`; with `lease` it holds a write lease on it."""

    def __init__(self, file: Path, *, lease: bool = False) -> None:
        command = [sys.executable, "-c", _PROGRAM, str(file), "lease" if lease else ""]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._heard("open\n")

    def close(self) -> None:
        """The file; it is closed when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.write("close\n")
        self._process.stdin.flush()
        self._heard("closed\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _heard(self, line: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == line


@contextlib.contextmanager
def descriptors_kept() -> Iterator[None]:
    """Fail where a descriptor stays open."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before
