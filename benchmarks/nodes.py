"""How much faster several daemons are than one, on one folder with one ledger in PostgreSQL.

`python -m benchmarks.nodes --files 1000000 --waiting --nodes 3` has its own numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from benchmarks import daemon, proc, sinks
from benchmarks.clients import Job, environment
from benchmarks.rows import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODES = (1, 2, 3)
WORKERS = 30
FILES = 100_000  # forty seconds of three nodes: the start and the end, when not all have work, weigh little
SIZE_BYTES = 4096
ANSWER_S = 0.03
TIMEOUT_S = 3600.0
LOOK_S = 0.5
STATISTICS_S = 1.0  # PostgreSQL counts so late


class Run(NamedTuple):
    """One number of nodes."""

    wall_s: float  # from the first drop to the last receipt
    statements: int  # of the database, without those of this program
    peak_rss_bytes: int  # of the node that needed most


def speedup(memory: Path, disk: Path) -> dict[str, float]:
    """Files dropped at once into the folder of 1, 2 and 3 daemons."""
    figures = measure(memory, disk, NODES, FILES)
    figures["ratio"] = figures[f"files_per_s_{NODES[-1]}"] / figures["files_per_s_1"]
    return figures


def measure(
    memory: Path, disk: Path, counts: Sequence[int], files: int, *, workers: int = WORKERS, waiting: bool = False
) -> dict[str, float]:
    """`waiting`: the files are there when the daemons start."""
    figures: dict[str, float] = {}
    with postgres() as server, sinks.nginx(memory / "sink", answer_s=ANSWER_S) as sink:
        for count in counts:
            job = Job(
                directory=memory / str(count),
                files=files,
                prefix="",
                sink=sink,
                memory=memory / str(count),
                disk=disk / str(count),
                in_flight=workers,
                backlog=True,  # the folder may be there
            )
            run = _send(count, job, server, waiting=waiting)
            figures[f"files_per_s_{count}"] = files / run.wall_s
            figures[f"files_per_statement_{count}"] = files / run.statements
            figures[f"peak_rss_mib_{count}"] = run.peak_rss_bytes / 2**20
        requests = sink.counters()
        if requests:
            figures["sent_again"] = requests[1] - 1 - files * len(counts)  # this question is one
    return figures


def _send(count: int, job: Job, server: str, *, waiting: bool) -> Run:
    job.memory.mkdir()
    job.disk.mkdir()
    name = f"nodes_{count}"
    with psycopg.connect(f"{server}&dbname=postgres", autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    url = f"{server}&dbname={name}"
    staged = job.memory / ("watched" if waiting else "staged")
    prepare(staged, files=job.files, size_bytes=SIZE_BYTES)
    with ExitStack() as stack:
        nodes = []
        for number in range(count):
            disk = job.disk / f"node-{number}"
            disk.mkdir()
            nodes.append(stack.enter_context(daemon.running(replace(job, disk=disk, ledger_url=url))))
        began_s = nodes[0].ready_s
        if not waiting:
            drop = [sys.executable, "-m", "benchmarks.drop", "rename", str(staged), str(nodes[0].folder)]
            dropped = subprocess.run(drop, check=True, stdout=subprocess.PIPE, text=True, env=environment(job))
            began_s = float(dropped.stdout)
        ended_s, statements = _last_receipt(url, job.files)
        daemon.wait_until_empty(nodes[0].folder)
        peak = max(proc.peak_rss_bytes(node.pid) for node in nodes)
    return Run(ended_s - began_s, statements, peak)


def _last_receipt(url: str, files: int) -> tuple[float, int]:
    """When all receipts are there, in monotonic seconds, and the database's statements until then."""
    deadline = time.monotonic() + TIMEOUT_S
    committed = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    with closing(psycopg.connect(url, autocommit=True)) as db:
        for looks in itertools.count(1):
            found = db.execute("SELECT count(*) FROM files WHERE sent IS NOT NULL").fetchone()
            now = time.monotonic()
            if found and found[0] >= files:
                time.sleep(2 * STATISTICS_S)
                row = db.execute(committed).fetchone()
                return now, (int(row[0]) if row else 0) - looks
            if now > deadline:
                break
            time.sleep(LOOK_S)
    raise RuntimeError(f"{found and found[0]} of {files} receipts after {TIMEOUT_S} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--nodes", type=int, nargs="+", default=NODES)
    add("--files", type=int, default=FILES)
    add("--workers", type=int, default=WORKERS, help="of each node")
    add("--waiting", action="store_true", help="the files are there at the start")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="s3spool-nodes-", dir="/dev/shm") as memory,
        tempfile.TemporaryDirectory(prefix="s3spool-nodes-", dir="/var/tmp") as disk,
    ):
        Path(memory).chmod(0o755)  # nginx has another user
        figures = measure(
            Path(memory), Path(disk), options.nodes, options.files, workers=options.workers, waiting=options.waiting
        )
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=2))


@contextmanager
def postgres() -> Iterator[str]:
    """The URL, without a database, of a server of the distribution's package, as an ordinary user; it syncs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is missing: apt-get install postgresql")
    become: list[str] = []
    with tempfile.TemporaryDirectory(prefix="s3spool-pg-", dir="/var/tmp") as directory:  # a socket's path is short
        if os.geteuid() == 0:  # initdb refuses root
            user = pwd.getpwnam("nobody")
            os.chown(directory, user.pw_uid, user.pw_gid)
            become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

        def run(program: str, *arguments: str) -> None:
            command = [*become, str(found[-1] / program), f"--pgdata={directory}/data", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

        run("initdb", "--username=s3spool", "--auth=trust", "--encoding=UTF8", "--locale=C")
        options = f"-c listen_addresses='' -c unix_socket_directories='{directory}'"
        run("pg_ctl", "--wait", "--silent", f"--log={directory}/log", f"--options={options}", "start")
        try:
            yield f"postgresql://s3spool@/?host={directory}"
        finally:
            run("pg_ctl", "--wait", "--silent", "--mode=fast", "stop")


if __name__ == "__main__":
    main()
