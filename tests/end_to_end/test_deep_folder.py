"""Trees that somebody made to harm: very deep, very wide, changing all the time. Other files do not wait for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3spool.s3.keys import too_deep
from support.arrivals import slowest_arrival_s
from support.daemon import Daemon
from support.faulty import FaultyS3
from support.waiting import eventually

pytestmark = pytest.mark.integration

SCALE = int(os.environ.get("S3SPOOL_TEST_SCALE", "1"))
SECONDS = 2 * min(SCALE, 20)
GOOD_S = 5.0 if SCALE > 1 else 30.0  # no good file takes longer beside any of this
ROOM_KIB = 60 * 1024  # what the daemon may grow by

CHAIN = """
import os
for n in range({levels}):
    try:
        os.mkdir({name!r} * {length})
    except FileExistsError:
        pass
    os.chdir({name!r} * {length})
    if n % 100 == 0:
        open("file", "w").close()
"""
REMADE = """
import os, time
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    os.mkdir("again"); os.rmdir("again"); time.sleep(0.0008)
"""


@pytest.fixture
def daemon(tmp_path: Path, faulty: FaultyS3) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, faulty, watch={"rescan_s": 1}, log={"level": "info"})
    yield daemon
    subprocess.run(["rm", "-rf", "--", daemon.folder], check=True)


def beside(daemon: Daemon, faulty: FaultyS3, act: Callable[[], object]) -> None:
    """Good files are dropped while `act` runs: none may be slow, and the memory may not grow."""
    before_kib, slowest_s = daemon.process_status("VmHWM"), 0.0
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        while not acting.done():
            slowest_s = max(slowest_s, slowest_arrival_s(daemon, faulty, 4, each_s=0.25))
        acting.result()
    grown_kib = daemon.process_status("VmHWM") - before_kib
    print(f"grown by {grown_kib // 1024} MiB; the slowest good file took {slowest_s:.2f} s")  # noqa: T201 - figures
    assert slowest_s < GOOD_S
    assert grown_kib < ROOM_KIB


def run(text: str, folder: Path, **values: object) -> None:
    subprocess.run([sys.executable, "-c", text.format(**values)], cwd=folder, check=True, timeout=600)


def scan_twice(daemon: Daemon, timeout_s: float = 60.0) -> None:
    scans = daemon.scans()
    eventually(lambda: daemon.scans() >= scans + 2, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("levels", "length", "when"),
    [
        (3500, 255, "before"),
        (3000, 1, "while it runs"),
        pytest.param(3000, 1, "before", marks=pytest.mark.slow),
    ],
)
def test_a_deep_tree_holds_nobody_up(levels: int, length: int, when: str, daemon: Daemon, faulty: FaultyS3) -> None:
    """What no key could be made of is named once, in the log, by status and by check, and not looked into."""

    def chain() -> None:
        run(CHAIN, daemon.folder, levels=levels, name="d", length=length)

    def chain_and_scan() -> None:
        chain()
        daemon.wait_event("directory.too_deep")
        scan_twice(daemon)

    if when == "before":
        chain()
    with daemon.start_ready():
        beside(daemon, faulty, chain_and_scan)
        (deep,) = daemon.events("directory.too_deep")
        status, check = daemon.cli("status"), daemon.cli("check")

        assert 1024 <= len(deep["path"]) + 1 <= 1024 + length
        assert "too deep" in status.stdout
        assert "1 directory is" in check.stdout + check.stderr
        assert max(map(len, daemon.log_path.read_bytes().splitlines())) < 4096
        assert max(map(len, (status.stdout + check.stdout).splitlines())) < 4096
        assert {name for name in faulty.objects if not name.startswith("good")} == {
            f"{'/'.join(['d' * length] * (level + 1))}/file"
            for level in range(0, levels, 100)
            if (level + 1) * (length + 1) + 4 <= 1024
        }
        assert daemon.stop() == 0


def test_a_directory_made_and_removed_again_and_again(daemon: Daemon, faulty: FaultyS3) -> None:
    """A thousand times a second."""
    with daemon.start_ready():
        beside(daemon, faulty, lambda: run(REMADE, daemon.folder, seconds=SECONDS))
        assert not daemon.events("library.warning")
        assert daemon.stop() == 0


@pytest.mark.timeout(120 + 20 * SCALE)
def test_very_many_directories(daemon: Daemon, faulty: FaultyS3) -> None:
    """Made before the start and while it runs; they take memory up to a limit."""
    count = min(1_000_000, 4000 * SCALE)

    def make_and_scan() -> None:
        for number in range(count // 2):
            (daemon.folder / f"{number % 100}" / f"new {number}").mkdir()
        scan_twice(daemon, timeout_s=60 + count / 1000)

    for number in range(count // 2):
        (daemon.folder / f"{number % 100}" / f"{number}").mkdir(parents=True)
    with daemon.start_ready():
        beside(daemon, faulty, make_and_scan)
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("directory", "prefix", "expected"),
    [
        ("a", "", False),
        ("d" * 1022, "", False),
        ("d" * 1023, "", True),
        ("d/" * 511, "", False),
        ("d/" * 511 + "d", "", True),
        ("d" * 1012, "0123456789", False),
        ("d" * 1013, "0123456789", True),
        ("\n" * 341, "", True),
        ("\n" * 340, "", False),
        ("d" * 1022, "%Y", False),
        ("d" * 1022, "%Y/", True),
    ],
)
def test_the_depth_at_which_no_key_has_room(directory: str, prefix: str, expected: bool) -> None:
    """A file's name of one byte has to fit; the fields of a prefix, whose length may change, are not counted."""
    assert too_deep(directory, [prefix]) is expected
