"""The daemons that share the ledger, as `status` and `nodes` show them."""

from __future__ import annotations

from s3spool.control.status import Node
from s3spool.control.views import iso
from s3spool.ledger.queries import LedgerReader


def living(reader: LedgerReader, destination: str, owner: int = 0) -> list[Node]:
    """The nodes of the destination with this name; `owner`: the number of the daemon that answers."""
    return [
        Node(
            name=node.name,
            host=node.host,
            version=node.version,
            started=iso(node.started_at),
            lease_left_s=round(node.lease_left_s, 1),
            in_flight=node.load.in_flight,
            files_per_minute=node.load.files_per_minute,
            this=node.owner == owner,
        )
        for node in reader.nodes()
        if node.destination == destination
    ]
