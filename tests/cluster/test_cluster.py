"""Several daemons on one folder: each file is sent once, and whatever dies, none is lost, torn or removed too early."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.cluster import Cluster
from support.database_proxy import DatabaseProxy
from support.faults import Delay, HoldUntil
from support.faulty import FaultyS3
from support.killing import program
from support.nodes import LEASE_S
from support.postgres import Postgres
from support.waiting import eventually

pytestmark = pytest.mark.cluster
IN_FLIGHT = 150  #: files of a node that are being sent, or were sent and have no receipt yet
SLACK_S = 10.0
KEPT_FOR_PROBES = 30  #: with those in flight


def test_three_nodes_send_each_file_once(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """Half of the files wait at the start, half arrive later: all nodes see the events of each."""
    cluster = Cluster(tmp_path, server, postgres.database())
    cluster.drop(300, tag="before")
    with cluster:
        cluster.drop(300, tag="after")
        cluster.wait_empty()

        cluster.assert_clean()
        assert len(cluster.events("file.uploaded")) == 600
        assert not cluster.events("file.claim_lost")


def test_nodes_that_are_killed_again_and_again(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """Only what was in flight at a death, or sent and not recorded, is sent by two nodes; all else goes on."""
    with Cluster(tmp_path, server, postgres.database()) as cluster:
        for kill in range(4):
            cluster.drop(250, tag=f"round-{kill}")
            eventually(partial(cluster.has_versions, cluster.versions() + 50), timeout_s=30)
            victim = cluster.nodes[kill % 3]
            victim.kill()
            if kill < 3:
                victim.start()
        cluster.wait_empty()

        cluster.assert_clean(sent_again=4 * IN_FLIGHT)


def test_a_dead_nodes_files_are_taken_over_within_two_leases(
    tmp_path: Path, server: FaultyS3, postgres: Postgres
) -> None:
    """No event tells of them, and the periodic scan is minutes away: the end of the lease starts a scan."""
    with Cluster(tmp_path, server, postgres.database(), "ab", lease_s=3) as cluster:
        first, second = cluster.nodes
        second.signal(signal.SIGSTOP)
        eventually(second.stands_still)
        server.behave()
        server.script(HoldUntil(threading.Event()), times=None, match="^PUT")
        cluster.drop(30)
        eventually(lambda: server.count("^PUT") >= 10)
        first.kill()
        died = time.monotonic()
        server.behave()
        second.signal(signal.SIGCONT)

        cluster.wait_empty()

        assert time.monotonic() - died < 2 * 3 + SLACK_S
        cluster.assert_clean(sent_again=10)
        assert second.events("scan.finished", reason="takeover")


def test_a_node_that_sleeps_for_longer_than_its_lease(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """Others send its files meanwhile; when it wakes up it records nothing and removes nothing that is not its own."""
    server.behave()
    server.script(Delay(0.2), times=None, match="^PUT")
    cluster = Cluster(tmp_path, server, postgres.database())
    cluster.drop(400)
    with cluster.nodes[0] as sleeper:
        eventually(lambda: len(sleeper.events("file.uploaded")) > 20, timeout_s=60)
        sleeper.signal(signal.SIGSTOP)
        for node in cluster.nodes[1:]:
            node.start()
        with cluster.nodes[1], cluster.nodes[2]:
            eventually(partial(cluster.has_versions, 250), timeout_s=60)
            sleeper.signal(signal.SIGCONT)
            cluster.drop(100, tag="later")
            cluster.wait_empty()

            cluster.assert_clean(sent_again=IN_FLIGHT)


def test_a_node_that_wakes_up_late_does_not_replace_a_newer_object(
    tmp_path: Path, server: FaultyS3, postgres: Postgres
) -> None:
    """It stopped before it sent the file; meanwhile another node has sent the file, and the next one of that name."""
    cluster = Cluster(tmp_path, server, postgres.database(), "ab")
    late, other = cluster.nodes
    late.program, late.environment["PYTHONPATH"] = program("stop:checksum"), str(Path(__file__).parents[1])
    cluster.put("report", bytes(200_000))
    with late:
        eventually(late.stands_still)
        with other:
            cluster.wait_empty()
            cluster.put("report", bytes(300_000))
            cluster.wait_empty()
            late.signal(signal.SIGCONT)
            assert late.stop() == 0  # after what it was doing

            cluster.assert_clean()


def test_a_database_that_is_restarted(tmp_path: Path, server: FaultyS3) -> None:
    """Nothing is removed while it is away, and all goes on by itself; what was sent is not sent again."""
    with Postgres() as database, Cluster(tmp_path, server, database.database(), lease_s=30) as cluster:
        cluster.drop(300)
        eventually(lambda: cluster.versions() > 50, timeout_s=30)
        database.stop("immediate")
        cluster.drop(100, tag="meanwhile")
        eventually(lambda: all(node.events("ledger.failed") for node in cluster.nodes), timeout_s=30)
        status = cluster.nodes[0].cli("status")
        assert status.returncode == 0, status.stderr
        # What was committed is removed, and nothing else for a second.
        committed = sum(len(node.events("file.uploaded")) for node in cluster.nodes)
        eventually(lambda: len(cluster.left()) == 400 - committed, timeout_s=30)
        time.sleep(1)
        assert len(cluster.left()) == 400 - committed
        database.start()
        cluster.wait_empty()

        cluster.assert_clean()


@pytest.mark.parametrize("cut_off", [1, 3])
def test_a_database_that_some_nodes_cannot_reach(
    tmp_path: Path, server: FaultyS3, postgres: Postgres, cut_off: int
) -> None:
    """For longer than the lease: they take nothing new and remove nothing; the others send their files."""
    url = postgres.database()
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(DatabaseProxy(postgres.directory / ".s.PGSQL.5432")) for _ in range(3)]
        urls = [proxy.url(name_of(url)) for proxy in proxies]
        cluster = stack.enter_context(Cluster(tmp_path, server, url, node_url=urls.__getitem__))
        cluster.drop(300)
        eventually(lambda: cluster.versions() > 50, timeout_s=30)
        for proxy in proxies[:cut_off]:
            proxy.cut()
        cluster.drop(100, tag="meanwhile")
        time.sleep(2 * LEASE_S)  # the leases run out by the clock
        sent = cluster.versions()
        if cut_off == 3:
            time.sleep(1)
            assert cluster.versions() == sent
            assert cluster.left()
        for proxy in proxies:
            proxy.mend()
        cluster.wait_empty()

        cluster.assert_clean(sent_again=cut_off * IN_FLIGHT)


def test_a_database_that_needs_a_second_for_each_statement(
    tmp_path: Path, server: FaultyS3, postgres: Postgres
) -> None:
    """Claims and receipts go in batches, and the lease is renewed in between."""
    url = postgres.database()
    with DatabaseProxy(postgres.directory / ".s.PGSQL.5432") as proxy:
        slow = proxy.url(name_of(url))
        with Cluster(tmp_path, server, url, node_url=lambda _: slow, lease_s=15) as cluster:
            proxy.delay_s = 1.0
            cluster.drop(200)
            cluster.wait_empty(90)

            cluster.assert_clean()
            proxy.delay_s = 0.0


def test_two_nodes_of_one_name(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """A process is known by a number of its own."""
    with Cluster(tmp_path, server, postgres.database(), ("same", "same")) as cluster:
        cluster.drop(300)
        eventually(lambda: cluster.versions() > 50, timeout_s=30)
        cluster.nodes[0].kill()
        cluster.nodes[0].start()
        cluster.wait_empty()

        cluster.assert_clean(sent_again=IN_FLIGHT)


def test_a_pause_of_one_node_holds_all(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """It is in the ledger, and each renewal of a lease looks at it; so does a node that starts."""
    with Cluster(tmp_path, server, postgres.database(), "ab") as cluster:
        first, second = cluster.nodes
        assert first.cli("pause", "--reason", "the bucket moves").returncode == 0
        second.wait_event("uploads.paused", reason="the bucket moves")
        cluster.drop(20)
        second.stop()
        second.start()
        second.wait_event("uploads.paused")
        assert cluster.versions() == 0
        assert second.cli("resume").returncode == 0
        first.wait_event("uploads.resumed")
        cluster.wait_empty()

        cluster.assert_clean()


def test_a_node_that_cannot_reach_s3_leaves_the_files_to_others(
    tmp_path: Path, server: FaultyS3, postgres: Postgres
) -> None:
    """It reaches the database, so that its lease lasts: it gives up what it has claimed, and claims little."""
    cluster = Cluster(tmp_path, server, postgres.database(), retry={"initial_s": 0.5, "max_s": 2})
    cluster.nodes[0].environment |= {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    cluster.drop(300)
    with cluster.nodes[0] as first:
        first.wait_event("destination.paused")
        with cluster:
            cluster.drop(100, tag="later")
            eventually(lambda: len(cluster.left()) <= KEPT_FOR_PROBES, timeout_s=60)
            assert not [node for node in cluster.nodes[1:] if node.events("destination.paused")]
            first.stop()
            cluster.wait_empty()

            cluster.assert_clean()


def test_a_large_file_of_a_killed_node_is_resumed(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """The other node sends only the parts that S3 does not have."""
    upload = {"multipart_threshold": "5MiB", "part_size": "5MiB", "workers": 4}
    with Cluster(tmp_path, server, postgres.database(), "ab", upload=upload) as cluster:
        server.behave()
        server.script(HoldUntil(threading.Event()), times=None, match="partNumber&uploadId")
        cluster.put("large", random.Random(1).randbytes(30 * 2**20))
        eventually(lambda: cluster.events("multipart.started"))
        server.behave()
        server.script(Delay(0.5), times=None, match="^PUT")
        started = next(node for node in cluster.nodes if node.events("multipart.started"))
        eventually(lambda: any(len(upload.parts) >= 2 for upload in server.store.uploads.values()), timeout_s=30)
        started.kill()
        cluster.wait_empty()

        cluster.assert_clean()
        other = next(node for node in cluster.nodes if node is not started)
        (resumed,) = other.events("multipart.resumed")
        assert resumed["parts_done"] >= 2
        assert len(other.events("multipart.started")) == 0
        assert not server.store.uploads


def name_of(url: str) -> str:
    return urlsplit(url).path.strip("/")
