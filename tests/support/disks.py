"""Small file systems of a test's own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(place: Path, size: str = "1m", *options: str) -> Iterator[Path]:
    """A tmpfs at `place`; skips the test where none may be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    mount(place, size, *options)
    try:
        yield place
    finally:
        unmount(place)


def mount(place: Path, size: str = "1m", *options: str) -> None:
    done = _run("mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "s3spool-test", str(place))
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def remount(place: Path, options: str) -> None:
    done = _run("mount", "-o", f"remount,{options}", str(place))
    assert done.returncode == 0, done.stderr


def unmount(place: Path) -> None:
    """Also where somebody still uses it, and as often as something is mounted there."""
    while place.is_mount():
        _run("umount", "--lazy", str(place))


def fill(directory: Path) -> Path:
    """Take all room that there is; remove the file to give it back."""
    filler = directory / ".filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return filler


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
