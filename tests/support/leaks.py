"""What a test left running."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def live_threads() -> set[threading.Thread]:
    """Threads that would hold the interpreter at exit."""
    return {thread for thread in threading.enumerate() if thread.is_alive() and not thread.daemon}


def child_processes() -> dict[int, str]:
    """Our children's command lines by process id; a zombie counts, nobody waited for it."""
    children: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name) state ppid": the name may hold spaces and parentheses.
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                # execve() closes our pipe before the new command line can be read: for an instant it is empty.
                nameless = "(zombie)" if state in "ZX" else "(starting)"
                children[int(entry.name)] = command.decode(errors="replace").strip() or nameless
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return children
