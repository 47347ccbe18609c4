"""What each step of a file's way costs by itself: `python -m benchmarks.steps`.

CPU of the whole process (user and system), one step at a time, with nobody to contend with; the median of some rounds.
In the daemon a hundred threads share the interpreter, so that a file costs more than the sum: the difference is what
handing over costs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import structlog

from benchmarks import report, results, sinks
from s3spool.config.schema import DestinationConfig
from s3spool.discovery.watch import Watch
from s3spool.failure.breaker import CircuitBreaker
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.folder.lease import release_lease, take_lease
from s3spool.ledger.rows import Identity, Receipt
from s3spool.ledger.store import Ledger
from s3spool.logs import log_thread as logs
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.settle import Settle
from s3spool.s3.content import Content
from s3spool.s3.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BEGIN = "<!-- steps: begin, written by `python -m benchmarks.steps --update-docs` -->"
END = "<!-- steps: end -->"
SIZE_BYTES = 4096


class Bench:
    """A folder with files, and a measure for each step."""

    def __init__(self, memory: Path, disk: Path, files: int, endpoint_url: str) -> None:
        self.root = memory / "watched"
        self.staged = memory / "staged"
        self.disk = disk
        self.endpoint_url = endpoint_url
        self.names = [f"file-{number:06}.bin" for number in range(files)]
        self.staged.mkdir()
        self.root.mkdir()
        self.folder = Folder(self.root)
        self.fill(self.staged)
        destination = DestinationConfig(
            bucket=sinks.BUCKET, endpoint_url=endpoint_url, region="us-east-1", checksum="crc64nvme"
        )
        self.store = Store(destination, timeout_s=30.0)

    def fill(self, where: Path) -> None:
        for name in self.names:
            (where / name).write_bytes(os.urandom(SIZE_BYTES))

    def watch(self) -> float:
        """From the kernel's event to a hint."""
        hinted, last = threading.Event(), self.names[-1]

        def hint(path: str, _quiet: object) -> None:
            if path == last:
                hinted.set()

        watch = Watch(self.root, FileFilter(["*"], []), recursive=True, hint=hint, rescan=print, lost=hinted.set)
        watch.start()
        started_s = time.process_time()
        command = [sys.executable, "-m", "benchmarks.drop", "rename", str(self.staged), str(self.root)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL):
            hinted.wait(60)
        taken_s = time.process_time() - started_s
        watch.stop()
        return taken_s

    def settle(self) -> float:
        """Into the settle room and out of it."""
        settle = Settle(0.0, len(self.names))
        started_s = time.process_time()
        for name in self.names:
            settle.add(name)
        while settle.due(time.monotonic())[0]:
            pass
        return time.process_time() - started_s

    def inbox(self) -> float:
        """Offered, taken, done."""
        limiter = ConcurrencyLimiter("bench", max_s=1)
        inbox = Inbox(len(self.names), 100, CircuitBreaker("bench", initial_s=1, max_s=1, limiter=limiter))
        started_s = time.process_time()
        inbox.offer(Item(name) for name in self.names)
        while (item := inbox.take_nowait()) is not None:
            inbox.done(item.path)
        return time.process_time() - started_s

    def read(self) -> float:
        """Look, open, lease, read, release, close."""
        started_s = time.process_time()
        for name in self.names:
            fd, status = self.folder.open(name)
            take_lease(fd)
            os.read(fd, status.st_size + 1)
            release_lease(fd)
            os.close(fd)
        return time.process_time() - started_s

    def request(self) -> float:
        """Key, checksum, headers, and the answer's proof."""
        contents = self.contents()
        answers = self.answers(contents[:1])
        started_s = time.process_time()
        for content in contents:
            made = self.store.request(content)
        taken_s = time.process_time() - started_s
        made = self.store.request(contents[0])
        started_s = time.process_time()
        for _ in contents:
            self.store.verify(contents[0], made, answers[0], may_verify=False)
        return taken_s + time.process_time() - started_s

    def send(self) -> float:
        """Handed to libcurl, signed, sent over one of a hundred kept connections, the answer read."""
        requests = deque(self.store.request(content) for content in self.contents())
        multiplexer = self.store.multiplexer()
        if multiplexer is None:
            raise RuntimeError("pycurl is missing")
        transports = [self.store.transport() for _ in range(sinks.IN_FLIGHT)]
        pending, over = deque[Any](), deque[Any](transports)
        left = len(requests)
        started_s = time.process_time()
        while left:
            while over and requests:
                transport = over.popleft()
                transport.prepare(requests.popleft())
                pending.append(transport)
            over.clear()
            multiplexer.poll(pending, over, wait=True)
            for transport in over:
                transport.answer()
            left -= len(over)
        taken_s = time.process_time() - started_s
        for transport in transports:
            transport.close()
        multiplexer.close()
        return taken_s

    def receipt(self) -> float:
        """A row on disk, in groups, with fsync."""
        path = self.disk / "ledger.sqlite3"
        ledger = Ledger(path, destination="benchmark")
        ledger.start()
        identity = Identity(1, 2, SIZE_BYTES, time.time_ns(), time.time_ns())
        checksum, now = "crc64nvme:AAAAAAAAAAA=", time.time()
        started_s = time.process_time()
        for name in self.names:
            ledger.record_receipt(Receipt(name, identity, 1, name, "0" * 32, checksum, "", now, now, "delete"))
        ledger.flush(60)
        taken_s = time.process_time() - started_s
        ledger.close(10)
        for left in self.disk.glob("ledger.sqlite3*"):
            left.unlink()
        return taken_s

    def log(self) -> float:
        """`file.uploaded` as a JSON line in a file: the caller's part and the log thread's."""
        with (self.disk / "log").open("w") as stream:
            writer = logs.configure("json", "info", stream)
            log = structlog.get_logger()
            started_s = time.process_time()
            for number, name in enumerate(self.names):
                log.info(
                    "file.uploaded",
                    path=name,
                    key=name,
                    bucket=sinks.BUCKET,
                    bytes=SIZE_BYTES,
                    duration_s=0.031,
                    attempt=1,
                    etag="0" * 32,
                    checksum="crc64nvme:AAAAAAAAAAA=",
                    version_id="",
                )
                if number % 500 == 0:
                    writer.flush(10)  # its queue is bounded: what does not fit would cost nothing
            writer.flush(10)
            taken_s = time.process_time() - started_s
            writer.close()
        return taken_s

    def unlink(self) -> float:
        """Looked at, renamed, looked at again, removed."""
        identities = [self.folder.identity_of(name) for name in self.names]
        started_s = time.process_time()
        for name, identity in zip(self.names, identities, strict=True):
            if identity is not None:
                self.folder.unlink_if_same(name, identity)
        taken_s = time.process_time() - started_s
        self.fill(self.staged)  # for the next round
        return taken_s

    def contents(self) -> list[Content]:
        made = []
        for name in self.names:
            path = self.root / name
            made.append(Content(name, Identity.of(path.stat()), path.read_bytes(), -1))
        return made

    def answers(self, contents: list[Content]) -> list[Any]:
        transport = self.store.transport()
        made = []
        for content in contents:
            transport.prepare(self.store.request(content))
            transport.send()
            made.append(transport.answer())
        transport.close()
        return made


