"""Liveness: a thread whose heartbeat is old is named; a thread that waits for a good reason beats."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from s3spool import heartbeat
from s3spool.daemon.liveness import LivenessCheck
from s3spool.discovery.watch import Watch
from s3spool.folder.filters import FileFilter
from s3spool.heartbeat import HangDetector, Heartbeat, cpu_time_ns
from s3spool.queue import inbox
from support.house import Build
from support.rows import a_retry
from support.waiting import eventually


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits beat more often."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    monkeypatch.setattr(inbox, "MEANWHILE_S", 0.05)


def beats_on(one: Heartbeat) -> bool:
    """Whether it beats twice from now on: the first beat may be one that was under way."""
    for _ in range(2):
        before = one.last
        eventually(lambda before=before: one.last > before)  # type: ignore[misc] # called at once
    return True


def test_an_old_heartbeat_and_a_dead_thread_are_named(build: Build) -> None:
    """A heartbeat after the time-out, and no more once the thread beats; a thread as soon as it has ended."""
    house = build()
    house.start(house.ledger, house.after, house.retry, house.settle_thread, house.scan)
    watch, now = Heartbeat(), time.monotonic()
    liveness = LivenessCheck(house.components, watch)

    watch.last = now - liveness.timeout_s
    assert liveness.silent(now) == []
    watch.last = now - liveness.timeout_s - 1
    assert liveness.silent(now) == ["watch"]
    watch.beat()
    assert liveness.silent(now) == []
    house.retry.close(10)
    assert liveness.silent(now) == ["RetryThread"]
    house.close()


def test_a_wait_beats_and_ends_in_time() -> None:
    """It returns with the event, or False after its time-out, and beats meanwhile."""
    one, event = Heartbeat(), threading.Event()

    assert not one.wait(event, 0.0)
    assert not one.wait(event, 0.12)
    threading.Timer(0.2, event.set).start()
    before = one.last
    assert one.wait(event, None)
    assert one.last > before + 0.1
    assert one.wait(event, 5.0)


def test_idle_threads_beat(build: Build) -> None:
    """Each does while it runs and has nothing to do, and none is a reason to scan."""
    house = build()
    house.start(house.ledger, house.after, house.retry, house.settle_thread, house.scan)

    for component in (house.ledger, house.after, house.retry, house.settle, house.scan):
        assert beats_on(component.heartbeat)

    assert house.scan.started == 0


def test_a_hanging_gate_does_not_beat(build: Build) -> None:
    """A gate that is free beats when the supervisor looks at it; a worker that hangs in it does not."""
    house = build()
    before = house.workers.heartbeat.last
    house.workers.look_at_gate()
    free = house.workers.heartbeat.last

    with house.workers._gate:
        house.workers.look_at_gate()

    assert house.workers.heartbeat.last == free > before


def test_workers_beat_in_the_gate(build: Build) -> None:
    """Where the gate is busy at each look, the files that pass it show that no worker hangs."""
    house = build()
    before = house.workers.heartbeat.last
    house.drop("a")
    house.start()

    house.offer("a")

    eventually(lambda: house.workers.heartbeat.last > before)
    house.quiet()


def test_a_thread_that_waits_for_room_beats(build: Build) -> None:
    """A full inbox is a paused destination's doing: a restart does not repair it, so it is no hang."""
    house = build(size=1)
    for name in "abc":
        house.drop(name)
    house.start(house.ledger, house.settle_thread, house.scan)
    house.offer("full")
    house.scan.want("start")
    house.settle.add("d")
    eventually(lambda: house.inbox._waiting_offers.total() == 2)

    assert beats_on(house.scan.heartbeat)
    assert beats_on(house.settle.heartbeat)


def test_a_thread_that_waits_for_a_failing_ledger_beats(build: Build) -> None:
    """The retry list cannot be written for hours where a disk is full: its thread lives all the same."""
    house = build()
    house.start(house.ledger)
    hold, held = threading.Event(), threading.Event()
    house.ledger.record_retry(a_retry("a", next_attempt=0.0), lambda: (held.set(), hold.wait()))  # type: ignore[arg-type, func-returns-value]
    assert held.wait(10)
    house.start(house.retry)
    eventually(lambda: house.inbox.counts() == (1, 0), message="due, and to be claimed in the ledger")

    assert beats_on(house.retry.heartbeat)

    hold.set()


def test_the_watch_beats(tmp_path: Path) -> None:
    """Watchdog's own thread does, while nothing happens."""
    beating: list[threading.Thread] = []
    one = Heartbeat()
    one.beat = lambda: beating.append(threading.current_thread())  # type: ignore[method-assign]
    watch = Watch(
        tmp_path,
        FileFilter(["*"], []),
        recursive=True,
        hint=lambda *_: None,
        rescan=lambda _: None,
        lost=lambda: None,
        heartbeat=one,
    )
    watch.start()
    eventually(lambda: len(beating) > 2)

    assert set(beating) == {watch._inotify}
    watch.stop()


def test_a_worker_that_neither_sends_nor_waits_is_named(build: Build) -> None:
    """It has a file and uses no CPU; one that has nothing to do, or goes on, is well."""
    house = build(workers=2)
    stuck = threading.Event()
    house.bucket.before_put = lambda _: stuck.wait()
    house.drop("a")
    house.start()
    assert house.workers.hanging(0.0) == []
    house.offer("a")
    eventually(house.workers.jobs)
    eventually(lambda: not house.workers.hanging(0.0) and house.workers.hanging(1000.0), message="it sleeps")

    (name,) = house.workers.hanging(2000.0)

    assert name.startswith("upload-")
    stuck.set()
    eventually(lambda: not house.workers.jobs())
    assert house.workers.hanging(3000.0) == []


def test_a_thread_that_uses_the_cpu_does_not_hang() -> None:
    """A checksum of a large file, or libcurl's look at the clock, is work."""
    detector = HangDetector()
    me, file = threading.get_native_id(), object()

    assert detector.find([(me, file)], 0.0, 10.0) == []
    before = cpu_time_ns(me)
    while cpu_time_ns(me) == before:
        pass
    assert detector.find([(me, file)], 100.0, 10.0) == []
    assert cpu_time_ns(2**22 + 1) == -1, "it has ended, or never was"
