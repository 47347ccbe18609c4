"""What must be true at every moment, and what was true at the end."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from s3spool.folder.folder import original, removed_by
from s3spool.ledger.queries import Known
from s3spool.ledger.rows import Identity, State
from s3spool.upload.small import SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chaos.witness import Digests, Version
    from chaos.writers import Writers
    from s3spool.ledger.rows import Receipt
    from support.daemon import Daemon
    from support.nodes import Nodes

LOOKUP = 500


class Bucket(Protocol):
    """What the oracle asks the server, behind the daemon's back."""

    deletions: int

    def latest(self, key: str) -> Version | None:
        """The object as it is now."""

    def history(self, key: str) -> Sequence[Version]:
        """All that were ever stored, oldest first."""

    def keys(self) -> Sequence[str]: ...

    def take_unseen(self) -> Sequence[tuple[str, Version]]:
        """What was stored since the last call."""


@dataclass(slots=True)
class Verdict:
    """Paths and keys, so that a failure says where to look."""

    lost: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)  #: a receipt without its object, or a removal without its receipt
    torn: list[str] = field(default_factory=list)  #: stored, logged as uploaded, but no state of the file
    refused_torn: int = 0  #: stored by the server, but the daemon noticed, and sent the file again
    excluded: int = 0  #: written to in the instant of its removal
    versions: int = 0
    duplicates: int = 0  #: versions with the content of the one before

    def assert_clean(self, context: str) -> None:
        assert not [*self.lost, *self.early, *self.torn], f"{context}: {self}"


class Oracle:
    """Compares what the writers did with what the server has. One thread, that of the writers."""

    def __init__(self, daemon: Daemon | Nodes, writers: Writers, bucket: Bucket) -> None:
        self.verdict = Verdict()
        self._daemon = daemon
        self._writers = writers
        self._bucket = bucket
        self._torn: dict[str, list[Version]] = {}

    def look(self) -> None:
        """Any moment, alive or dead: what is gone has arrived, what is recorded has arrived, nothing is torn."""
        self._see_versions()
        pending = sorted(self._writers.pending)
        for start in range(0, len(pending), LOOKUP):
            self._see_files(pending[start : start + LOOKUP])

    def _see_versions(self) -> None:
        for key, version in self._bucket.take_unseen():
            self.verdict.versions += 1
            path = self._writers.path_of(key)
            states = self._writers.files[path].states if path else []
            if version.content in states:
                continue
            self._torn.setdefault(key, []).append(version)
            # A small file is read under a lease, so it cannot even leave here torn.
            if version.content.size <= SMALL_BYTES:
                self.verdict.torn.append(f"{key!r} ({version.content.size} bytes) was sent, and is no state of a file")

    def _see_files(self, paths: list[str]) -> None:
        known = self._known(paths)
        for path in paths:
            file = self._writers.files[path]
            # In this order: it may go while we look, and then it has to be there already.
            identity = _found(self._daemon.folder / path)
            receipt = known[path].receipt if path in known else None
            if identity is None:
                self._see_gone(path, receipt)
            elif receipt is not None and receipt.identity == identity and not file.open:
                version = self._bucket.latest(self._writers.key_of(path))
                if version is None or version.content != file.latest or not _speaks_of(receipt, version):
                    self.verdict.early.append(f"{path!r}: {receipt} is recorded, {version} is in the bucket")
                if receipt.after == "keep":
                    self._writers.pending.discard(path)

    def _see_gone(self, path: str, receipt: Receipt | None) -> None:
        """Its content is in the bucket, and that was on disk before it went."""
        file, version = self._writers.files[path], self._bucket.latest(self._writers.key_of(path))
        self._writers.pending.discard(path)
        if version is None or version.content != file.latest:
            if not file.may_be_lost:
                self.verdict.lost.append(f"{path!r}: {file.latest} was dropped, {version} is in the bucket")
            self.verdict.excluded += file.may_be_lost
            return
        if receipt is None or not _speaks_of(receipt, version):
            known = self._known([path]).get(path)  # it may have gone since the ledger was asked
            receipt = known and known.receipt
        if receipt is None or not _speaks_of(receipt, version):
            self.verdict.early.append(f"{path!r}: it is gone, {version} is in the bucket, {receipt} is recorded")

    def _known(self, paths: list[str]) -> dict[str, Known]:
        reader = self._daemon.reader()
        if reader is None:
            return {}  # the first start was cut short
        with reader:
            return reader.known(paths)

    def parked(self) -> set[str]:
        """Those that are parked; each with a reason."""
        reader = self._daemon.reader()
        assert reader is not None
        with reader:
            rows = list(reader.retries(State.PARKED))
        assert all(row.error for row in rows), rows
        return {row.path for row in rows}

    def undelivered(self) -> list[str]:
        """Names whose latest state is not in the bucket."""
        files = self._writers.files.items()
        return [
            path for path, file in files if file.states and not file.may_be_lost and self._there(path) != file.latest
        ]

    def judge(self) -> Verdict:
        """At the end: also what the log said."""
        self._see_versions()
        for event in self._daemon.events("file.uploaded"):
            torn = [it for it in self._torn.get(event["key"], []) if _speaks_of(event, it)]
            sound = [it for it in self._bucket.history(event["key"]) if it not in torn and _speaks_of(event, it)]
            if not sound:
                self.verdict.torn.append(f"{event['key']!r}: logged as uploaded, {event}, but torn is {torn}")
        self.verdict.refused_torn = sum(map(len, self._torn.values()))
        for key in self._bucket.keys():  # noqa: SIM118 - a bucket is no dict
            contents = [version.content for version in self._bucket.history(key)]
            self.verdict.duplicates += sum(before == after for before, after in itertools.pairwise(contents))
        assert self._bucket.deletions == 0, "an object was to be deleted"
        return self.verdict

    def _there(self, path: str) -> Digests | None:
        version = self._bucket.latest(self._writers.key_of(path))
        return version and version.content


def _speaks_of(proof: Receipt | dict[str, Any], version: Version) -> bool:
    """Whether a receipt, or a line of the log, is about this version."""
    checksum, etag = (proof["checksum"], proof["etag"]) if isinstance(proof, dict) else (proof.checksum, proof.etag)
    return version.content.proven_by(checksum) or version.etag == etag.strip('"')


def _found(place: Path) -> Identity | None:
    """Under its name, or aside for its removal; another daemon may put it back in between."""
    return _identity(place) or _aside(place) or _identity(place)


def _aside(place: Path) -> Identity | None:
    try:
        names = [entry.name for entry in place.parent.iterdir()]
    except FileNotFoundError:
        return None
    asides = (name for name in names if removed_by(name) is not None and original(name) == place.name)
    return next(filter(None, (_identity(place.with_name(name)) for name in asides)), None)


def _identity(place: Path) -> Identity | None:
    try:
        return Identity.of(place.lstat())
    except FileNotFoundError:
        return None
