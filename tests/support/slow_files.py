"""A FUSE file system whose chosen names answer late, or not before they are told to; and one with old caches.

`SlowFiles` starts it (slow_files_server.py), and unmounts whatever happens.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from support.waiting import eventually


class SlowFiles:
    """Shows the directory `backing` at `place`. As a context manager: mounted inside of it.

    Operations: open, read, getattr, readdir, unlink. A held one blocks until `release`, or the end.
    """

    def __init__(self, place: Path, home: Path) -> None:
        """`home` holds what is shown, and the orders."""
        self.place = place
        self.backing = home / "backing"
        self._orders = home / "orders"
        self._server: tuple[str, ...] = ("support.slow_files_server",)
        self._process: subprocess.Popen[bytes] | None = None

    def hold(self, operation: str, name: str = "", *, seconds: float | None = None) -> None:
        """Every such call for a path below the mount that ends with `name` waits: so long, or until `release`."""
        order = self._orders / f"{operation}:{name.replace('/', '|')}"
        hidden = order.with_name(f".{order.name}")
        hidden.write_text("" if seconds is None else str(seconds))
        hidden.rename(order)

    def release(self) -> None:
        """All calls go on, and later ones are not held."""
        for order in self._orders.iterdir():
            order.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        if not Path("/dev/fuse").exists() or shutil.which("fusermount3") is None:
            pytest.skip("no FUSE here (Debian's fuse3)")
        for directory in (self.place, self.backing, self._orders):
            directory.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._server[0], self.place, self.backing, self._orders, *self._server[1:]],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "FUSE_LIBRARY_NAME": "fuse3"},  # libfuse 2 may be there as well
        )
        eventually(self._mounted, message=f"{self.place} mounted")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        subprocess.run(["fusermount3", "-uz", self.place], check=False, capture_output=True)
        if self._process is not None:
            # Once it is dead the kernel answers all that is still asked.
            self._process.kill()
            self._process.wait()

    def _mounted(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the file system ended"
        return os.path.ismount(self.place)


class LateFiles(SlowFiles):
    """Shows the directory `backing` at `place` as a host sees it whose caches are `late_s` seconds old."""

    def __init__(self, place: Path, home: Path, backing: Path, late_s: float) -> None:
        super().__init__(place, home)
        self.backing = backing
        self._server = ("support.late_files_server", str(late_s))
