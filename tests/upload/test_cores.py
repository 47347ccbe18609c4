"""Which CPU the threads share: real affinities, made-up loads."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from s3spool.upload import cpu_affinity as cores_module
from s3spool.upload.cpu_affinity import CpuAffinity
from support.failing import FOR_EVER, fails

several = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU only: there is nothing to choose")


@pytest.fixture(autouse=True)
def everywhere() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    yield
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # ended since the listing
            os.sched_setaffinity(int(thread), before)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float], float], None]:
    """Set what the CPUs and this process have used, and that a second is over each time it is looked at."""
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))

    def used(busy_s: dict[int, float], own_s: float) -> None:
        monkeypatch.setattr(cores_module, "_busy_s", lambda: busy_s)
        monkeypatch.setattr(time, "process_time", lambda: own_s)

    return used


def affinity_of_a_new_thread() -> set[int]:
    found: list[set[int]] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    return found[0]


@several
def test_all_threads_share_one() -> None:
    """Those that run already, and those that are started later; a thread may roam for a while."""
    every = os.sched_getaffinity(0)
    cpu_affinity = CpuAffinity()

    cpu_affinity.settle()

    assert cpu_affinity.home in every
    assert affinity_of_a_new_thread() == {cpu_affinity.home}
    with cpu_affinity.roaming():
        assert os.sched_getaffinity(0) == every
    assert os.sched_getaffinity(0) == {cpu_affinity.home}


@several
def test_daemons_that_start_together_do_not_all_choose_the_same() -> None:
    """Sixty-four in a row."""
    homes = set()
    every = os.sched_getaffinity(0)
    for _ in range(64):
        cpu_affinity = CpuAffinity()
        cpu_affinity.settle()
        homes.add(cpu_affinity.home)
        os.sched_setaffinity(0, every)

    assert len(homes) > 1


@several
@pytest.mark.parametrize(
    ("home_s", "other_s", "own_s", "moves"),
    [
        (1.0, 0.0, 0.0, True),
        (0.9, 0.4, 0.3, True),
        (1.0, 0.0, 0.9, False),
        (1.0, 0.9, 0.0, False),
        (0.1, 0.0, 0.0, False),
    ],
    ids=["crowded", "other work there", "by ourselves", "no room elsewhere", "hardly used"],
)
def test_moves_only_away_from_a_crowd(
    load: Callable[[dict[int, float], float], None],
    home_s: float,
    other_s: float,
    own_s: float,
    moves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others take the home CPU while another one is free: all threads move there."""
    home, other, *rest = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(random, "choice", min)
    load(dict.fromkeys([home, other, *rest], 0.0), 0.0)
    cpu_affinity = CpuAffinity()
    cpu_affinity.settle()
    assert cpu_affinity.home == home

    load({home: home_s, other: other_s, **dict.fromkeys(rest, 1.0)}, own_s)
    cpu_affinity.avoid_busy_cpu()

    assert cpu_affinity.home == (other if moves else home)
    assert os.sched_getaffinity(0) == {cpu_affinity.home}


@several
def test_only_what_this_process_may_use() -> None:
    """`CPUAffinity=` or taskset gave it a single CPU: the others are none of its own."""
    only = {max(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, only)
    cpu_affinity = CpuAffinity()

    cpu_affinity.settle()

    assert cpu_affinity.home is None
    with cpu_affinity.roaming():
        assert os.sched_getaffinity(0) == only


def test_where_it_is_forbidden_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may refuse: the threads run wherever the kernel likes."""
    before = os.sched_getaffinity(0)
    cpu_affinity = CpuAffinity()
    with monkeypatch.context() as patch:
        fails(patch, os, "sched_setaffinity", PermissionError(1, "Operation not permitted"), times=FOR_EVER)
        cpu_affinity.settle()
        cpu_affinity.avoid_busy_cpu()
        with cpu_affinity.roaming():
            pass

    assert cpu_affinity.home is None
    assert os.sched_getaffinity(0) == before
