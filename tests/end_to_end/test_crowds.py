"""Crowds of bad files beside good ones, and outages: the real daemon before a real HTTP server that misbehaves."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import pytest

from s3spool.failure.breaker import STREAK
from support.daemon import Daemon
from support.faults import Fault, Reset, Silent, Status
from support.faulty import FaultyS3
from support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

GOOD = 20
GRACE_S = 20.0  # for what the stream brings meanwhile
TIMEOUT_S = 3  # of requests that are never answered
SOON_S = 60.0  # the model in virtual time has the real limits; `-m slow` asks for STRICT_S
STRICT_S = 12.0
WORKERS = 100  # by default
SEED = int(os.environ.get("CROWDS_SEED", "1"))
LARGE = {"multipart_threshold": 5 * 2**20, "part_size": 5 * 2**20}


class Kind(NamedTuple):
    """A way to fail. `refused`: S3 says that it will never take this file."""

    fault: Callable[[], Fault]
    refused: bool = False
    slow_s: float = 0.0


KINDS = {
    "400": Kind(lambda: Status(code=400, error_code="InvalidRequest"), refused=True),
    "413": Kind(lambda: Status(code=413, error_code="EntityTooLarge"), refused=True),
    "403": Kind(lambda: Status(code=403, error_code="AccessDenied")),
    "500": Kind(lambda: Status(code=500, error_code="InternalError")),
    "time-out": Kind(Silent, slow_s=TIMEOUT_S),
    "reset": Kind(lambda: Reset("before")),
    "checksum": Kind(lambda: Status(code=400, error_code="BadDigest")),
}


class Row(NamedTuple):
    """One crowd: so many bad files, dropped `order` the good ones; `large` ones go in parts."""

    kind: str
    crowd: int
    order: str  # before, mixed, after
    running: bool = True  # dropped while the daemon runs, else before its start
    large: bool = False

    def __str__(self) -> str:
        return f"{self.kind} x {self.crowd} {self.order}{'' if self.running else ' at start'}{' large' * self.large}"


# A few rows hold each kind, each order, small and large files, at start and running; all rows go by hand.
# `support.failure_model` has crowds of 300 in virtual time.
QUICK = [
    Row("400", 40, "before"),
    Row("413", 5, "mixed", large=True),
    Row("403", 150, "mixed", running=False),
    Row("500", 40, "after"),
    Row("time-out", 150, "before", running=False),
    Row("reset", 5, "before", large=True),
    Row("checksum", 40, "mixed"),
]
ALL = [
    Row(kind, count, order, running, large)
    for kind in KINDS
    for count in (1, 5, 40, 300)
    for order in ("before", "mixed", "after")
    for running in (True, False)
    for large in (False, True)
    if not (large and count == 300)  # 3 GiB of bad files prove no more than 40 of them
]


@pytest.fixture
def make(make: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """With `upload` as given, but for the time-out."""

    def daemon(**upload: object) -> Daemon:
        retry = {"initial_s": 1, "max_s": 300, "max_attempts": 2}
        return make(upload={"timeout_s": 30, **upload}, retry=retry, watch={"rescan_s": 3600})

    return daemon


def uploaded_at(daemon: Daemon) -> dict[str, float]:
    """Unix seconds, by path."""
    return {
        event["path"]: datetime.fromisoformat(event["timestamp"]).timestamp()
        for event in daemon.events("file.uploaded")
    }


def slowest_s(daemon: Daemon, arrived: dict[str, float], within_s: float, *, stream: str = "") -> float:
    """How long the slowest of these took; waits for all of them. `stream`: drop another good one each 2.5 s."""
    deadline = time.monotonic() + within_s
    while not arrived.keys() <= uploaded_at(daemon).keys() and time.monotonic() < deadline:
        if stream:
            daemon.drop(path := f"{stream} {len(arrived)}")
            arrived[path] = time.time()
        with suppress(AssertionError):
            eventually(lambda: arrived.keys() <= uploaded_at(daemon).keys(), timeout_s=2.5)
    uploaded = uploaded_at(daemon)
    missing = sorted(arrived.keys() - uploaded.keys())
    assert not missing, f"{len(missing)} good files wait after {within_s} s: {missing[:3]}"
    return max(uploaded[path] - since for path, since in arrived.items())


def states(daemon: Daemon) -> dict[str, dict[str, object]]:
    lines = daemon.cli("list", "--all", "--json").stdout.splitlines()
    return {row["path"]: row for row in map(json.loads, lines)}


def plan(row: Row) -> list[tuple[str, bytes]]:
    """The drops in their order."""
    size = 6 * 2**20 if row.large else 100
    good = [(f"good {number}", b"g" * (size if number % 2 else 100)) for number in range(GOOD)]
    bad = [(f"bad {number}", b"b" * size) for number in range(row.crowd)]
    if row.order == "mixed":
        drops = good + bad
        random.Random(SEED).shuffle(drops)
        return drops
    return bad + good if row.order == "before" else good + bad


def parks_all(daemon: Daemon, within_s: float) -> None:
    """While good files go on coming."""
    number = 0
    deadline = time.monotonic() + 60
    while not all(row["state"] == "parked" for path, row in states(daemon).items() if path.startswith("bad")):
        assert time.monotonic() < deadline, "each refused file is parked once others pass"
        number += 1
        daemon.drop(f"another good {number}", b"good")
        daemon.wait_event("file.uploaded", path=f"another good {number}", timeout_s=within_s)


def upload_of(it: Row | Outage) -> dict[str, object]:
    timeout = {"timeout_s": TIMEOUT_S} if KINDS[it.kind].slow_s else {}
    return {**timeout, **(LARGE if isinstance(it, Row) and it.large else {})}


def check_crowd(row: Row, faulty: FaultyS3, daemon: Daemon, soon_s: float = SOON_S) -> None:
    kind = KINDS[row.kind]
    faulty.script(kind.fault(), times=None, match=r"^(PUT|POST) bad \d+(\?|$)")
    # Requests that are never answered hold all workers for one time-out, more than a hundred for several.
    within_s = soon_s + kind.slow_s * -(-row.crowd // WORKERS)
    if row.running:
        daemon.start().wait_ready()
    arrived: dict[str, float] = {}
    for path, content in plan(row):
        daemon.drop(path, content)
        if path.startswith("good"):
            arrived[path] = time.time()
    if not row.running:
        daemon.start()
        started = datetime.fromisoformat(daemon.wait_ready()["timestamp"]).timestamp()
        arrived = dict.fromkeys(arrived, started)
    assert slowest_s(daemon, arrived, within_s + GRACE_S, stream="good of the stream") <= within_s

    # And while all the bad ones are known.
    for number in range(3):
        daemon.drop(f"late good {number}", b"late")
        late = {f"late good {number}": time.time()}
        assert slowest_s(daemon, late, within_s) <= within_s
    if kind.refused:
        parks_all(daemon, within_s)

    def all_listed() -> dict[str, dict[str, object]]:
        # One that goes from the queue to the ledger while `list` reads both may be missing once.
        listed = states(daemon)
        return listed if sum(path.startswith("bad") for path in listed) == row.crowd else {}

    listed = eventually(all_listed)
    assert not [path for path, it in listed.items() if "good" in path and it["state"] != "uploaded"]
    if kind.refused:
        assert all(listed[path]["error"] for path in listed if path.startswith("bad"))
    for event in (*daemon.events("file.failed"), *daemon.events("file.parked")):
        assert not event["path"].startswith(("good", "late", "another")), "no good file is blamed"


@pytest.mark.parametrize("row", QUICK, ids=str)
def test_a_crowd(row: Row, faulty: FaultyS3, make: Callable[..., Daemon]) -> None:
    """Each good file goes out soon, none is blamed, and each refused one ends up parked."""
    check_crowd(row, faulty, make(**upload_of(row)))


@pytest.mark.slow
@pytest.mark.parametrize("row", ALL, ids=str)
def test_every_crowd(row: Row, faulty: FaultyS3, make: Callable[..., Daemon]) -> None:
    """All of them, for an hour: `pytest -m slow tests/end_to_end/test_crowds.py`."""
    check_crowd(row, faulty, make(**upload_of(row)), STRICT_S)


def test_yesterdays_retries(faulty: FaultyS3, make: Callable[..., Daemon]) -> None:
    """Nothing but files that failed yesterday: those that are good now pass at once, the others do not stop them."""
    faulty.script(Status(code=500, error_code="InternalError"), times=None, match=r"^PUT (bad|good) \d+$")
    daemon = make().start()
    daemon.wait_ready()
    names = {f"{kind} {number}" for number in range(40) for kind in ("bad", "good")}
    for name in sorted(names):
        daemon.drop(name)
    rounds, deadline = 0, time.monotonic() + 200
    while not names <= {event["path"] for event in daemon.events("file.failed")}:
        rounds += 1
        assert time.monotonic() < deadline, "each has failed"
        daemon.drop(f"other {rounds}")  # passes, so that the failures are each file's own
        daemon.wait_event("file.uploaded", path=f"other {rounds}")
    daemon.kill()
    faulty.behave()
    faulty.script(Status(code=500, error_code="InternalError"), times=None, match=r"^PUT bad \d+$")

    daemon.start().wait_ready()
    assert daemon.cli("retry", "--all").returncode == 0

    arrived = {f"good {number}": time.time() for number in range(40)}
    assert slowest_s(daemon, arrived, SOON_S) <= SOON_S


class Outage(NamedTuple):
    """Everything fails for so long at least, with so many files."""

    kind: str
    files: int
    lasts_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}, {self.files} files, {self.lasts_s:g} s"


# Each kind of failure for twelve files: test_where_all_files_meet_it in test_server_faults.py.
QUICK_OUTAGES = [Outage("500", 3), Outage("413", 1000)]
ALL_OUTAGES = [Outage(kind, files, 90) for kind in KINDS for files in (3, 1000, 100_000)]


def check_outage(outage: Outage, faulty: FaultyS3, daemon: Daemon, soon_s: float = SOON_S) -> None:
    kind = KINDS[outage.kind]
    daemon.start().wait_ready()
    daemon.drop("before")
    daemon.wait_event("file.uploaded", path="before")
    faulty.script(kind.fault(), times=None, match=r"^PUT")
    began = time.monotonic()
    for number in range(outage.files):
        (daemon.folder / f"file {number}").write_bytes(b"content")
    if outage.files > STREAK or outage.kind == "403":
        daemon.wait_event("destination.paused")
    tried = faulty.count("^PUT")
    eventually(lambda: faulty.count("^PUT") >= tried + 9, timeout_s=60, message="each is tried three times")
    eventually(lambda: time.monotonic() > began + outage.lasts_s, timeout_s=outage.lasts_s + 10)
    listed = states(daemon)
    assert not [row for row in listed.values() if row["state"] == "parked" and outage.files > STREAK]
    assert not [row for row in listed.values() if str(row.get("fault", "")).startswith("its own")]

    faulty.behave()
    ended = time.time()
    # What was refused three times in a quiet folder is parked until another file passes.
    daemon.drop("after")

    with suppress(AssertionError):
        eventually(
            lambda: len(daemon.events("file.uploaded")) >= outage.files + 2,
            timeout_s=60 + outage.files / 100,  # the server of the tests takes a few hundred files a second
        )
    uploaded = uploaded_at(daemon)
    missing = sorted({f"file {number}" for number in range(outage.files)} - uploaded.keys())
    assert not missing, f"{len(missing)} are not sent: {[daemon.cli('why', path).stdout for path in missing[:3]]}"
    assert len(uploaded) == len(daemon.events("file.uploaded")) == outage.files + 2, "each is sent once"
    first = min(at for path, at in uploaded.items() if path != "before")
    assert first - ended <= soon_s + kind.slow_s
    if outage.files <= 1000:
        assert max(uploaded.values()) - ended <= soon_s + 3 + kind.slow_s
    assert not [row for row in states(daemon).values() if row["state"] != "uploaded"]


@pytest.mark.parametrize("outage", QUICK_OUTAGES, ids=str)
def test_an_outage(outage: Outage, faulty: FaultyS3, make: Callable[..., Daemon]) -> None:
    """Nothing is parked for good, nothing counts, and soon after its end everything is sent."""
    check_outage(outage, faulty, make(**upload_of(outage)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("outage", ALL_OUTAGES, ids=str)
def test_every_outage(outage: Outage, faulty: FaultyS3, make: Callable[..., Daemon]) -> None:
    """The same for 90 s, with up to 100,000 files."""
    check_outage(outage, faulty, make(**upload_of(outage)), STRICT_S)
