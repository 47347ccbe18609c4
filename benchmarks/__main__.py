"""Measure s3spool and its peers side by side; see docs/performance.md."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import plot, quiet, report, results
from benchmarks.clients import PEERS, Job
from benchmarks.daemon import S3Spool
from benchmarks.results import Measured, Results
from benchmarks.rows import ROWS, prepare

if TYPE_CHECKING:
    from benchmarks.clients import Client
    from benchmarks.rows import Row
    from benchmarks.sinks import Sink

ALL_CLIENTS: tuple[Client, ...] = (S3Spool(), *PEERS)
CLIENTS = {client.name: client for client in ALL_CLIENTS}
ROWS_BY_NAME = {row.name: row for row in ROWS}
SLOW = {"boto3", "aws"}  # ten times slower: a part of the files says as much
DEFAULT_ROWS = [row.name for row in ROWS] + ["latency", "idle", "start", "resume", "nodes"]
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a tmpfs, and only a private directory in it is used


def main() -> int:
    options = _options()
    with ExitStack() as stack:
        memory = _scratch(stack, SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        disk = _scratch(stack, Path(options.disk))
        versions = {name: CLIENTS[name].version() for name in options.clients}
        outcome = Results(
            machine=results.machine(
                {name: version for name, version in versions.items() if version and name != "raw"},
                memory=memory,
                disk=disk,
            ),
            rows=[
                ROWS_BY_NAME[name].scaled(files=options.files, size_bytes=options.size)
                for name in options.rows
                if name in ROWS_BY_NAME
            ],
            rounds=options.rounds,
        )
        for row in outcome.rows:
            clients = [CLIENTS[name] for name in options.clients if row.measures(name)]
            _measure_row(row, clients, versions, options, outcome, memory=memory, disk=disk)
            print(
                f"\n{row.name}: {row.title}\n{report.table(outcome, row)}\n{report.headline(outcome, row)}",
                flush=True,
            )
        for name in options.rows:
            if name in quiet.ROWS and "s3spool" in options.clients:
                _measure_quiet(name, outcome, memory=memory, disk=disk)
        print(report.quiet(outcome))
    _write(options, outcome)
    return 1 if any(one.problem for one in outcome.measured if one.client == "s3spool") else 0


def _measure_row(
    row: Row,
    clients: list[Client],
    versions: dict[str, str | None],
    options: argparse.Namespace,
    outcome: Results,
    *,
    memory: Path,
    disk: Path,
) -> None:
    """Let the clients take turns, so that a slow minute of the machine hits all of them."""
    with ExitStack() as stack:
        scratch = _scratch(stack, memory)
        try:
            sink = stack.enter_context(row.sink(scratch / "sink"))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as exc:
            print(f"{row.name}: left out: {exc}", file=sys.stderr)
            outcome.measured += [_left_out(row, client, str(exc)) for client in clients]
            return
        files = {
            client.name: min(row.files, options.slow_files if client.name in SLOW else row.files) for client in clients
        }
        for count in set(files.values()):
            prepare(scratch / f"files-{count}", files=count, size_bytes=row.size_bytes)
        measured = {
            client.name: Measured(
                row=row.name,
                client=client.name,
                files=files[client.name],
                size_bytes=row.size_bytes,
                ceiling_files_per_s=sink.ceiling_files_per_s,
                problem="" if versions[client.name] else "not installed",
            )
            for client in clients
        }
        outcome.measured += measured.values()
        for _ in range(options.rounds):
            for client in clients:
                one = measured[client.name]
                if not one.problem:
                    print(f"{row.name}: {client.name} ...", end=" ", file=sys.stderr, flush=True)
                    _measure_once(client, one, row, sink, scratch, disk, drop=options.drop)
                    speed = one.problem or f"{one.files / one.rounds[-1].wall_s:,.1f} files/s"
                    print(speed, file=sys.stderr, flush=True)


def _left_out(row: Row, client: Client, why: str) -> Measured:
    return Measured(row=row.name, client=client.name, files=row.files, size_bytes=row.size_bytes, problem=why)


def _measure_once(client: Client, one: Measured, row: Row, sink: Sink, scratch: Path, disk: Path, *, drop: str) -> None:
    with ExitStack() as stack:
        job = Job(
            directory=scratch / f"files-{one.files}",
            files=one.files,
            prefix=f"{one.client}-{len(one.rounds) + 1}/",
            sink=sink,
            memory=_scratch(stack, scratch),
            disk=_scratch(stack, disk),
            drop=drop,
            in_flight=row.in_flight,
            backlog=row.backlog,
            settings=row.settings,
            scraped=row.scraped,
        )
        before = sink.counters()
        try:
            usage = client.send(job)
        except (OSError, RuntimeError) as exc:
            one.problem = f"failed: {' '.join(str(exc).split())}"
            one.rounds.clear()
            return
        after = sink.counters()
        if before and after:
            one.connections = after[0] - before[0] - 1  # one was the question itself
            if after[1] - before[1] - 1 < one.files:
                one.problem = f"said it was done, but the sink saw {after[1] - before[1] - 1} requests"
                one.rounds.clear()
                return
        one.rounds.append(usage)


def _measure_quiet(name: str, outcome: Results, *, memory: Path, disk: Path) -> None:
    with ExitStack() as stack:
        try:
            outcome.quiet[name] = quiet.ROWS[name](_scratch(stack, memory), _scratch(stack, disk))
        except (OSError, RuntimeError) as exc:
            print(f"{name}: failed: {exc}", file=sys.stderr)


def _write(options: argparse.Namespace, outcome: Results) -> None:
    latest = Path(options.output)
    latest.parent.mkdir(parents=True, exist_ok=True)
    if options.merge and latest.exists():
        outcome.keep_earlier(json.loads(latest.read_text()), ROWS)
    latest.write_text(json.dumps(outcome.as_json(), indent=2) + "\n")
    print(f"written: {latest}")
    if options.update_docs:
        docs = results.REPOSITORY / "docs"
        (docs / "performance.svg").write_text(plot.svg(outcome))
        report.update_docs(docs / "performance.md", outcome)
        print("written: docs/performance.svg and the figures in docs/performance.md")


def _scratch(stack: ExitStack, parent: Path | None) -> Path:
    path = Path(tempfile.mkdtemp(prefix="s3spool-bench-", dir=parent))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    rows = [*ROWS_BY_NAME, *quiet.ROWS]
    add = parser.add_argument
    add("--rows", nargs="+", choices=rows, default=DEFAULT_ROWS, metavar="ROW", help=", ".join(rows))
    add(
        "--clients",
        nargs="+",
        choices=list(CLIENTS),
        default=list(CLIENTS),
        metavar="CLIENT",
        help=", ".join(CLIENTS),
    )
    add("--files", type=int, default=20_000, help="in the rows of small files (default: %(default)s)")
    add("--size", type=int, default=4096, help="of a small file, in bytes (default: %(default)s)")
    add("--slow-files", type=int, default=2_000, help="for boto3 and aws (default: %(default)s)")
    add("--rounds", type=int, default=3, help="turns of each client; medians count (default: %(default)s)")
    add("--drop", choices=["rename", "write"], default="rename", help="how files come (default: %(default)s)")
    add("--disk", default="/var/tmp", help="a directory on a real disk, for the state (default: %(default)s)")  # noqa: S108 - mkdtemp inside
    add(
        "--output",
        default=str(results.REPOSITORY / "benchmarks/results/latest.json"),
        help="JSON file to write",
    )
    add("--merge", action="store_true", help="keep the rows in that file which the same commit has measured")
    add("--update-docs", action="store_true", help="write the figures into docs/performance.md and .svg")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
