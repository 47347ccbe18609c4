"""The mounts at and below a path, and whether inotify sees all changes there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs"}
MOUNTS = Path("/proc/self/mountinfo")


class _Mount(NamedTuple):
    point: str
    device: str  # "major:minor"
    kind: str  # of its file system


def remote_file_system(root: Path, mounts: Path = MOUNTS) -> str:
    """The type of the file system of `root` if inotify cannot see all changes there, else ""."""
    kind = _mount_of(root, _mounts(mounts)).kind
    return kind if kind in REMOTE or kind.startswith("fuse") else ""


def other_devices(root: Path, mounts: Path = MOUNTS) -> tuple[str, ...]:
    """The directories below `root`, as "a/b/", where another device is mounted. Accesses no device: it may hang."""
    found = list(_mounts(mounts))
    device = _mount_of(root, found).device
    above = str(root).rstrip("/") + "/"
    inside = {f"{m.point[len(above) :]}/" for m in found if m.point.startswith(above) and m.device != device}
    return tuple(sorted(inside))


def _mounts(path: Path) -> Iterator[_Mount]:
    for line in path.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        yield _Mount(point, fields[2], right.split(" ")[0])


def _mount_of(root: Path, mounts: Iterator[_Mount] | list[_Mount]) -> _Mount:
    best = _Mount("", "", "")
    for mount in mounts:
        inside = str(root) == mount.point or str(root).startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best
