"""Which thread of the daemon takes the CPU where S3 answers at once: `python -m benchmarks.threads`; needs py-spy."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

from benchmarks import daemon, proc, report, sinks
from benchmarks.clients import Job
from benchmarks.rows import prepare

SIZE_BYTES = 4096
IN_FLIGHT = 100
LEAST_US = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians count (default: %(default)s)")
    options = parser.parse_args()
    rounds = [measured(options.files) for _ in range(options.rounds)]
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for one in rounds:
        for name in set(one) | set(taken):
            taken[name].append(one[name] / options.files / 1e3)
    figures = {name: median(values) for name, values in taken.items()}
    lines = [[name, f"{us:.1f}"] for name, us in sorted(figures.items(), key=lambda each: -each[1]) if us >= LEAST_US]
    all_us = median(sum(one.values()) / options.files / 1e3 for one in rounds)
    print(report.markdown_table([["thread", "us CPU a file"], *lines, ["all", f"{all_us:.0f}"]]))


def measured(files: int) -> Counter[str]:
    """Nanoseconds of CPU by the name of the thread, from the first file dropped to the last receipt."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        room, staged = Path(memory), Path(memory, "staged")
        room.chmod(0o755)  # the sink's workers have another user
        prepare(staged, files=files, size_bytes=SIZE_BYTES)
        with sinks.nginx(room / "sink", answer_s=0) as sink:
            job = Job(
                directory=staged, files=files, prefix="", sink=sink, memory=room, disk=Path(disk), in_flight=IN_FLIGHT
            )
            with daemon.running(job) as running:
                names = thread_names(running.pid)
                before = proc.threads_ns(running.pid)
                with daemon.dropping(job, staged, running.folder) as first_drop_s:
                    running.wait_for_receipts(files, since_s=first_drop_s)
                taken: Counter[str] = Counter()
                for thread, ns in proc.threads_ns(running.pid).items():
                    taken[names.get(thread, "other")] += ns - before.get(thread, 0)
                return taken


def thread_names(pid: int) -> dict[int, str]:
    """By the kernel's number; all workers have one name."""
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--json", "--pid", str(pid)]
    threads = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    names = {thread["os_thread_id"]: thread["thread_name"] or "other" for thread in threads}
    return {number: "workers" if name.startswith("upload-") else name for number, name in names.items()}


if __name__ == "__main__":
    main()
