"""An idle daemon uses no CPU, and no file waits without a cause: a burning core and a stall are bugs of their own."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Daemon, Make
from support.faults import Delay, Status
from support.faulty import FaultyS3
from support.objects import content_of
from support.waiting import eventually

pytestmark = pytest.mark.integration

SPAN_S, SPANS = 1.0, 12
SHARE = 0.5  # of its time that a thread runs or waits for a CPU; a burning one does nothing else
AT_ONCE_S, TRIES = 3.0, 5  # a lost wake-up delays each file until the next heartbeat, after ten seconds
LARGE = 6 * 2**20


@pytest.fixture
def make(make: Make) -> Make:
    """Nothing but a wake-up brings a file on: the next scan comes in an hour, the next try in a minute."""

    def daemon(watch: dict[str, Any] | None = None, upload: dict[str, Any] | None = None) -> Daemon:
        return make(
            watch={"rescan_s": 3600, "settle_s": 0} | (watch or {}),
            upload={"workers": 4, "multipart_threshold": "5MiB", "part_size": "5MiB"} | (upload or {}),
            retry={"initial_s": 60, "max_s": 60},
        ).start_scanned()

    return daemon


def wanted_s(pid: int) -> dict[str, float]:
    """By thread, the CPU time that it has had or waited for: a busy machine hides no burning thread."""
    wanted = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            ran_ns, waited_ns, _ = (task / "schedstat").read_text().split()
            wanted[task.name] = (int(ran_ns) + int(waited_ns)) / 1e9
    return wanted


def assert_idle(daemon: Daemon) -> None:
    """In one of several spans, so that what is still being finished does not count."""
    shares = []
    for _ in range(SPANS):
        before_s, began_s = wanted_s(daemon.pid), time.monotonic()
        assert daemon.ends_within(SPAN_S) is None
        most_s = max(after_s - before_s.get(thread, 0.0) for thread, after_s in wanted_s(daemon.pid).items())
        shares.append(most_s / (time.monotonic() - began_s))
        if shares[-1] < SHARE:
            return
    raise AssertionError(f"a thread burns {shares} of a CPU\n{daemon.log_tail()}")


def test_after_the_first_scan(make: Make) -> None:
    """Nothing was there, and nothing comes."""
    assert_idle(make())


def test_while_a_file_settles(make: Make) -> None:
    """Its time is far away."""
    daemon = make(watch={"settle_s": 600})
    daemon.drop("young")
    eventually(lambda: "1 settling" in daemon.cli("status").stdout)

    assert_idle(daemon)


def test_while_a_file_is_open_for_writing(make: Make) -> None:
    """It is looked at now and then, not all the time."""
    daemon = make()
    with (daemon.folder / "open").open("wb") as file:
        file.write(b"half")
        file.flush()
        eventually(lambda: "1 settling" in daemon.cli("status").stdout)

        assert_idle(daemon)


def test_while_a_file_waits_for_its_next_try(make: Make, faulty: FaultyS3) -> None:
    """The retry thread sleeps until it is due."""
    daemon = make()
    faulty.script(Status(code=500), times=None)
    daemon.drop("refused")
    daemon.wait_event("file.failed")

    assert_idle(daemon)


def test_while_a_new_directory_finds_no_room(make: Make, tmp_path: Path) -> None:
    """Its listing waits for files to settle, and they do not."""
    daemon = make(watch={"settle_s": 600}, upload={"queue_size": 10})
    tree = tmp_path / "tree"
    for number in range(50):
        directory = tree / str(number % 5)  # room is looked for ahead of each
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(number)).touch()

    tree.rename(daemon.folder / "tree")

    eventually(lambda: re.search(r"\b[1-9]\d* settling", daemon.cli("status").stdout))
    assert_idle(daemon)


@pytest.mark.parametrize("queue_size", [10, 10_000], ids=["full queue", "room"])
def test_while_the_destination_is_paused(make: Make, faulty: FaultyS3, queue_size: int) -> None:
    """Probes go by the clock, with all workers and many files waiting."""
    daemon = make(upload={"queue_size": queue_size})
    faulty.script(Status(code=403, error_code="AccessDenied"), times=None)
    for number in range(200):
        daemon.drop(str(number))
    daemon.wait_event("destination.paused")

    assert_idle(daemon)


def test_after_uploads(make: Make) -> None:
    """Small and large files are sent, their connections are idle, then closed."""
    daemon = make()
    for number in range(100):
        daemon.drop(str(number))
    daemon.drop("large", content_of(LARGE))
    daemon.wait_uploaded(101)

    assert_idle(daemon)


def sockets(daemon: Daemon) -> int:
    links = []
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_connections_are_closed_once_a_crowd_of_large_files_has_gone(make: Make, faulty: FaultyS3) -> None:
    """libcurl's and boto3's, however many were open at once."""
    daemon = make(upload={"workers": 40})
    before = sockets(daemon)
    faulty.script(Delay(0.5), times=None, match="^POST")
    daemon.drop_all({f"large {number}": bytes(LARGE) for number in range(12)})
    eventually(lambda: sockets(daemon) >= before + 8)

    daemon.wait_uploaded(12)

    eventually(lambda: sockets(daemon) <= before)


@pytest.mark.parametrize("size", [100, 300 * 1024, LARGE], ids=["small", "medium", "large"])
@pytest.mark.parametrize("how", ["renamed", "written"])
def test_a_file_for_an_idle_daemon_goes_at_once(make: Make, size: int, how: str) -> None:
    """No step waits for a heartbeat, a scan or another file."""
    daemon = make()
    taken_s = []
    for number in range(TRIES):
        name, content = f"{number}", content_of(size)
        began_s = time.monotonic()
        if how == "renamed":
            daemon.drop(name, content)
        else:
            (daemon.folder / name).write_bytes(content)
        daemon.wait_event("file.uploaded", path=name)
        taken_s.append(time.monotonic() - began_s)
        if taken_s[-1] < AT_ONCE_S:
            return
    raise AssertionError(f"each file has waited: {taken_s}\n{daemon.log_tail()}")