# In the order of a file's way: each leaves the files as the next one needs them.
STEPS: dict[str, Callable[[Bench], float]] = {
    "watch: one event becomes a hint": Bench.watch,
    "settle: in and out": Bench.settle,
    "inbox: offered, taken, done": Bench.inbox,
    "open, lease, read, close": Bench.read,
    "key, checksum, headers; the answer judged": Bench.request,
    "sign, send, read the answer (libcurl and the kernel's TCP)": Bench.send,
    "receipt: a row on disk, in groups, with fsync": Bench.receipt,
    "log line, JSON into a file": Bench.log,
    "unlink: look, rename, look, remove": Bench.unlink,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians count (default: %(default)s)")
    parser.add_argument(
        "--update-docs", action="store_true", help="write the table into docs/developers-performance.md"
    )
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": sinks.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": sinks.SECRET_KEY}
    taken: dict[str, list[float]] = {name: [] for name in STEPS}
    with rooms() as (memory, disk), sinks.nginx(memory / "sink", answer_s=0) as sink:
        bench = Bench(memory, disk, options.files, sink.endpoint_url)
        for _ in range(options.rounds):
            for name, step in STEPS.items():
                taken[name].append(step(bench) / options.files * 1e6)
    figures = {name: median(values) for name, values in taken.items()}
    lines = [[name, f"{figure:.1f}"] for name, figure in figures.items()]
    text = report.markdown_table([["step", "us CPU a file"], *lines, ["sum", f"{sum(figures.values()):.0f}"]])
    print(text)
    if options.update_docs:
        report.replace_between(results.REPOSITORY / "docs/developers-performance.md", BEGIN, END, text)


@contextmanager
def rooms() -> Iterator[tuple[Path, Path]]:
    """For the files, and for ledger and log."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        yield Path(memory), Path(disk)


if __name__ == "__main__":
    main()
