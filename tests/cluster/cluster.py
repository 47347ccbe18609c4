"""Nodes on one folder, and what must be true of it, of the bucket and of the ledger."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, Self

import psycopg

from s3spool.ledger.rows import from_text
from support.nodes import LEASE_S, Nodes
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from support.faulty import FaultyS3
    from support.s3_store import StoredObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Paths, so that a failure says where to look."""

    lost: list[str]  #: neither in the folder nor whole in the bucket
    torn: list[str]  #: an object that is no content of the file
    early: list[str]  #: removed without a receipt
    left: list[str]  #: still in the folder
    sent_again: list[str]  #: the same content, more than once
    recorded_again: list[str]  #: two receipts for one content


class Cluster(Nodes):
    """`names`: one daemon each; `node_url` gives each of them the URL of the ledger."""

    def __init__(
        self,
        directory: Path,
        server: FaultyS3,
        url: str,
        names: Sequence[str] = ("a", "b", "c"),
        *,
        node_url: Callable[[int], str] | None = None,
        lease_s: float = LEASE_S,
        **sections: Mapping[str, Any],
    ) -> None:
        urls = [(name, node_url(number) if node_url else url) for number, name in enumerate(names)]
        tables: dict[str, Mapping[str, Any]] = {"after": {"action": "delete"}, "upload": {"workers": 10}, **sections}
        super().__init__(directory, server, url, urls, tables, lease_s=lease_s)
        self._lock = threading.Lock()
        self._dropped: dict[str, list[bytes]] = {}
        self._versions: dict[str, list[bytes]] = {}
        server.store.on_stored = self._stored

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                if not node.alive:
                    node.start()
            for node in self.nodes:
                node.wait_ready()
        except BaseException as exc:
            self.__exit__(type(exc), exc, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.__exit__(kind, error, trace)

    def drop(self, count: int, *, directories: int = 5, size: int = 2000, tag: str = "f") -> None:
        rng = random.Random(tag)
        for number in range(count):
            self.put(f"d{number % directories}/{tag}-{number:05}", rng.randbytes(rng.randrange(1, size)))

    def put(self, path: str, content: bytes) -> None:
        with self._lock:
            self._dropped.setdefault(path, []).append(content)
        self.nodes[0].drop(path, content)

    def versions(self) -> int:
        with self._lock:
            return sum(map(len, self._versions.values()))

    def has_versions(self, count: int) -> bool:
        return self.versions() >= count

    def most_versions(self) -> int:
        """Of one file."""
        with self._lock:
            return max(map(len, self._versions.values()))

    def has_recorded(self, count: int) -> bool:
        return len(self.events("file.uploaded")) >= count

    def dropped(self) -> list[str]:
        return [*self._dropped]

    def left(self) -> list[str]:
        return [path for path in self._dropped if (self.folder / path).exists()]

    def wait_empty(self, timeout_s: float = 60.0) -> None:
        """Until all files were sent and removed."""
        eventually(lambda: not self.left(), timeout_s=timeout_s, message="an empty folder")

    def judge(self, *, logged: bool = False) -> Verdict:
        """`logged`: the log proves a receipt; the database has lost some."""
        left = self.left()
        receipts = set(self.receipts())
        if logged:
            receipts |= {from_text(event["path"]) for event in self.events("file.uploaded")}
        recorded = Counter(from_text(event["path"]) for event in self.events("file.uploaded"))
        with self._lock:
            newest = {path: contents[-1] for path, contents in self._dropped.items()}
            return Verdict(
                lost=[p for p, body in newest.items() if p not in left and self._versions.get(p, [b""])[-1] != body],
                torn=[p for p, all_ in self._versions.items() if set(all_) - set(self._dropped.get(p, ()))],
                early=[p for p in newest if p not in left and p not in receipts],
                left=left,
                sent_again=[p for p, all_ in self._versions.items() if max(Counter(all_).values()) > 1],
                recorded_again=[p for p, count in recorded.items() if count > len(self._dropped[p])],
            )

    def assert_clean(self, *, sent_again: int = 0) -> Verdict:
        """All is sent and removed, with receipts; at most so many files were sent twice."""
        verdict = self.judge()
        assert not [*verdict.lost, *verdict.torn, *verdict.early, *verdict.left], verdict
        assert not verdict.recorded_again, verdict
        # A starved machine may cost a node its lease: then it says so.
        assert len(verdict.sent_again) <= sent_again + len(self.events("file.claim_lost")), verdict
        return verdict

    def receipts(self) -> Iterator[str]:
        yield from self._paths("SELECT path FROM files WHERE sent IS NOT NULL")

    def has_claims(self, count: int) -> bool:
        return len(self.claims()) >= count

    def claims(self) -> list[str]:
        return [*self._paths("SELECT path FROM files WHERE owner IS NOT NULL")]

    def _paths(self, statement: LiteralString) -> Iterator[str]:
        with psycopg.connect(self.url) as db:
            yield from (from_text(row[0]) for row in db.execute(statement))

    def _stored(self, key: str, stored: StoredObject) -> None:
        with self._lock:
            self._versions.setdefault(key, []).append(stored.body)
