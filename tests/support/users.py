"""Real users beside root, and a place that they can reach: who may do what is asked of the kernel, not of a mock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DAEMON, DROPPER = 61_001, 61_002  # numbers without a name: nobody else's files are in reach


@cache
def program() -> tuple[str, ...]:
    """What runs s3spool for every user: a Python below /root is not for others. Skips where there is none."""
    reason = "becoming another user takes root and setpriv"
    if os.geteuid() == 0 and shutil.which("setpriv"):
        paths = [path for path in sys.path if "site-packages" in path or Path(path, "s3spool").is_dir()]
        for python in (sys.executable, "/usr/bin/python3"):
            command = ("env", f"PYTHONPATH={':'.join(paths)}", "PYTHONDONTWRITEBYTECODE=1", python)
            script = "import os, msgspec, s3spool; print(os.__file__)"
            mine, theirs = subprocess.run([*command, "-c", script], capture_output=True, text=True, check=False), ""
            with suppress(subprocess.CalledProcessError):
                theirs = as_user(DAEMON, *command, "-c", script).stdout
            if mine.stdout == theirs:
                return (*command, "-m", "s3spool")
        reason = "other users can read neither this Python nor /usr/bin/python3 with its version's modules"
    if os.environ.get("SYSTEM_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def open_place() -> Iterator[Path]:
    """A directory that every user may enter, which pytest's own is not."""
    place = Path(tempfile.mkdtemp(prefix="s3spool-users-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def becoming(user: int) -> list[str]:
    """What stands before a command that runs as `user`, without any other group."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]


def as_user(user: int, *command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*becoming(user), *command], check=check, capture_output=True, text=True, timeout=60, cwd="/", **options
    )
