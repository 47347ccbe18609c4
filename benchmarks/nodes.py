"""How much faster several daemons are than one, on one folder with one ledger in PostgreSQL."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from benchmarks import daemon, sinks
from benchmarks.clients import Job, environment
from benchmarks.rows import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES = (1, 2, 3)
WORKERS = 30
FILES = 20_000
SIZE_BYTES = 4096
ANSWER_S = 0.03
TIMEOUT_S = 300.0
LOOK_S = 0.1


def speedup(memory: Path, disk: Path) -> dict[str, float]:
    """Files dropped at once into the folder of 1, 2 and 3 daemons, from the first drop to the last receipt."""
    figures: dict[str, float] = {}
    with postgres() as server, sinks.nginx(memory / "sink", answer_s=ANSWER_S) as sink:
        for count in NODES:
            place = memory / str(count)
            place.mkdir()
            state = disk / str(count)
            state.mkdir()
            figures[f"files_per_s_{count}"] = FILES / _send(count, place, state, sink, server)
        figures["ratio"] = figures[f"files_per_s_{NODES[-1]}"] / figures["files_per_s_1"]
        requests = sink.counters()
        if requests:
            figures["sent_again"] = requests[1] - 1 - FILES * len(NODES)  # this question is one
    return figures


def _send(count: int, memory: Path, disk: Path, sink: sinks.Sink, server: str) -> float:
    """Seconds."""
    name = f"nodes_{count}"
    with psycopg.connect(f"{server}&dbname=postgres", autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    url = f"{server}&dbname={name}"
    prepare(memory / "staged", files=FILES, size_bytes=SIZE_BYTES)
    with ExitStack() as stack:
        for number in range(count):
            job = Job(
                directory=memory,
                files=FILES,
                prefix="",
                sink=sink,
                memory=memory,
                disk=disk / f"node-{number}",
                in_flight=WORKERS,
                backlog=True,  # the folder may be there
                ledger_url=url,
            )
            job.disk.mkdir()
            running = stack.enter_context(daemon.running(job))
        drop = [sys.executable, "-m", "benchmarks.drop", "rename", str(memory / "staged"), str(running.folder)]
        dropped = subprocess.run(drop, check=True, stdout=subprocess.PIPE, text=True, env=environment(job))
        wall_s = _last_receipt_s(url) - float(dropped.stdout)
        daemon.wait_until_empty(running.folder)
    return wall_s


def _last_receipt_s(url: str) -> float:
    """When all receipts are there, in monotonic seconds."""
    deadline = time.monotonic() + TIMEOUT_S
    with closing(psycopg.connect(url, autocommit=True)) as db:
        while True:
            found = db.execute("SELECT count(*) FROM files WHERE sent IS NOT NULL").fetchone()
            now = time.monotonic()
            if found and found[0] >= FILES:
                return now
            if now > deadline:
                raise RuntimeError(f"{found and found[0]} of {FILES} receipts after {TIMEOUT_S} s")
            time.sleep(LOOK_S)


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
