"""Keys are in the daemon's memory: other processes of its user cannot look into it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.users import DAEMON, as_user, becoming, everybodys, open_place
from support.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user"),
]
KEY = "HUSHHUSHHUSH"


@pytest.fixture
def place() -> Iterator[Path]:
    everybodys()
    with open_place() as place:
        (place / "spool").mkdir()
        (place / "sent").mkdir()
        for path in (place, place / "spool", place / "sent"):
            os.chown(path, DAEMON, DAEMON)
        yield place


def test_the_same_user_reads_nothing(place: Path) -> None:
    """Neither environment nor memory; what the daemon asks of /proc about itself goes on, and so does a reload."""
    config, log = place / "s3spool.toml", place / "log"
    config.write_text(
        f'[watch]\ndirectory = "{place}/spool"\n[destination]\nbucket = "bucket"\nendpoint_url = "http://127.0.0.1:9"\n'
        f'[after]\naction = "archive"\narchive_directory = "{place}/sent"\n[state]\ndirectory = "{place}/state"\n'
        '[log]\nformat = "json"\n'
    )
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AWS_ACCESS_KEY_ID": "key"}
    environment["AWS_SECRET_ACCESS_KEY"] = KEY
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*becoming(DAEMON), *everybodys(), "run", "--config", config], stderr=output, cwd="/", env=environment
        ) as daemon,
    ):
        try:
            eventually(lambda: '"daemon.ready"' in log.read_text(), timeout_s=30)
            for name in ("environ", "mem", "maps"):
                read = as_user(DAEMON, "head", "-c", "1", f"/proc/{daemon.pid}/{name}", check=False)
                assert "Permission denied" in read.stderr, name
            names = {path.read_text().strip() for path in Path(f"/proc/{daemon.pid}/task").glob("*/comm")}
            assert {"ledger", "settle", "upload-000"} <= names
            daemon.send_signal(signal.SIGHUP)
            eventually(lambda: '"daemon.reloaded"' in log.read_text(), timeout_s=30)
        finally:
            daemon.terminate()
    assert daemon.returncode == 0
    assert "Traceback" not in log.read_text()
