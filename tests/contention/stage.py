"""What a scenario plays on: a daemon with a server, good files dropped meanwhile, and what it cost."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.daemon import Daemon
from support.faulty import FaultyS3
from support.users import unprivileged
from support.waiting import eventually


@dataclass
class Stage:
    """One scenario's. `size` is how much of it there is."""

    home: Path
    size: int
    server: FaultyS3
    daemon: Daemon
    on_exit: contextlib.ExitStack
    meanwhile: Callable[[], object] = lambda: None  #: called again and again while good files are dropped
    check: Callable[[], str] = lambda: ""  #: at the end: what is wrong besides, "" if nothing is
    notes: dict[str, Any] = field(default_factory=dict)

    def fill(self, directory: str = "crowd", *, content: bytes = b"", mode: int = 0o644) -> None:
        """`size` files, complete before the daemon starts."""
        place = self.daemon.folder / directory
        place.mkdir(exist_ok=True)
        for number in range(self.size):
            path = place / f"{number:06}"
            path.write_bytes(content)
            if mode != 0o644:
                path.chmod(mode)

    def start(self) -> None:
        """Until it answers; its log may be unread."""
        self.daemon.start()
        eventually(self.daemon.socket_path.exists, timeout_s=60)

    def run(self, *command: object) -> subprocess.Popen[bytes]:
        """Beside the daemon, until the end."""
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        self.on_exit.callback(_end, process)
        return process

    def without_privileges(self) -> None:
        self.daemon.program = (*unprivileged(), *self.daemon.program)

    def peak_mib(self) -> int:
        """The daemon's largest resident size so far."""
        status = Path("/proc", str(self._pid()), "status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) // 1024 if found else 0

    def _pid(self) -> int:
        """The daemon's own, where a wrapper has started it."""
        children = subprocess.run(
            ["pgrep", "--parent", str(self.daemon.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        return int(children[0]) if children and self.daemon.program[0] == "unshare" else self.daemon.pid


@contextlib.contextmanager
def stage(home: Path, size: int, sections: Mapping[str, Mapping[str, Any]]) -> Iterator[Stage]:
    with FaultyS3() as server, contextlib.ExitStack() as on_exit:
        daemon = Daemon(home, bucket=server.bucket, environment=server.environment(), **sections)
        on_exit.callback(lambda: daemon.kill() if daemon.alive else None)
        try:
            yield Stage(home, size, server, daemon, on_exit)
        finally:
            server.behave()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
