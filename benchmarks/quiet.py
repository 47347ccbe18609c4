"""The daemon with little to do: start, one file, nothing at all."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks import daemon, nodes, outage, proc
from benchmarks.blackhole import Blackhole
from benchmarks.clients import Job
from benchmarks.sinks import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DROPS = 21
PAUSE_S = 0.25
ANSWER_TIMEOUT_S = 10.0
IDLE_S = 60.0
STARTS = 5


def latency(memory: Path, disk: Path) -> dict[str, float]:
    """From the rename that drops one file into an idle daemon to the moment the sink has answered it.

    The sink answers at once, so this is what the daemon adds to S3's own time.
    """
    taken_ms: list[float] = []
    with _hole() as hole, daemon.running(_job(hole, memory, disk)) as running:
        for number in range(DROPS):
            time.sleep(PAUSE_S)
            prepared = memory / f"latency-{number:03}.bin"
            prepared.write_bytes(bytes(4096))
            dropped_s = time.monotonic()
            prepared.rename(running.folder / prepared.name)
            taken_ms.append((_answered_s(hole, prepared.name) - dropped_s) * 1e3)
    # The first file opens the connection and wakes what sleeps until then; it counts like the others.
    return {"median_ms": statistics.median(taken_ms), "worst_ms": max(taken_ms), "first_ms": taken_ms[0]}


def idle(memory: Path, disk: Path) -> dict[str, float]:
    """A minute in which nothing happens."""
    with _hole() as hole, daemon.running(_job(hole, memory, disk)) as running:
        time.sleep(2)  # the first scan is over
        before_s, switches = proc.cpu_s(running.pid), proc.voluntary_switches(running.pid)
        time.sleep(IDLE_S)
        return {
            "cpu_percent": (proc.cpu_s(running.pid) - before_s) / IDLE_S * 100,
            "wakeups_per_s": (proc.voluntary_switches(running.pid) - switches) / IDLE_S,
            "rss_mib": proc.rss_bytes(running.pid) / 2**20,
        }


def start(memory: Path, disk: Path) -> dict[str, float]:
    """From exec to `daemon.ready`."""
    taken_s: list[float] = []
    with _hole() as hole:
        for number in range(STARTS):
            fresh_memory, fresh_disk = memory / str(number), disk / str(number)
            fresh_memory.mkdir()
            fresh_disk.mkdir()
            with daemon.running(_job(hole, fresh_memory, fresh_disk)) as running:
                taken_s.append(running.start_to_ready_s)
            shutil.rmtree(fresh_memory)
    return {"median_s": statistics.median(taken_s), "worst_s": max(taken_s)}


ROWS = {"latency": latency, "idle": idle, "start": start, "resume": outage.resume, "nodes": nodes.speedup}


@contextmanager
def _hole() -> Iterator[Blackhole]:
    with Blackhole() as hole:
        thread = threading.Thread(target=hole.serve_forever, name="blackhole", daemon=True)
        thread.start()
        try:
            yield hole
        finally:
            hole.shutdown()
            thread.join()


def _job(hole: Blackhole, memory: Path, disk: Path) -> Job:
    return Job(
        directory=memory,
        files=0,
        prefix="",
        sink=Sink(endpoint_url=hole.endpoint_url),
        memory=memory,
        disk=disk,
    )


def _answered_s(hole: Blackhole, name: str) -> float:
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        for path, answered_s in reversed(hole.answers):
            if path.endswith(f"/{name}"):
                return answered_s
        time.sleep(0.005)
    raise RuntimeError(f"{name} was not sent within {ANSWER_TIMEOUT_S} s")
