"""How the daemon fares with many files: `python -m benchmarks.scale --files 1000 10000 100000 1000000`.

For each number, flat and in 1,000 directories: start over a full folder (time to READY, to the first upload, to the
last receipt; memory all along), then start again in keep mode over nothing but receipts (time of the scan; requests, of
which there must be none). Then files dropped while it runs, and a start with a long retry list.

About twelve minutes in all on two cores. In pieces: what is measured is added to the --output file, and replaces what
that had of the same kind. --files without a number leaves the table's rows out, --burst 0 and --retries 0 the others.
With all three nothing is measured, and --update-docs writes the docs from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import curve, proc, report, results, sinks
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


BEGIN = "<!-- scale: begin, written by `python -m benchmarks.scale --update-docs` -->"
END = "<!-- scale: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """One number of files."""

    files: int
    directories: int  # 0: all in one
    ready_s: float
    first_s: float
    all_s: float
    peak_mib: float
    scan_s: float
    again_mib: float
    requests: int

    def cells(self) -> list[str]:
        place = f"{self.directories:,} directories" if self.directories else "flat"
        times = f"{self.ready_s:.2f}", f"{self.first_s:.2f}", f"{self.all_s:,.1f}", f"{self.peak_mib:.0f}"
        return [f"{self.files:,}", place, *times, f"{self.scan_s:.2f}", f"{self.again_mib:.0f}", f"{self.requests}"]


HEADER = ["files", "where", "READY s", "first upload s", "all s", "RSS MiB", "again: scan s", "RSS MiB", "requests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--files", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    add("--directories", type=int, nargs="+", default=[0, 1000], help="0: all in one (default: 0 1000)")
    add("--burst", type=int, default=200_000, help="dropped while it runs; 0: none (default: %(default)s)")
    add("--retries", type=int, default=500_000, help="in the retry list; 0: none (default: %(default)s)")
    add("--memory", default="/dev/shm", help="where the files are made")  # noqa: S108 - a tmpfs
    add("--disk", default="/var/tmp", help="where the state is kept")  # noqa: S108 - a private directory
    add("--output", default=str(results.REPOSITORY / "benchmarks/results/scale.json"), help="JSON file to add to")
    add(
        "--update-docs",
        action="store_true",
        help="write all of that file into docs/developers-performance.md and docs/scale.svg",
    )
    options = parser.parse_args()
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(output.read_text()) if output.exists() else {"grown": [], "others": {}}
    rooms = options.memory, options.disk
    for directories in options.directories:
        for files in options.files:
            with scratch(*rooms) as (memory, disk):
                one = measure(files, directories, memory, disk)
            print(report.markdown_table([HEADER, one.cells()]), flush=True)
            known["grown"] = [
                other for other in known["grown"] if (other["files"], other["directories"]) != (files, directories)
            ] + [asdict(one)]
            output.write_text(json.dumps(known, indent=2) + "\n")
    for name, count, measured in (("burst", options.burst, burst), ("retries", options.retries, retries)):
        if count:
            with scratch(*rooms) as (memory, disk):
                known["others"][name] = measured(count, memory, disk)
            print(f"- {known['others'][name]}", flush=True)
            output.write_text(json.dumps(known, indent=2) + "\n")
    if options.update_docs:
        grown = sorted((Grown(**one) for one in known["grown"]), key=lambda one: (one.directories, one.files))
        docs = results.REPOSITORY / "docs"
        (docs / "scale.svg").write_text(curve.svg(grown))
        text = report.markdown_table([HEADER, *(one.cells() for one in grown)])
        others = "\n".join(f"- {line}" for line in known["others"].values())
        report.replace_between(docs / "developers-performance.md", BEGIN, END, f"{text}\n\n{others}")


@contextmanager
def scratch(memory: str, disk: str) -> Iterator[tuple[Path, Path]]:
    """Two directories of this run alone."""
    with tempfile.TemporaryDirectory(dir=memory) as one, tempfile.TemporaryDirectory(dir=disk) as other:
        yield Path(one), Path(other)


@contextmanager
def prepared(memory: Path, disk: Path) -> Iterator[Job]:
    """A sink that answers at once, and a configuration for it."""
    folder = memory / "watched"
    (disk / "state").mkdir(exist_ok=True)
    with sinks.nginx(memory / "sink", answer_s=0) as sink:
        (disk / "s3spool.toml").write_text(
            CONFIG.format(
                folder=json.dumps(str(folder)),
                bucket=sinks.BUCKET,
                endpoint_url=sink.endpoint_url,
                state=json.dumps(str(disk / "state")),
            )
        )
        yield Job(directory=folder, files=0, prefix="", sink=sink, memory=memory, disk=disk, drop="rename")


def measure(files: int, directories: int, memory: Path, disk: Path) -> Grown:
    """Start over a full folder, and again over nothing new."""
    fill(memory / "watched", files, directories)
    with prepared(memory, disk) as job:
        with running(job) as (process, started_s):
            ready_s = logged(disk, "daemon.ready") - started_s
            first_s = logged(disk, "file.uploaded") - started_s
            wait_for_receipts(disk / "state" / "ledger.sqlite3", files)
            all_s = time.monotonic() - started_s
            peak_mib = proc.peak_rss_bytes(process.pid) / 2**20
        before = job.sink.counters()
        with running(job) as (process, started_s):
            scan_s = logged(disk, "scan.finished") - started_s
            again_mib = proc.peak_rss_bytes(process.pid) / 2**20
        after = job.sink.counters()
    return Grown(
        files=files,
        directories=directories,
        ready_s=ready_s,
        first_s=first_s,
        all_s=all_s,
        peak_mib=peak_mib,
        scan_s=scan_s,
        again_mib=again_mib,
        requests=after[1] - before[1] - 1 if before and after else -1,  # one was the question itself
    )


def burst(files: int, memory: Path, disk: Path) -> str:
    """Files dropped into a running daemon as fast as one process can make them."""
    folder = memory / "watched"
    folder.mkdir()
    with prepared(memory, disk) as job, running(job) as (process, _):
        logged(disk, "daemon.ready")
        started_s = time.monotonic()
        fill(folder, files, 0)
        dropped_s = time.monotonic() - started_s
        wait_for_receipts(disk / "state" / "ledger.sqlite3", files)
        all_s = time.monotonic() - started_s
        peak_mib = proc.peak_rss_bytes(process.pid) / 2**20
        scans = (disk / "log").read_bytes().count(b'"scan.finished"') - 1
    return (
        f"{files:,} files dropped while it runs, within {dropped_s:.1f} s: all sent after {all_s:.1f} s, RSS"
        f" {peak_mib:.0f} MiB, {scans} scans for what inotify could not tell"
    )


def retries(files: int, memory: Path, disk: Path) -> str:
    """A start with this many files waiting for their retry, which is not due yet."""
    folder = memory / "watched"
    fill(folder, files, 1000)
    with prepared(memory, disk) as job:
        note_retries(folder, disk / "state")
        with running(job) as (process, started_s):
            ready_s = logged(disk, "daemon.ready") - started_s
            scan_s = logged(disk, "scan.finished") - started_s
            status_s, waiting = asked(job)
            dropped_s = time.monotonic()
            (folder / "new").write_bytes(b"new")
            logged(disk, "file.uploaded")
            new_s = time.monotonic() - dropped_s
            peak_mib = proc.peak_rss_bytes(process.pid) / 2**20
        stopped_s, _ = asked(job)
    return (
        f"{waiting:,} files in the retry list: READY after {ready_s:.2f} s, first scan after {scan_s:.1f} s, RSS"
        f" {peak_mib:.0f} MiB; `status` answers in {status_s:.2f} s, where no daemon runs in {stopped_s:.2f} s; a new"
        f" file is sent within {new_s:.2f} s"
    )


def asked(job: Job) -> tuple[float, int]:
    """How long `s3spool status` takes (the median of five), and how many files it says are waiting."""
    command = [sys.executable, "-m", "s3spool", "status", "--json", "--config", str(job.disk / "s3spool.toml")]
    taken_s, waiting = [], 0
    for _ in range(5):
        asked_s = time.monotonic()
        told = subprocess.run(command, capture_output=True, check=True, env=environment(job)).stdout
        taken_s.append(time.monotonic() - asked_s)
        waiting = json.loads(told)["files"]["waiting"]
    return statistics.median(taken_s), waiting


def note_retries(folder: Path, state: Path) -> None:
    """As if each file had failed a moment ago."""
    from s3spool.ledger.rows import Identity, Retry, State  # noqa: PLC0415 - only this row needs them
    from s3spool.ledger.store import Ledger  # noqa: PLC0415 - the same

    ledger = Ledger(state / "ledger.sqlite3", destination="benchmark")
    ledger.start()
    now = time.time()
    for directory in folder.iterdir():
        for entry in os.scandir(directory):
            path, identity = f"{directory.name}/{entry.name}", Identity.of(entry.stat())
            error = "InternalError", "the server had an error", ""
            ledger.record_retry(Retry(path, identity, 9, now, now, *error, now + 290, State.WAITING))
        ledger.flush(60)
    ledger.close(60)


def fill(folder: Path, files: int, directories: int) -> None:
    folder.mkdir(exist_ok=True)
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
        while reader.execute("SELECT receipts FROM totals").fetchone()[0] < files:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
