"""`s3spool check` of a ledger that several daemons share: the database, and whether all nodes see the same folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from s3spool.check.result import CheckResult, error, ok, warning
from s3spool.errors import LedgerError
from s3spool.folder.marker import MARKER, marker_name, markers

if TYPE_CHECKING:
    from s3spool.config.schema import Config
    from s3spool.ledger.rows import Node


def check_shared_ledger(config: Config) -> Iterator[CheckResult]:
    try:
        from s3spool.ledger.postgresql.connection import VERSION, shown  # noqa: PLC0415 - an extra
        from s3spool.ledger.postgresql.survey import survey  # noqa: PLC0415 - the same
    except ImportError as exc:
        yield error("ledger", f"state.ledger needs the extra postgresql ({exc}): pip install 's3spool[postgresql]'")
        return
    try:
        found = survey(config.state.ledger)
    except LedgerError as exc:
        yield error("ledger", str(exc))
        return
    where = f"{shown(config.state.ledger)}, PostgreSQL {found.server}"
    if found.missing:
        yield error("ledger", f"{where}: the user lacks {', '.join(found.missing)}; grant it")
        return
    if found.version > VERSION:
        version = f"schema version {found.version}, this program knows {VERSION}"
        yield error("ledger", f"{where}: {version}; install the newer s3spool here as well")
        return
    upgrade = "none yet; the first daemon makes it" if not found.version else "the next start upgrades it"
    schema = f"schema version {found.version}" if found.version == VERSION else f"schema: {upgrade}"
    clock = f"its clock is {abs(found.ahead_s):.1f} s {'ahead' if found.ahead_s > 0 else 'behind'}, which does no harm"
    yield ok("ledger", f"{where}, {schema}; {clock}")
    try:
        yield from compare(found.nodes, markers(config.watch.directory), config.destination.ledger_name)
    except OSError as exc:
        yield warning("nodes", f"{config.watch.directory} cannot be listed ({exc.strerror}): are all on one folder?")


def compare(nodes: Sequence[Node], seen: dict[str, str], destination: str) -> Iterator[CheckResult]:
    """The living nodes and the markers that this host sees: file name and content."""
    here = [node for node in nodes if node.destination == destination]
    names = Counter(node.name for node in here)
    for name in (name for name, count in names.items() if count > 1):
        yield warning(
            "nodes", f"{names[name]} daemons are named {name}: set state.node, so that messages tell them apart"
        )
    same = []
    for node in here:
        if not node.load.marker:
            yield warning("nodes", f"{_who(node)} has left no marker in its folder: it just started, or may not write")
        elif seen.get(marker_name(node.name)) == node.load.marker:
            same.append(node.name)
        elif names[node.name] == 1:
            mount = "mount the same folder on both hosts"
            yield error("nodes", f"{_who(node)}: its {marker_name(node.name)} is not in this folder; {mount}")
    for node in nodes:
        if node.destination != destination and seen.get(marker_name(node.name)) == node.load.marker != "":
            same_one = "give all nodes the same bucket, prefix and endpoint"
            yield error("nodes", f"{_who(node)} uploads this folder to {node.destination}; {same_one}")
    for marker in sorted(seen.keys() - {marker_name(node.name) for node in nodes}):
        told = "did not end by itself, or has another state.ledger"
        yield warning(
            "nodes", f"{marker}: the daemon {marker.removeprefix(MARKER)} {told}; remove the file if it is gone"
        )
    if same or not here:
        yield ok("nodes", f"{', '.join(same)}: this folder, bucket and prefix" if same else "none runs")


def _who(node: Node) -> str:
    return f"{node.name} on {node.host}"
