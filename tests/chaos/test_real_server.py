"""A real S3 server behind a wire that breaks: what is stored, and how, is not ours to decide."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaos.figures import Figures, longer, rounds
from chaos.oracle import Oracle
from chaos.witness import Digests, Version
from chaos.writers import Writers
from support.daemon import Daemon
from support.objects import keys
from support.proxy import Proxy
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mypy_boto3_s3.client import S3Client

    from s3spool.demo.seaweed import Seaweed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 * longer())]

ROUNDS, ACTS = 12, 60
WAIT_S = 180.0


class RealBucket:
    """As the oracle sees it: what is there now is all that is known."""

    deletions = 0

    def __init__(self, s3: S3Client, bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket

    def latest(self, key: str) -> Version | None:
        try:
            found = self._s3.get_object(Bucket=self._bucket, Key=key)
        except self._s3.exceptions.NoSuchKey:
            return None
        return Version(Digests.of(found["Body"].read()), found["ETag"].strip('"'))

    def history(self, key: str) -> Sequence[Version]:
        version = self.latest(key)
        return [version] if version else []

    def keys(self) -> Sequence[str]:
        return list(keys(self._s3, self._bucket))

    def take_unseen(self) -> Sequence[tuple[str, Version]]:
        return []


def test_killed_while_the_wire_breaks(
    tmp_path: Path,
    bucket: str,
    seaweed: Seaweed,
    s3: S3Client,
    chaos_seed: int,
    report: Callable[[Figures], None],
) -> None:
    """Connections cut before and after requests, bytes flipped, kills: what is gone has arrived, and all arrives."""
    rng = random.Random(f"{chaos_seed} wire")
    figures = Figures()
    asked: Counter[str] = Counter()
    with Proxy(seaweed.port) as proxy:
        environment = seaweed.environment() | {"AWS_ENDPOINT_URL_S3": proxy.endpoint_url}
        daemon = Daemon(
            tmp_path,
            bucket=bucket,
            environment=environment,
            after={"action": "delete"},
            upload={"multipart_threshold": "5MiB", "part_size": "5MiB", "timeout_s": 2, "workers": 20},
            retry={"initial_s": 0.1, "max_s": 0.5},
            watch={"settle_s": 0, "rescan_s": 5},
        )
        writers = Writers(daemon.folder, rng, large_share=0.01)
        oracle = Oracle(daemon, writers, RealBucket(s3, bucket))
        with daemon:
            for _ in rounds(ROUNDS, 30.0):
                for when in ("before", "after"):
                    cuts = rng.choice([0, 1, 5, 20])
                    proxy.cut(rng.choice(["^PUT", "^POST", "^(PUT|POST|GET|HEAD|DELETE)"]), when, times=cuts)
                    asked[f"cut {when}"] += cuts
                proxy.flips += 1
                asked["flipped"] += 1
                for _ in range(ACTS // 10):
                    for _ in range(10):
                        writers.act()
                    assert daemon.ends_within(rng.uniform(0, 0.15)) is None
                daemon.kill()
                figures.kills += 1
                oracle.look()
                oracle.verdict.assert_clean(f"CHAOS_SEED={chaos_seed}")
                daemon.start()
            writers.end()
            daemon.wait_ready(WAIT_S)

            def arrived() -> bool:
                oracle.look()
                return not writers.pending

            eventually(arrived, timeout_s=WAIT_S, message="all is sent, recorded and removed")
            assert daemon.stop() == 0
        asked["flipped"] -= proxy.flips
        for cut in proxy._cuts:
            asked[f"cut {cut.when}"] -= cut.times  # what nobody came for
    figures.faults = asked
    assert oracle.undelivered() == []
    oracle.verdict.assert_clean(f"CHAOS_SEED={chaos_seed}")
    figures.verdict = oracle.verdict
    figures.files, figures.states = len(writers.files), writers.states
    figures.large = sum(file.large for file in writers.files.values())
    figures.dropped_bytes, figures.requests = writers.written_bytes, len(proxy.requests)
    report(figures)
