"""Fixtures for every test: an S3 server for the session, a bucket for the test, and no leaks."""

from __future__ import annotations

import functools
import gc
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from hypothesis import settings

from s3spool.demo.seaweed import Seaweed
from support.daemon import Daemon, Make
from support.faulty import FaultyS3
from support.house import Build, House
from support.leaks import child_processes, live_threads
from support.lines import Lines, recorded
from support.postgres import Postgres
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

# The same examples on every machine, however slow; `pytest --hypothesis-profile=search` looks for new ones.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("steady")

# S3's model is parsed once, not for each session: that saves three quarters of the time of a client.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One S3 server for the whole session, started by the first test that asks for it."""
    data_directory = tmp_path_factory.mktemp("seaweed")
    with Seaweed(data_directory, access_key="AKTEST", secret_key="test-secret") as server:  # noqa: S106 - loopback
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the session, started by the first test that asks for it."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3(seaweed: Seaweed) -> Iterator[S3Client]:
    client = seaweed.client(max_pool_connections=100)
    yield client
    client.close()


@pytest.fixture
def bucket(seaweed: Seaweed, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own, named after it; it goes with the server."""
    readable = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].rstrip("-")
    name = f"{readable}-{uuid.uuid4().hex[:8]}"
    seaweed.create_bucket(name)
    return name


@pytest.fixture
def faulty() -> Iterator[FaultyS3]:
    """The test's own server, which misbehaves when told to."""
    with FaultyS3() as server:
        yield server


@pytest.fixture
def make(tmp_path: Path, faulty: FaultyS3, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Daemons in front of that server, not yet started; killed at the end, and their logs shown if the test failed."""
    failed_before = request.session.testsfailed
    made: list[Daemon] = []

    def daemon(home: Path = tmp_path, **sections: Any) -> Daemon:
        made.append(Daemon(home, faulty, **sections))
        return made[-1]

    yield daemon
    for each in made:
        if each.alive:
            each.kill()
        if request.session.testsfailed > failed_before:
            print(f"--- the end of {each.log_path}\n{each.log_tail()}\n---", file=sys.stderr)  # noqa: T201 - for pytest


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged meanwhile."""
    with recorded() as lines:
        yield lines


@pytest.fixture
def build(tmp_path: Path, lines: Lines) -> Iterator[Build]:
    """The daemon's components in front of a bucket in memory; nothing runs yet, and all that runs is ended."""
    with ExitStack() as stack:

        def house(**settings: Any) -> House:
            made = House(tmp_path, **settings)
            stack.callback(made.close)
            return made

        yield house


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread or a child process behind."""
    # The session's server is nobody's leak, so it starts before the count.
    if "seaweed" in request.fixturenames:
        request.getfixturevalue("seaweed")
    threads_before, children_before = live_threads(), child_processes()
    yield

    def leaks() -> list[str]:
        threads = [f"thread {thread.name}" for thread in live_threads() - threads_before]
        new = {pid: command for pid, command in child_processes().items() if pid not in children_before}
        return threads + [f"process {pid} {command}" for pid, command in new.items()]

    def clean() -> bool:
        if not leaks():
            return True
        gc.collect()  # a client of boto3 holds its connection, and the server's thread, until then
        return not leaks()

    try:
        eventually(clean, timeout_s=2)  # what is on its way out may finish
    except AssertionError:
        pytest.fail(f"the test left running: {', '.join(leaks())}", pytrace=False)
