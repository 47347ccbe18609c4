"""A hundred large files over a hundred slow connections: what the real daemon holds of them, and keeps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.blackhole import NEVER_WRITTEN, Blackhole, Connection
from benchmarks.proc import peak_rss_bytes, rss_bytes

from support.daemon import Daemon
from support.waiting import eventually

MIB = 2**20
FILES = 100
FILE_MIB = int(os.environ.get("MEMORY_FILE_MIB", "256"))
CONNECTION_BYTES_S = 2 * MIB
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class SlowLine(Connection):
    """Takes so many bytes a second, as a long line does: more connections carry more."""

    busy = 0
    most_busy = 0
    lock = threading.Lock()

    def _discard(self, count: int) -> None:
        begun, taken = time.monotonic(), 0
        with self.lock:
            SlowLine.busy += 1
            SlowLine.most_busy = max(SlowLine.most_busy, SlowLine.busy)
        try:
            while taken < count:
                wanted = min(count - taken, MIB // 8)
                more = self.request.recv_into(NEVER_WRITTEN, wanted)
                if not more:
                    raise ConnectionError("closed inside a body")
                taken += more
                time.sleep(max(0.0, begun + taken / CONNECTION_BYTES_S - time.monotonic()))  # the line's speed
        finally:
            with self.lock:
                SlowLine.busy -= 1


@pytest.fixture
def server() -> Iterator[Blackhole]:
    server = Blackhole()
    server.RequestHandlerClass = SlowLine
    thread = threading.Thread(target=server.serve_forever, name="slow line")
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("part_mib", [5, 16, 64])
def test_memory_does_not_grow_with_files_or_parts(tmp_path: Path, server: Blackhole, part_mib: int) -> None:
    """At most 200 MiB with a hundred under way, less than 100 when idle again, whatever the size of a part."""
    SlowLine.most_busy = 0
    upload = {"part_size": f"{part_mib}MiB"}
    destination = {"endpoint_url": server.endpoint_url, "region": "us-east-1"}
    with Daemon(tmp_path, bucket="bucket", environment=KEYS, upload=upload, destination=destination) as daemon:
        daemon.wait_ready()
        for number in range(FILES):
            hole = tmp_path / f"hole-{number}"
            with hole.open("wb") as file:
                file.truncate(FILE_MIB * MIB)
            hole.rename(daemon.folder / hole.name)
        daemon.wait_uploaded(FILES, timeout_s=500)
        peak = peak_rss_bytes(daemon.pid) / MIB
        eventually(lambda: rss_bytes(daemon.pid) < 100 * MIB, timeout_s=30, message="memory has gone back")

        print(f"{part_mib=} {peak=:.0f} MiB, idle {rss_bytes(daemon.pid) / MIB:.0f}, {SlowLine.most_busy} at once")  # noqa: T201 - figures
    assert peak <= 200
    assert SlowLine.most_busy > FILES // 2
