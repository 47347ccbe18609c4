"""How the daemon fares with many waiting files: `python -m benchmarks.scale --files 10000 100000 1000000`.

For each number: start over a full folder (time to READY, to the first upload, to the last receipt; memory all
along), then start again in keep mode over nothing but receipts (time of the scan; requests, of which there must be
none).
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import proc, sinks
from benchmarks.clients import Job, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """\
[watch]
directory = {folder}
settle_s = 0
[destination]
bucket = "{bucket}"
endpoint_url = "{endpoint_url}"
[state]
directory = {state}
[log]
format = "json"
"""
TIMEOUT_S = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--directories", type=int, default=1000, help="0: all in one (default: 1000)")
    parser.add_argument("--memory", default="/dev/shm", help="where the files are made")  # noqa: S108 - a tmpfs
    parser.add_argument("--disk", default="/var/tmp", help="where the state is kept")  # noqa: S108 - a private directory
    options = parser.parse_args()
    print("| files | READY s | first upload s | all s | RSS MiB | restart: scan s | RSS MiB | requests |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for files in options.files:
        with (
            tempfile.TemporaryDirectory(dir=options.memory) as memory,
            tempfile.TemporaryDirectory(dir=options.disk) as disk,
        ):
            cells = measure(files, options.directories, Path(memory), Path(disk))
        print(f"| {files:,} | {' | '.join(cells)} |", flush=True)


def measure(files: int, directories: int, memory: Path, disk: Path) -> list[str]:
    """The cells of one line."""
    folder = memory / "watched"
    fill(folder, files, directories)
    (disk / "state").mkdir()
    with sinks.nginx(memory / "sink", answer_s=0) as sink:
        job = Job(directory=folder, files=files, prefix="", sink=sink, memory=memory, disk=disk, drop="rename")
        (disk / "s3spool.toml").write_text(
            CONFIG.format(
                folder=json.dumps(str(folder)),
                bucket=sinks.BUCKET,
                endpoint_url=sink.endpoint_url,
                state=json.dumps(str(disk / "state")),
            )
        )
        with running(job) as (process, started_s):
            ready_s = logged(disk, "daemon.ready") - started_s
            first_s = logged(disk, "file.uploaded") - started_s
            wait_for_receipts(disk / "state" / "ledger.sqlite3", files)
            all_s = time.monotonic() - started_s
            peak_mib = proc.peak_rss_bytes(process.pid) / 2**20
        before = sink.counters()
        with running(job) as (process, started_s):
            scan_s = logged(disk, "scan.finished") - started_s
            again_mib = proc.peak_rss_bytes(process.pid) / 2**20
        after = sink.counters()
    requests = after[1] - before[1] - 1 if before and after else -1  # one was the question itself
    cells = [f"{ready_s:.2f}", f"{first_s:.2f}", f"{all_s:.1f}", f"{peak_mib:.0f}"]
    return [*cells, f"{scan_s:.2f}", f"{again_mib:.0f}", f"{requests}"]


def fill(folder: Path, files: int, directories: int) -> None:
    folder.mkdir()
    for number in range(directories):
        (folder / f"{number:04}").mkdir()
    for number in range(files):
        below = f"{number % directories:04}/" if directories else ""
        os.close(os.open(f"{folder}/{below}{number:07}", os.O_CREAT | os.O_WRONLY, 0o644))


@contextmanager
def running(job: Job) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A daemon and when it was started (monotonic seconds)."""
    command = [sys.executable, "-m", "s3spool", "run", "--config", str(job.disk / "s3spool.toml")]
    with (job.disk / "log").open("wb") as log:
        started_s = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(job))
    try:
        yield process, started_s
    finally:
        process.terminate()
        process.wait(60)


def logged(disk: Path, event: str) -> float:
    """When the log had this event (monotonic seconds)."""
    wanted, seen = f'"event":"{event}"'.encode(), b""
    deadline_s = time.monotonic() + TIMEOUT_S
    with (disk / "log").open("rb") as log:
        while time.monotonic() < deadline_s:
            seen = seen[-200:] + log.read(1 << 20)
            if wanted in seen:
                return time.monotonic()
            time.sleep(0.005)
    raise RuntimeError(f"no {event} within {TIMEOUT_S} s")


def wait_for_receipts(ledger: Path, files: int) -> None:
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as reader:
        while reader.execute("SELECT count(*) FROM receipts").fetchone()[0] < files:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
