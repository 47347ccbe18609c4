"""An oracle that never complains proves nothing: here it has to."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from chaos.oracle import Oracle
from chaos.witness import Digests, Witness
from chaos.writers import Writers
from s3spool.ledger.rows import Identity
from s3spool.ledger.store import Ledger
from support.daemon import Daemon
from support.rows import a_receipt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Scene:
    """One dropped file, and nobody to send it but the test."""

    def __init__(self, home: Path, witness: Witness) -> None:
        self.witness = witness
        self.daemon = Daemon(home)  # never started
        self.writers = Writers(self.daemon.folder, random.Random(0))
        self.oracle = Oracle(self.daemon, self.writers, witness)
        self.writers._rename_in()
        self.path = next(iter(self.writers.files))
        self.file = self.daemon.folder / self.path
        self.content = self.file.read_bytes()

    def put(self, content: bytes) -> None:
        with_key = self.writers.key_of(self.path)
        self.witness.client().put_object(Bucket=self.witness.bucket, Key=with_key, Body=content)

    def record(self) -> None:
        """A receipt for what is in the folder."""
        checksum = f"crc64nvme:{Digests.of(self.content).crc64nvme}"
        ledger = Ledger(self.daemon.state_directory / "ledger.sqlite3", destination="any")
        ledger.start()
        ledger.record_receipt(a_receipt(self.path, identity=Identity.of(self.file.lstat()), checksum=checksum))
        assert ledger.close(10)

    def log(self, etag: str) -> None:
        key = self.writers.key_of(self.path)
        with self.daemon.log_path.open("a") as log:
            log.write(f'{{"event":"file.uploaded","key":"{key}","checksum":"","etag":"{etag}"}}\n')


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Witness(0) as witness:
        yield Scene(tmp_path, witness)


def test_a_file_that_went_without_an_object_is_lost(scene: Scene) -> None:
    """Removed before it was sent, or while only an older state of it was there."""
    scene.oracle.look()
    assert scene.oracle.verdict.lost == []

    scene.put(b"an older state")
    scene.file.unlink()
    scene.oracle.look()

    assert len(scene.oracle.verdict.lost) == 1


def test_a_file_that_went_after_its_object_came_is_not_lost(scene: Scene) -> None:
    """And the oracle need not look at it again."""
    scene.put(scene.content)
    scene.record()
    scene.file.unlink()

    scene.oracle.look()

    assert (scene.oracle.verdict.lost, scene.oracle.verdict.early) == ([], [])
    assert scene.writers.pending == set()


def test_a_file_that_went_before_its_receipt_is_noticed(scene: Scene) -> None:
    """Though its object is there: the promise is that the receipt is on disk first."""
    scene.put(scene.content)
    scene.file.unlink()

    scene.oracle.look()

    assert (len(scene.oracle.verdict.lost), len(scene.oracle.verdict.early)) == (0, 1)


def test_a_receipt_without_its_object_is_noticed(scene: Scene) -> None:
    """The ledger says sent, the bucket does not have it."""
    scene.record()

    scene.oracle.look()

    assert len(scene.oracle.verdict.early) == 1


def test_half_a_file_in_the_bucket_is_torn(scene: Scene) -> None:
    """A small one may not even be stored torn."""
    scene.put(scene.content[:-1])

    scene.oracle.look()

    assert len(scene.oracle.verdict.torn) == 1


def test_a_large_torn_object_counts_only_as_a_success(scene: Scene) -> None:
    """The daemon may notice after the fact and send again; what it logs as uploaded has to be whole."""
    torn = bytes(2**20)
    scene.put(torn)
    scene.put(scene.content)
    scene.log(scene.witness.versions[scene.writers.key_of(scene.path)][-1].etag)
    verdict = scene.oracle.judge()
    assert (verdict.torn, verdict.refused_torn) == ([], 1)

    scene.log(scene.witness.versions[scene.writers.key_of(scene.path)][0].etag)

    assert len(scene.oracle.judge().torn) == 1


def test_faults_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    """What a request meets depends on the seed, its line and how often it came, not on the others."""

    def statuses(seed: int, *, others: bool) -> list[str]:
        with Witness(seed) as witness:
            witness.faults.share = 0.5
            kinds = []
            for number in range(30):
                if others:
                    witness.faults._pick(f"PUT other {number}")
                kinds.append(witness.faults._pick("PUT a"))
        return kinds

    assert statuses(1, others=False) == statuses(1, others=True)
    assert statuses(1, others=False) != statuses(2, others=False)
    assert len(set(statuses(1, others=False))) > 5
