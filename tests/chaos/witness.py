"""The server that remembers: of every version it ever stored, what tells it apart."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict, deque
from typing import TYPE_CHECKING, NamedTuple

from chaos.random_faults import RandomFaults
from support.faulty import FaultyS3
from support.s3_messages import checksum, md5_base64

if TYPE_CHECKING:
    from support.faults import Fault
    from support.s3_messages import Request
    from support.s3_store import StoredObject


class Digests(NamedTuple):
    """One content, as the server, the ledger and the log speak of it."""

    size: int
    sha256: str
    crc64nvme: str
    md5: str

    @classmethod
    def of(cls, body: bytes) -> Digests:
        return cls(len(body), hashlib.sha256(body).hexdigest(), checksum("crc64nvme", body), md5_base64(body))

    def proven_by(self, checksums: str) -> bool:
        """`checksums` is a receipt's: "algorithm:value"."""
        return checksums in {f"crc64nvme:{self.crc64nvme}", f"md5:{self.md5}"}


class Version(NamedTuple):
    content: Digests
    etag: str  #: without its quotes


class Witness(FaultyS3):
    """A FaultyS3 with random faults. It keeps no requests, so that it can run for hours."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.faults = RandomFaults(seed)
        self.versions: defaultdict[str, list[Version]] = defaultdict(list)
        self._unseen: deque[tuple[str, Version]] = deque()  # stored since the oracle looked last
        self.deletions = 0
        self.total = 0  #: requests
        self.changed = threading.Event()  #: set at each version
        self.store.on_stored = self._stored

    def latest(self, key: str) -> Version | None:
        versions = self.versions.get(key)
        return versions[-1] if versions else None

    def history(self, key: str) -> list[Version]:
        return self.versions.get(key, [])

    def keys(self) -> list[str]:
        return list(self.versions)

    def take_unseen(self) -> list[tuple[str, Version]]:
        """What was stored since the last call."""
        return [self._unseen.popleft() for _ in range(len(self._unseen))]

    def _stored(self, key: str, stored: StoredObject) -> None:
        """On the store's lock."""
        version = Version(Digests.of(stored.body), stored.etag.strip('"'))
        self.versions[key].append(version)
        self._unseen.append((key, version))
        self.changed.set()

    def _arrived(self, request: Request) -> Fault:
        with self._lock:
            self.total += 1
            if request.method == "DELETE" and "uploadId" not in request.query:
                self.deletions += 1
        return self.faults
