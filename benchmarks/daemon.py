"""s3spool itself, measured from the first drop to the last committed receipt."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import proc
from benchmarks.clients import Job, Usage, environment
from benchmarks.sinks import BUCKET, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_TIMEOUT_S = 30.0
STALL_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
SCRAPE_S = 1.0

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
ledger = {ledger}
[log]
format = "json"
{more}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A running, ready s3spool."""

    pid: int
    folder: Path
    ledger: Path
    log: Path
    ready_s: float  # monotonic
    start_to_ready_s: float
    http_url: str

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
        if job.backlog:
            staged.rename(job.memory / "watched")
        with ExitStack() as stack:
            daemon = stack.enter_context(running(job))
            cpu_before_s = proc.cpu_s(daemon.pid)
            switches_before = proc.voluntary_switches(daemon.pid)
            if job.scraped:
                stack.enter_context(_scraping(daemon.http_url))
            first_drop_s = daemon.ready_s if job.backlog else stack.enter_context(dropping(job, staged, daemon.folder))
            last_receipt_s = daemon.wait_for_receipts(job.files, since_s=first_drop_s)
            usage = Usage(
                wall_s=last_receipt_s - first_drop_s,
                cpu_s=proc.cpu_s(daemon.pid) - cpu_before_s,
                peak_rss_bytes=proc.peak_rss_bytes(daemon.pid),
                voluntary_switches=proc.voluntary_switches(daemon.pid) - switches_before,
            )
            wait_until_empty(daemon.folder)
        return usage


@contextmanager
def dropping(job: Job, staged: Path, folder: Path) -> Iterator[float]:
    """Let a process drop the files; when it dropped the first one, in monotonic seconds."""
    command = [sys.executable, "-m", "benchmarks.drop", job.drop, str(staged), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(job)) as dropper:
        if dropper.stdout is None:
            raise RuntimeError("no pipe from the dropper")
        yield float(dropper.stdout.readline())


@contextmanager
def _scraping(http_url: str) -> Iterator[None]:
    """Read the metrics each second, as Prometheus would; RuntimeError if they were never read."""
    ended, scrapes = threading.Event(), 0

    def scrape() -> None:
        nonlocal scrapes
        while not ended.wait(SCRAPE_S):
            with urllib.request.urlopen(f"{http_url}/metrics", timeout=10) as answer:  # noqa: S310 - our own loopback
                answer.read()
            scrapes += 1

    thread = threading.Thread(target=scrape, name="scrape", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if not scrapes:
        raise RuntimeError("the metrics could not be read")


@contextmanager
def running(job: Job) -> Iterator[Daemon]:
    """Start the daemon; stop it as a service manager would. Its folder is empty, but for a backlog."""
    folder, state, log = job.memory / "watched", job.disk / "state", job.disk / "s3spool.log"
    folder.mkdir(exist_ok=job.backlog)
    port = free_port() if job.scraped else 0
    http = f'[service]\nhttp_listen = "127.0.0.1:{port}"\n' if job.scraped else ""
    state.mkdir()
    config = job.disk / "s3spool.toml"
    config.write_text(
        CONFIG.format(
            folder=json.dumps(str(folder)),  # a JSON string is a TOML string
            bucket=BUCKET,
            prefix=job.prefix,
            endpoint_url=job.sink.endpoint_url,
            ca_bundle=f"ca_bundle = {json.dumps(str(job.sink.ca_bundle))}" if job.sink.ca_bundle else "",
            workers=job.in_flight,
            state=json.dumps(str(state)),
            ledger=json.dumps(job.ledger_url),
            more=http + job.settings,
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
        ready_s = time.monotonic()
        yield Daemon(
            pid=process.pid,
            folder=folder,
            ledger=state / "ledger.sqlite3",
            log=log,
            ready_s=ready_s,
            start_to_ready_s=ready_s - started_s,
            http_url=f"http://127.0.0.1:{port}",
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


def wait_until_empty(folder: Path) -> None:
    """A receipt comes before the deletion; what stays behind would be a bug worth failing for."""
    deadline = time.monotonic() + STALL_TIMEOUT_S
    while left := [name for name in os.listdir(folder) if not name.startswith(".")]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(left)} files were confirmed but not deleted")
        time.sleep(0.05)
