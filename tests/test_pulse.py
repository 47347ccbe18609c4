"""Proof of life: who does not answer is named, who answers is asked again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from s3spool.daemon.liveness import Pulse
from s3spool.discovery.watch import Watch
from s3spool.folder.filters import FileFilter
from s3spool.heartbeat import HangDetector, cpu_time_ns
from s3spool.queue import inbox
from s3spool.upload import workers
from support.house import House
from support.rows import a_retry
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def test_who_does_not_answer_in_time_is_named() -> None:
    """Only after the patience is over, and no more once the answer comes; nobody is asked twice meanwhile."""
    asked: list[Callable[[], None]] = []
    pulse = Pulse({"mute": asked.append, "well": lambda answer: answer()}, patience_s=10)

    assert pulse.silent(100.0) == []
    assert pulse.silent(109.0) == []
    assert pulse.silent(111.0) == ["mute"]
    assert len(asked) == 1
    asked[0]()
    assert pulse.silent(112.0) == []
    assert len(asked) == 2


def test_the_rooms_answer(tmp_path: Path) -> None:
    """Each does while it runs; a gate in which somebody hangs does not."""
    house = House(tmp_path)
    house.start(house.ledger, house.after, house.workers, house.retry, house.settle_thread, house.scan)
    components = {
        "ledger": house.ledger.ping,
        "after": house.after.ping,
        "workers": house.workers.ping,
        "retry": house.retry.ping,
        "settle": house.settle.ping,
        "scan": house.scan.ping,
    }
    answered: list[str] = []

    for name, ping in components.items():
        ping(lambda name=name: answered.append(name))  # type: ignore[misc] # bound at once
    eventually(lambda: len(answered) == len(components))
    with house.workers._gate:
        house.workers.ping(lambda: answered.append("a hanging gate"))

    assert sorted(answered) == sorted(components)
    assert house.scan.started == 0, "a question is no reason to scan"
    house.close()


def test_the_gate_is_asked_without_a_thread_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine at its limit of threads is no reason to end a daemon that is well."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    house = House(tmp_path)
    answered: list[str] = []
    monkeypatch.setattr(threading.Thread, "start", none_left)
    monkeypatch.setattr(workers, "PING_S", 0.05)

    house.workers.ping(lambda: answered.append("free"))
    with house.workers._gate:
        house.workers.ping(lambda: answered.append("a hanging gate"))

    assert answered == ["free"]
    house.close()


def test_who_waits_for_room_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full inbox is a paused destination's doing: a restart would not mend it, so it must not look like a hang."""
    monkeypatch.setattr(inbox, "MEANWHILE_S", 0.05)
    house = House(tmp_path, size=1)
    for name in "abc":
        house.drop(name)
    house.start(house.ledger, house.settle_thread, house.scan)
    house.offer("full")
    house.scan.want("start")
    house.settle.add("d")
    eventually(lambda: house.inbox._waiting_offers.total() == 2)
    answered: list[str] = []

    house.scan.ping(lambda: answered.append("scan"))
    house.settle.ping(lambda: answered.append("settle"))

    eventually(lambda: sorted(answered) == ["scan", "settle"])
    house.close()


def test_who_waits_for_a_failing_ledger_answers(tmp_path: Path) -> None:
    """The retry list cannot be written for hours where a disk is full: its thread lives all the same."""
    house = House(tmp_path)
    house.start(house.ledger)
    house.ledger.record_retry(a_retry("a", next_attempt=0.0))
    assert house.ledger.flush(10)
    hold, held = threading.Event(), threading.Event()
    house.ledger.ping(lambda: (held.set(), hold.wait()))  # type: ignore[arg-type, func-returns-value]
    assert held.wait(10)
    house.start(house.retry)
    eventually(lambda: house.inbox.counts() == (1, 0), message="due, and to be claimed in the ledger")
    answered: list[str] = []

    house.retry.ping(lambda: answered.append("retry"))

    eventually(lambda: answered)
    hold.set()
    house.close()


def test_a_question_between_look_and_sleep_is_answered(tmp_path: Path) -> None:
    """Asked a thousand times in a row, no answer is lost: each ring wakes the thread that goes to sleep."""
    house = House(tmp_path)
    house.start(house.ledger, house.retry, house.settle_thread, house.scan)

    for ping in (house.settle.ping, house.scan.ping, house.retry.ping):
        for _ in range(1000):
            answered = threading.Event()
            ping(answered.set)
            assert answered.wait(10)

    house.close()


def test_the_watch_answers_over_the_kernel(tmp_path: Path) -> None:
    """The answer comes on watchdog's thread; a watch that was stopped leaves no question open."""
    watch = Watch(
        tmp_path,
        FileFilter(["*"], []),
        recursive=True,
        hint=lambda *_: None,
        rescan=lambda _: None,
        lost=lambda: None,
    )
    watch.start()
    eventually(lambda: watch._self_test is not None and watch._self_test._heard)
    threads: list[threading.Thread] = []

    watch.ping(lambda: threads.append(threading.current_thread()))
    eventually(lambda: threads)
    assert threads == [watch._inotify]
    watch.stop()
    watch.ping(lambda: threads.append(threading.current_thread()))

    assert threads[1:] == [threading.current_thread()]


def test_a_worker_that_neither_sends_nor_waits_is_named(tmp_path: Path) -> None:
    """It has a file and uses no CPU; one that has nothing to do, or goes on, is well."""
    house = House(tmp_path, workers=2)
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
    house.close()


def test_who_uses_the_cpu_does_not_hang() -> None:
    """A checksum of a large file, or libcurl's look at the clock, is work."""
    stall = HangDetector(patience_s=10)
    me, file = threading.get_native_id(), object()

    assert stall.look([(me, file)], 0.0) == []
    before = cpu_time_ns(me)
    while cpu_time_ns(me) == before:
        pass
    assert stall.look([(me, file)], 100.0) == []
    assert cpu_time_ns(2**22 + 1) == -1, "it has ended, or never was"
