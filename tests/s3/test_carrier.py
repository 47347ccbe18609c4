"""Many requests at once in one thread. That each of them goes as it would alone, tests/s3/test_transport.py sees to."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s3.conftest import StoreAt
from s3spool.daemon.limits import open_files_needed
from s3spool.demo.seaweed import Seaweed
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.multi_client import MultiClient
from s3spool.s3.store import Store
from support.faults import HoldUntil, Silent, Status
from support.faulty import FaultyS3
from support.objects import content_of
from support.stores import put_request
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

MANY = 100


@pytest.fixture
def store(faulty: FaultyS3, store_at: StoreAt) -> Store:
    return store_at(faulty)


@pytest.fixture
def multiplexer() -> Iterator[MultiClient]:
    made = MultiClient()
    yield made
    made.close()


def prepared(store: Store, key: str, body: bytes = b"body") -> CurlTransport:
    transport = store.transport()
    assert isinstance(transport, CurlTransport)
    transport.prepare(put_request(key, body))
    return transport


def carry(multiplexer: MultiClient, *transports: CurlTransport) -> list[CurlTransport]:
    """Until all have arrived; in the order in which they did."""
    pending, over = deque(transports), deque[CurlTransport]()
    arrived: list[CurlTransport] = []
    while len(arrived) < len(transports):
        multiplexer.poll(pending, over, wait=True)
        arrived += over
        over.clear()
    return arrived


@pytest.mark.integration
def test_a_hundred_at_once_reach_a_real_store(
    seaweed: Seaweed, bucket: str, s3: S3Client, store_at: StoreAt, multiplexer: MultiClient
) -> None:
    """Each body under its own key, several times over on the same connections."""
    store = store_at(seaweed, bucket=bucket)
    bodies = {f"file-{n}": content_of(1 + n * 1000)[: 1 + n * 1000] for n in range(MANY)}
    transports = [prepared(store, key, body) for key, body in bodies.items()]

    for _ in range(3):
        for transport, (key, body) in zip(transports, bodies.items(), strict=True):
            transport.prepare(put_request(key, body))
        carry(multiplexer, *transports)
        assert {transport.answer().status for transport in transports} == {200}

    assert {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in bodies} == bodies
    for transport in transports:
        transport.close()


def test_one_that_waits_holds_up_no_other(faulty: FaultyS3, store: Store, multiplexer: MultiClient) -> None:
    """The quick ones arrive first, whatever the order in which they boarded."""
    held = threading.Event()
    faulty.script(HoldUntil(held), match="slow")
    faulty.script(Status(code=403, error_code="AccessDenied"), match="refused")
    slow, quick, refused = prepared(store, "slow"), prepared(store, "quick"), prepared(store, "refused")
    pending, over = deque([slow, quick, refused]), deque[CurlTransport]()

    arrived: list[CurlTransport] = []
    while len(arrived) < 3:
        multiplexer.poll(pending, over, wait=True)
        arrived += over
        over.clear()
        if len(arrived) == 2:
            held.set()

    assert arrived[-1] is slow
    assert [transport.answer().status for transport in (slow, quick, refused)] == [200, 200, 403]
    for transport in (slow, quick, refused):
        transport.close()


def test_an_answer_that_waited_for_us_is_no_silence(
    faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, store_at: StoreAt, multiplexer: MultiClient
) -> None:
    """A slow disk may keep this thread for longer than a server may be silent."""
    monkeypatch.setattr("s3spool.s3.curl_transport.LOW_SPEED_BYTES_S", 1_000_000)  # the silence begins at once
    store = store_at(faulty, timeout_s=3.0)
    held = threading.Event()
    faulty.script(HoldUntil(held))
    transport = prepared(store, "a")
    pending, over = deque([transport]), deque[CurlTransport]()
    begun = time.monotonic()
    while not faulty.in_flight or time.monotonic() - begun < 2.0:
        multiplexer.poll(pending, over, wait=True)
    held.set()
    threading.Event().wait(4.0)

    while not over:
        multiplexer.poll(pending, over, wait=True)

    assert transport.answer().status == 200
    transport.close()


def test_every_silent_request_ends(faulty: FaultyS3, store_at: StoreAt, multiplexer: MultiClient) -> None:
    """Also of many at once, whose sockets report nothing, beside others that go on."""
    store = store_at(faulty, timeout_s=1.0)
    faulty.script(Silent(), times=None, match="silent")
    silent = [prepared(store, f"silent-{number}", b"b" * number * 1000) for number in range(20)]
    quick = prepared(store, "quick")
    pending, over = deque([quick, *silent]), deque[CurlTransport]()

    ended: list[CurlTransport] = []
    while len(ended) < len(silent):
        multiplexer.poll(pending, over, wait=True)
        while over:
            transport = over.popleft()
            if transport is quick:
                quick.prepare(put_request("quick"))
                pending.append(quick)
            else:
                ended.append(transport)

    errors = [transport.answer().error for transport in ended]
    assert {error and error.code for error in errors} == {"OPERATION_TIMEDOUT"}
    multiplexer.reset()
    for transport in (quick, *silent):
        transport.close()


def test_whoever_waits_is_woken(multiplexer: MultiClient) -> None:
    """A call from another thread ends the wait, also one that came before it."""
    multiplexer.wake()
    multiplexer.wake()
    multiplexer.poll(deque(), deque(), wait=True)

    waiting = threading.Thread(target=multiplexer.poll, args=(deque(), deque()), kwargs={"wait": True})
    waiting.start()
    multiplexer.wake()
    waiting.join(4)  # by itself it would look up after five seconds

    assert not waiting.is_alive()


def test_descriptors_above_what_select_can_look_at(store: Store, multiplexer: MultiClient) -> None:
    """Thousands of files may be open: select(2) knows 1,024 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        transport = prepared(store, "high")
        carry(multiplexer, transport)
        assert transport.answer().status == 200
        transport.close()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_was_broken_off_can_be_sent_again(faulty: FaultyS3, store: Store, multiplexer: MultiClient) -> None:
    """A reset lets go of all that is under way."""
    held = threading.Event()
    faulty.script(HoldUntil(held), match="a")
    transport = prepared(store, "a")
    pending = deque([transport])
    while pending or not faulty.requests:
        multiplexer.poll(pending, deque(), wait=False)

    multiplexer.reset()
    held.set()
    transport.prepare(put_request("b"))
    carry(multiplexer, transport)

    assert transport.answer().status == 200
    assert [request.key for request in faulty.requests] == ["a", "b"]
    transport.close()


