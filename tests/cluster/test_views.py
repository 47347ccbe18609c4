"""What `nodes`, `list` and `why` of one daemon say about the files of another, while both run."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from cluster.cluster import Cluster
from support.faults import HoldUntil
from support.faulty import FaultyS3
from support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from support.daemon import Daemon
    from support.postgres import Postgres

pytestmark = pytest.mark.cluster
FILES, WORKERS = 30, 4
UPLOAD = {"workers": WORKERS, "timeout_s": 300}  # held requests do not end by themselves


def told(node: Daemon, *words: str) -> Any:
    """The JSON that the command prints: one document, or one per line."""
    done = node.cli(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.startswith("[") else [*map(json.loads, done.stdout.splitlines())]


def test_each_node_lists_all_files_and_calls_only_its_own_uploading(tmp_path: Path, postgres: Postgres) -> None:
    """The ledger knows that another node has claimed a file, not whether it sends it: the file is `queued`."""
    with (
        FaultyS3() as server,
        Cluster(tmp_path, server, postgres.database(), "ab", lease_s=30, upload=UPLOAD) as cluster,
    ):
        first, second = cluster.nodes
        hold = HoldUntil(threading.Event())
        server.script(hold, times=None, match="^PUT")
        for number, asleep in enumerate((second, first), 1):
            asleep.signal(signal.SIGSTOP)
            eventually(asleep.stands_still)
            cluster.drop(FILES, tag=str(number))
            eventually(partial(cluster.has_claims, number * FILES))
            asleep.signal(signal.SIGCONT)

        for node, other in ((first, "b"), (second, "a")):
            rows = told(node, "list")
            states = Counter((row["state"], row.get("node")) for row in rows)
            assert states == {
                ("uploading", None): WORKERS,
                ("queued", None): FILES - WORKERS,
                ("queued", other): FILES,
            }
            theirs = next(row["path"] for row in rows if "node" in row)
            assert node.cli("why", str(node.folder / theirs)).stdout == (
                f"{theirs}: queued\nclaimed by {other}, which sends it\n"
            )
            names = [(each["name"], each["this"]) for each in told(node, "nodes")]
            assert names == [("a", node is first), ("b", node is second)]
        hold.release()
        cluster.wait_empty()

        # A daemon that has claimed a file of the other one in the moment of its removal gives it back.
        eventually(lambda: told(first, "list") == [])
        cluster.assert_clean()
        second.stop()
        assert [each["name"] for each in told(first, "nodes")] == ["a"]
