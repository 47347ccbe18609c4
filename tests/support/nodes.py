"""Several daemons on one folder, each with a state directory, a log and a control socket of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3spool.ledger.postgresql.reader import opened
from support.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from s3spool.ledger.queries import LedgerReader
    from support.faulty import FaultyS3

LEASE_S = 2.0


class Nodes:
    """Not started. The first one answers commands for all."""

    def __init__(
        self,
        directory: Path,
        server: FaultyS3,
        url: str,
        urls: Sequence[tuple[str, str]],
        sections: Mapping[str, Mapping[str, Any]],
        *,
        lease_s: float = LEASE_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`url`: the ledger; `urls`: the name of each node, and its way to the ledger."""
        self.url = url
        self.server = server
        self.folder = directory / "spool"
        self.folder.mkdir()
        self.nodes: Sequence[Daemon] = [
            Daemon(
                directory / f"node-{number}",
                bucket=server.bucket,
                environment=server.environment() | dict(environment or {}),
                **sections,
            )
            for number, _ in enumerate(urls)
        ]
        for node, (name, way) in zip(self.nodes, urls, strict=True):
            node.folder = self.folder
            node.config["watch"] |= {"directory": str(self.folder)}
            node.config["destination"] |= {"endpoint_url": server.endpoint_url}
            node.config["state"] |= {"ledger": way, "node": name, "lease_s": lease_s}

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        return [event for node in self.nodes for event in node.events(name)]

    def reader(self) -> LedgerReader | None:
        """The ledger; None until a start has made it."""
        return opened(self.url, f"{self.server.endpoint_url}|{self.server.bucket}|", device=self.folder.stat().st_dev)
