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


ROOTS = ("env", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "s3spool")


def require_root() -> None:
    """Skip where one cannot become another user; fail where the run promises that one can."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        reason = "becoming another user takes root and setpriv"
        pytest.fail(reason) if os.environ.get("SYSTEM_TESTS") == "required" else pytest.skip(reason)


def unprivileged() -> tuple[str, ...]:
    """What stands before a command so that modes of files concern root, too; skips the test where that cannot be."""
    if os.geteuid() != 0:
        return ()
    command = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("root cannot give up its privileges here (setpriv)")
    return command


@cache
def everybodys() -> tuple[str, ...]:
    """What runs s3spool for every user. Skips where no Python with our modules is readable for others: below /root."""
    require_root()
    paths = [path for path in sys.path if "site-packages" in path or Path(path, "s3spool").is_dir()]
    for python in (sys.executable, "/usr/bin/python3"):
        command = ("env", f"PYTHONPATH={':'.join(paths)}", "PYTHONDONTWRITEBYTECODE=1", python)
        script = "import os, msgspec, s3spool; print(os.__file__)"
        mine, theirs = subprocess.run([*command, "-c", script], capture_output=True, text=True, check=False), ""
        with suppress(subprocess.CalledProcessError):
            theirs = as_user(DAEMON, *command, "-c", script).stdout
        if mine.stdout == theirs:
            return (*command, "-m", "s3spool")
    pytest.skip("other users can read neither this Python nor /usr/bin/python3 with its version's modules")


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


def run_until_ready(*command: str | Path, **options: Any) -> str:
    """What `s3spool run` says on stderr until it is ready, or ends; then it is stopped."""
    said: list[str] = []
    with subprocess.Popen([*command], stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stderr
        for line in process.stderr:
            said.append(line)
            if "daemon.ready" in line:
                process.terminate()
    return "".join(said)
