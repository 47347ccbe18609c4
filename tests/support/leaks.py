"""What a test left running."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path


def live_threads() -> set[threading.Thread]:
    """Threads that would hold the interpreter at exit."""
    return {thread for thread in threading.enumerate() if thread.is_alive() and not thread.daemon}


def child_processes() -> dict[int, str]:
    """Our children's command lines by process id; a zombie counts, nobody waited for it."""
    children: dict[int, str] = {}
    for thread in Path("/proc/self/task").iterdir():
        # A thread that ends hands its children to another one.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in map(int, (thread / "children").read_text().split()):
                children[pid] = _command(Path(f"/proc/{pid}"))
    return {pid: command for pid, command in children.items() if command}


def _command(process: Path) -> str:
    """Empty if it has ended while we looked."""
    try:
        # "pid (name) state ...": the name may hold spaces and parentheses.
        state = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # execve() closes our pipe before the new command line can be read: for an instant it is empty.
    return command.decode(errors="replace").strip() or ("(zombie)" if state in "ZX" else "(starting)")
