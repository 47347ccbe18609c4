"""What the kernel knows of a process."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of all threads, living and gone; in steps of a clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def peak_rss_bytes(pid: int) -> int:
    """The high-water mark; 0 once the process is gone."""
    return _status(Path(f"/proc/{pid}/status"), "VmHWM") * 1024


def rss_bytes(pid: int) -> int:
    return _status(Path(f"/proc/{pid}/status"), "VmRSS") * 1024


def voluntary_switches(pid: int) -> int:
    """Of the living threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_status(task / "status", "voluntary_ctxt_switches") for task in tasks)


def threads_ns(pid: int) -> dict[int, int]:
    """CPU time of each living thread in nanoseconds: the first field of /proc/PID/task/TID/schedstat."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in tasks}


def filesystem(path: Path) -> str:
    """The type of the file system that holds `path`, as in "ext4"."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split(" ")
        if path.resolve().is_relative_to(mount_point) and len(mount_point) >= len(best[0]):
            best = (mount_point, kind)
    return best[1]


def _status(file: Path, name: str) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        found = re.search(rf"^{name}:\s+(\d+)", file.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0
