"""A node that sees the folder late, or sees another folder: it takes nothing away from the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.cluster import Cluster
from support.faults import Delay, Status
from support.slow_files import LateFiles
from support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from support.faulty import FaultyS3
    from support.postgres import Postgres

pytestmark = pytest.mark.cluster
LATE_S = 4.0
TRIES = 8  # of a refused file: they take longer than LATE_S, and any node makes them


def drop_with_refused_files(cluster: Cluster) -> None:
    """S3 takes the most, and refuses five again and again: then these wait in the retry list of all nodes."""
    cluster.server.behave()
    refusal = Status(code=500, error_code="InternalError")
    cluster.server.script(refusal, times=None, match="^PUT .*refused")
    cluster.server.script(Delay(0.03), times=None, match="^PUT")
    cluster.drop(5, tag="refused")
    cluster.drop(200)
    eventually(lambda: [each for each in cluster.events("file.failed") if each["attempt"] == TRIES])
    assert not cluster.events("file.vanished")
    cluster.server.behave()
    cluster.wait_empty()

    cluster.assert_clean()
    assert not cluster.events("file.vanished")
    assert not cluster.events("file.parked")
    eventually(lambda: not cluster.claims(), message="no claim that is left")


def test_a_node_that_sees_the_folder_late(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """It finds new files late, and removed ones for as long; the retries of files that it does not see yet stay."""
    cluster = Cluster(tmp_path, server, postgres.database(), lease_s=15)
    first, second, late = cluster.nodes
    late.config["watch"] |= {"directory": str(tmp_path / "late"), "backend": "poll"}
    with LateFiles(tmp_path / "late", tmp_path, cluster.folder, LATE_S), cluster:
        drop_with_refused_files(cluster)

        assert first.stop() == second.stop() == 0
        cluster.drop(20, tag="alone")
        cluster.wait_empty()
        cluster.assert_clean()
        assert not cluster.events("file.vanished")
        assert len([each for each in late.events("file.uploaded") if "alone" in each["path"]]) == 20


def test_a_node_that_does_not_see_the_folder(tmp_path: Path, server: FaultyS3, postgres: Postgres) -> None:
    """Its mount point is empty: it sends nothing and ends no retry, and `check` says that the folders differ."""
    cluster = Cluster(tmp_path, server, postgres.database(), "ab", lease_s=15)
    seeing, blind = cluster.nodes
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    blind.config["watch"] |= {"directory": str(elsewhere)}
    with cluster:
        drop_with_refused_files(cluster)

        assert not blind.events("file.uploaded")
        for node, other in ((seeing, "b"), (blind, "a")):
            told = node.cli("check")
            assert told.returncode == 1
            assert (
                f"its .s3spool-node.{other} is not in this folder; mount the same folder on both hosts" in told.stdout
            )
