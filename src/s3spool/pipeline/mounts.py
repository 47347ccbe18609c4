"""What lies below a path: a file system that inotify sees all of, or not."""

from __future__ import annotations

import re
from pathlib import Path

REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gpfs"}


def remote_file_system(root: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system below `root` if inotify cannot see all changes there, else ""."""
    best, kind = "", ""
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        inside = str(root) == point or str(root).startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind if kind in REMOTE or kind.startswith("fuse") else ""
