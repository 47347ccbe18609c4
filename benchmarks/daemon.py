"""s3spool itself, measured from the first drop to the last committed receipt."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import proc
from benchmarks.clients import Job, Usage, environment
from benchmarks.sinks import BUCKET, IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_TIMEOUT_S = 30.0
STALL_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0

CONFIG = """\
[watch]
directory = {folder}
settle_s = 0
[destination]
bucket = "{bucket}"
prefix = "{prefix}"
endpoint_url = "{endpoint_url}"
region = "us-east-1"
addressing_style = "path"
{ca_bundle}
[upload]
workers = {workers}
[after]
action = "delete"
[state]
directory = {state}
[log]
format = "json"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A running, ready s3spool."""

    pid: int
    folder: Path
    ledger: Path
    log: Path
    start_to_ready_s: float

    def wait_for_receipts(self, wanted: int, *, since_s: float) -> float:
        """Return time.monotonic() when the ledger holds `wanted` receipts; RuntimeError when it stalls.

        Looks rarely while much is left and often near the end, so that looking takes nothing from the daemon.
        """
        with closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as ledger:
            committed, progress_s = 0, time.monotonic()
            while True:
                (now_committed,) = ledger.execute("SELECT receipts FROM totals").fetchone()
                now_s = time.monotonic()
                if now_committed >= wanted:
                    return now_s
                if now_committed > committed:
                    committed, progress_s = now_committed, now_s
                elif now_s - progress_s > STALL_TIMEOUT_S:
                    tail = self.log.read_text(errors="replace")[-500:]
                    raise RuntimeError(f"stalled at {committed} of {wanted} receipts: {tail}")
                left_s = (now_s - since_s) * (wanted - committed) / max(committed, 1)
                time.sleep(min(max(left_s / 2, 0.002), 0.25))


class S3Spool:
    """The client of that name in the tables."""

    name = "s3spool"

    def version(self) -> str | None:
        command = [sys.executable, "-m", "s3spool", "--version"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        return told.stdout.strip() if told.returncode == 0 else None

    def send(self, job: Job) -> Usage:
        staged = job.memory / "staged"
        staged.mkdir()
        for path in job.directory.iterdir():
            # The daemon will delete its files; links leave the set for the next client.
            (staged / path.name).hardlink_to(path)
        with running(job) as daemon:
            cpu_before_s = proc.cpu_s(daemon.pid)
            switches_before = proc.voluntary_switches(daemon.pid)
            command = [sys.executable, "-m", "benchmarks.drop", job.drop, str(staged), str(daemon.folder)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(job)) as dropper:
                if dropper.stdout is None:
                    raise RuntimeError("no pipe from the dropper")
                first_drop_s = float(dropper.stdout.readline())
                last_receipt_s = daemon.wait_for_receipts(job.files, since_s=first_drop_s)
            usage = Usage(
                wall_s=last_receipt_s - first_drop_s,
                cpu_s=proc.cpu_s(daemon.pid) - cpu_before_s,
                peak_rss_bytes=proc.peak_rss_bytes(daemon.pid),
                voluntary_switches=proc.voluntary_switches(daemon.pid) - switches_before,
            )
            _wait_until_empty(daemon.folder)
        return usage


@contextmanager
def running(job: Job) -> Iterator[Daemon]:
    """Start the daemon over an empty folder; stop it as a service manager would."""
    folder, state, log = job.memory / "watched", job.disk / "state", job.disk / "s3spool.log"
    folder.mkdir()
    state.mkdir()
    config = job.disk / "s3spool.toml"
    config.write_text(
        CONFIG.format(
            folder=json.dumps(str(folder)),  # a JSON string is a TOML string
            bucket=BUCKET,
            prefix=job.prefix,
            endpoint_url=job.sink.endpoint_url,
            ca_bundle=f"ca_bundle = {json.dumps(str(job.sink.ca_bundle))}" if job.sink.ca_bundle else "",
            workers=IN_FLIGHT,
            state=json.dumps(str(state)),
        ),
    )
    command = [sys.executable, "-m", "s3spool", "run", "--config", str(config)]
    with log.open("wb") as output:
        started_s = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(job)
        )
    try:
        _wait_until_ready(process, log)
        yield Daemon(
            pid=process.pid,
            folder=folder,
            ledger=state / "ledger.sqlite3",
            log=log,
            start_to_ready_s=time.monotonic() - started_s,
        )
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if b'"daemon.ready"' in log.read_bytes():
            return
        time.sleep(0.002)
    raise RuntimeError(f"not ready: {log.read_text(errors='replace')[-500:]}")


def _wait_until_empty(folder: Path) -> None:
    """A receipt comes before the deletion; what stays behind would be a bug worth failing for."""
    deadline = time.monotonic() + STALL_TIMEOUT_S
    while left := os.listdir(folder):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(left)} files were confirmed but not deleted")
        time.sleep(0.05)
