"""The wheel, installed without the checkout: its demo takes a file, and `check` finds nothing wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support.waiting import eventually

ROOT = Path(__file__).parents[2]
INSTALL_S = 300.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def s3spool(tmp_path: Path) -> Path:
    """The command of the wheel, built from the source distribution's files, in an environment of its own."""
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, timeout=INSTALL_S)
    (wheel,) = wheels.glob("s3spool-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    install: list[str | Path] = [tmp_path / "venv/bin/pip", "install", "--quiet", f"{wheel}[demo]"]
    subprocess.run(install, check=True, timeout=INSTALL_S)
    return tmp_path / "venv/bin/s3spool"


def test_the_wheel_works_without_the_checkout(s3spool: Path, tmp_path: Path) -> None:
    """demo, a first upload, check, and the files that `service install` writes."""
    where = tmp_path / "elsewhere"
    where.mkdir()
    foreign = ("AWS_", "S3SPOOL_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [s3spool, *arguments]
        return subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)

    def told(*arguments: str) -> str:
        ended = run(*arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen([s3spool, "demo", "--port", "0"], cwd=where, env=environment, stderr=stderr) as demo,
    ):
        try:
            eventually(lambda: b'"daemon.ready"' in log.read_bytes(), timeout_s=120)
            (where / "tmp" / "first.txt").write_text("first")
            told("wait", "tmp/first.txt", "--timeout", "60")
            assert "first.txt" in told("list", "--all")
            assert "ok" in told("check")
        finally:
            demo.send_signal(signal.SIGINT)
    assert demo.returncode == 0
    assert list(s3spool.parents[1].glob("lib/*/site-packages/s3spool/units/s3spool.service"))
