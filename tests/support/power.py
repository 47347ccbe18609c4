"""File systems on loop devices, and the cut of their power. As root."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

SIZE_BYTES = 320 * 2**20  # mkfs.xfs makes none below 300 MiB; the image is sparse
_GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN; ext4 has it as well
_NO_LOG_FLUSH = 2
_MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q"),
}


def cut(place: Path | str) -> None:
    """Stop the file system: what it has not flushed is lost, as in a power cut, and each access fails."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _GOING_DOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(fd)


class CannotMountError(Exception):
    """The reason, for the skip of a test."""


class Disk:
    """An image with a file system; `mount` after a `cut` recovers it as a start of the machine would."""

    def __init__(self, image: Path, place: Path, kind: str) -> None:
        self.place = place
        self._image = image
        program, *options = _MKFS[kind]
        if not shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
            raise CannotMountError(f"{program} is not installed")
        with image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        place.mkdir()
        try:
            _run(program, *options, str(image))
            self.mount()
            self.unmount()
        except RuntimeError as exc:
            image.unlink()
            raise CannotMountError(str(exc)) from exc

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.place))

    def unmount(self) -> None:
        _run("umount", str(self.place))

    def flush(self) -> None:
        _run("sync", "--file-system", str(self.place))

    def close(self) -> None:
        """Also while a process still uses it."""
        if self.place.is_mount():
            _run("umount", "--lazy", str(self.place))
        self._image.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")
