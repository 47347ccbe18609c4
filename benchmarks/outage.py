"""How soon the daemon is at full speed again once an outage is over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from bisect import bisect_left
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import daemon, sinks
from benchmarks.clients import Job, environment
from benchmarks.rows import prepare

if TYPE_CHECKING:
    from pathlib import Path

FILES = 40_000
SIZE_BYTES = 4096
ANSWER_S = 0.03
WINDOW_S = 0.25
SETTLED_S = 3.0  # from then on it is taken to be at full speed
FULL = 0.95
TIMEOUT_S = 60.0


def resume(memory: Path, disk: Path) -> dict[str, float]:
    """Files wait in front of a server that refuses connections; then it is there.

    From the line `destination.resumed` to the first window in which 95 % of the later speed is reached.
    """
    port = sinks.free_port()
    sink = sinks.Sink(endpoint_url=f"http://127.0.0.1:{port}", answer_s=ANSWER_S)
    job = Job(directory=memory, files=FILES, prefix="", sink=sink, memory=memory, disk=disk)
    prepare(memory / "staged", files=FILES, size_bytes=SIZE_BYTES)
    with daemon.running(job) as running:
        drop = [sys.executable, "-m", "benchmarks.drop", "rename", str(memory / "staged"), str(running.folder)]
        subprocess.run(drop, check=True, stdout=subprocess.DEVNULL, env=environment(job))
        _wait_for_pause(running.log)
        with sinks.nginx(memory / "sink", answer_s=ANSWER_S, port=port):
            running.wait_for_receipts(FILES, since_s=time.monotonic())
    return _figures(running.log)


def _wait_for_pause(log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while b'"destination.paused"' not in log.read_bytes():
        if time.monotonic() > deadline:
            raise RuntimeError("the destination is not paused")
        time.sleep(0.05)


def _figures(log: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (resumed_s,) = (_seconds(line) for line in lines if line["event"] == "destination.resumed")
    sent_s = sorted(_seconds(line) - resumed_s for line in lines if line["event"] == "file.uploaded")
    ends = [step * WINDOW_S for step in range(1, int(sent_s[-1] / WINDOW_S))]
    speeds = [(bisect_left(sent_s, end) - bisect_left(sent_s, end - WINDOW_S)) / WINDOW_S for end in ends]
    full = median(speed for end, speed in zip(ends, speeds, strict=True) if end > SETTLED_S)
    reached_s = next(end for end, speed in zip(ends, speeds, strict=True) if speed >= FULL * full)
    return {"full_speed_after_s": reached_s, "files_per_s": full}


def _seconds(line: dict[str, str]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()