def test_connections_are_kept_and_descriptors_given_back(faulty: FaultyS3, store: Store) -> None:
    """Ten at once need ten connections, however many requests they send; a closed carrier holds none."""
    before = set(os.listdir("/proc/self/fd"))
    multiplexer = MultiClient()
    transports = [prepared(store, str(number)) for number in range(10)]
    for _ in range(20):
        for number, transport in enumerate(transports):
            transport.prepare(put_request(str(number)))
        carry(multiplexer, *transports)
    sockets = [name for name in set(os.listdir("/proc/self/fd")) - before if is_socket(name)]
    for transport in transports:
        transport.close()
    multiplexer.close()

    # The server of the test has the other end of each in this process, too.
    assert len(sockets) <= 20
    assert len(faulty.requests) == 200
    eventually(lambda: not any(is_socket(name) for name in set(os.listdir("/proc/self/fd")) - before))


def test_as_many_descriptors_are_asked_for_as_a_worker_may_open(
    faulty: FaultyS3, store: Store, multiplexer: MultiClient
) -> None:
    """A sender for small files, one for larger ones with what libcurl opens for itself; and two files."""
    first, rider, alone = (prepared(store, name) for name in ("first", "rider", "alone"))
    carry(multiplexer, first)
    before = set(os.listdir("/proc/self/fd"))
    carry(multiplexer, rider)
    alone.send()
    opened = set(os.listdir("/proc/self/fd")) - before
    served = faulty.connections - 1

    assert len(opened) - served + 2 <= open_files_needed(1) - open_files_needed(0)
    for transport in (first, rider, alone):
        transport.close()


def is_socket(descriptor: str) -> bool:
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("socket:")
    except OSError:
        return False
