"""The database of a cluster has a full disk, or fails over to a replica that lacks the last second."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest

from cluster.cluster import Cluster
from s3spool.ledger.rows import from_text
from support.database_proxy import DatabaseProxy
from support.disks import fill
from support.postgres import Postgres
from support.postgres_faults import Replica, SmallWal, small_disk
from support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty import FaultyS3

pytestmark = pytest.mark.cluster
LEASE_S = 30  # longer than the fault: nobody takes over
WORKERS = 30  # of all nodes


def assert_nothing_moves(cluster: Cluster) -> None:
    """All that was recorded is removed; then nothing is sent or removed for a second."""
    recorded = len(cluster.events("file.uploaded"))
    dropped = len(cluster.dropped())
    eventually(lambda: len(cluster.left()) == dropped - recorded, timeout_s=30)
    sent = eventually(partial(quiet_versions, cluster))
    time.sleep(1)
    assert (cluster.versions(), len(cluster.left())) == (sent, dropped - recorded)
    assert len(cluster.events("file.uploaded")) == recorded


def quiet_versions(cluster: Cluster) -> int:
    """How many objects there are, or 0 while requests are still answered."""
    before = cluster.versions()
    time.sleep(0.5)
    return before if cluster.versions() == before else 0


def test_a_tablespace_that_is_full(tmp_path: Path, server: FaultyS3) -> None:
    """Reads work, and writes fail: nothing is taken or removed; with room all goes on, and nothing is sent again."""
    with (
        Postgres() as database,
        small_disk(database, "32m") as tables,
        Cluster(tmp_path, server, database.database(tables), lease_s=LEASE_S) as cluster,
    ):
        cluster.drop(300)
        eventually(partial(cluster.has_versions, 50))
        filler = fill(tables)
        cluster.drop(400, tag="meanwhile")
        eventually(lambda: all(node.events("ledger.failed") for node in cluster.nodes))
        assert "No space left on device" in cluster.events("ledger.failed")[0]["error"]
        assert_nothing_moves(cluster)
        assert cluster.nodes[0].cli("status").returncode == 0

        filler.unlink()
        cluster.wait_empty()

        cluster.assert_clean()


def test_a_write_ahead_log_without_room(tmp_path: Path, server: FaultyS3) -> None:
    """PostgreSQL ends itself (PANIC), and cannot start before there is room; what was recorded stays recorded."""
    with SmallWal() as database, Cluster(tmp_path, server, database.database(), lease_s=LEASE_S) as cluster:
        cluster.drop(300)
        eventually(partial(cluster.has_versions, 50))
        filler = fill(database.wal)
        with contextlib.suppress(psycopg.Error), psycopg.connect(cluster.url, autocommit=True) as db:
            while True:  # the room in the segments that are there
                db.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 100000))")
        eventually(lambda: not database.alive(), message="the end of PostgreSQL")
        cluster.drop(100, tag="meanwhile")
        eventually(lambda: all(node.events("ledger.failed") for node in cluster.nodes))
        assert_nothing_moves(cluster)

        filler.unlink()
        database.start()
        cluster.wait_empty()

        cluster.assert_clean()


@pytest.mark.parametrize("action", ["delete", "keep"])
def test_a_failover_that_loses_the_last_second(tmp_path: Path, server: FaultyS3, action: str) -> None:
    """What was removed is whole in the bucket; what the replica does not know is sent again once, if still there."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(Postgres())
        url = primary.database()
        link, proxy = (stack.enter_context(DatabaseProxy(primary.socket)) for _ in range(2))
        replica = stack.enter_context(Replica(primary, link.port))
        name = urlsplit(url).path.strip("/")
        through = f"postgresql://s3spool@127.0.0.1:{proxy.port}/{name}?sslmode=disable"
        after = {"action": action}
        cluster = Cluster(tmp_path, server, url, node_url=lambda _: through, lease_s=LEASE_S, after=after)
        stack.enter_context(cluster)
        cluster.drop(300, tag="before")
        eventually(partial(cluster.has_recorded, 50))
        link.cut()
        cut_at = time.monotonic()
        cluster.drop(300, tag="lost")
        recorded = len(cluster.events("file.uploaded"))
        eventually(lambda: cluster.has_recorded(recorded + 100) and time.monotonic() - cut_at > 1)
        proxy.cut()
        primary.kill()
        replica.promote()
        cluster.url = replica.url(name)
        unrecorded = eventually(partial(quiet_versions, cluster)) - len(cluster.events("file.uploaded"))
        lost = {from_text(event["path"]) for event in cluster.events("file.uploaded")} - set(cluster.receipts())
        assert lost
        proxy.server = replica.socket
        proxy.mend()
        cluster.drop(100, tag="after")
        if action == "delete":
            cluster.wait_empty()
        else:
            eventually(lambda: len([*cluster.receipts()]) == 700, message="a receipt of each file")

        verdict = cluster.judge(logged=True)
        assert not [*verdict.lost, *verdict.torn, *verdict.early], verdict
        again = len(lost) if action == "keep" else 0
        assert len(verdict.sent_again) <= unrecorded + WORKERS + again
        assert cluster.most_versions() <= 2
        eventually(lambda: not cluster.claims(), message="no claim that is left")
