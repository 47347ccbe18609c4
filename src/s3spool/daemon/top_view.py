"""What `s3spool top` shows beyond `status`: latency, errors, and the backlog by age and first path segment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from s3spool.control.peer import Peer
from s3spool.control.server import Handler
from s3spool.ledger.queries import AGES_S
from s3spool.ledger.rows import to_text

if TYPE_CHECKING:
    from s3spool.daemon.supervisor import Daemon

KEPT_S = 2.0  # counting the retry list may take a tenth of a second: all who look share the result
LISTED = 10_000  # paths of each place in memory
SEGMENTS = 20
UPLOADING = 20


def top_orders(daemon: Daemon, status: Handler, page: Handler) -> dict[str, Handler]:
    """The handler of `top`; `status` and `page` are those of `status` and `list`."""
    lock = threading.Lock()
    kept: list[tuple[float, dict[str, Any]]] = []

    def backlog() -> dict[str, Any]:
        with lock:
            if not kept or time.monotonic() - kept[0][0] > KEPT_S:
                kept[:] = [(time.monotonic(), _backlog(daemon))]
            return kept[0][1]

    def top(_: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
        histogram = daemon.components.stats.upload_s
        return {
            "status": status({}, peer),
            "upload_s": {"bounds": histogram.bounds, "counts": list(histogram.counts)},
            "uploading": page({"state": "uploading"}, peer)["rows"][:UPLOADING],
            **backlog(),
        }

    return {"top": top}


def _backlog(daemon: Daemon) -> dict[str, Any]:
    components = daemon.components
    queued: Counter[str] = Counter()
    for paths in (*components.inbox.listing(LISTED), components.settle.paths(LISTED)):
        queued.update(_segment(to_text(path)) for path in paths)
    with components.ledger.reader() as reader:
        errors = [
            {"state": state, "error_code": code, "files": files} for state, code, files in reader.errors(SEGMENTS)
        ]
        ages = {segment: counts for segment, *counts in reader.ages(time.time(), SEGMENTS)}
    names = sorted({*ages, *islice(queued, 1000)}, key=lambda name: (-sum(ages.get(name, ())) - queued[name], name))
    shape = [
        {"segment": name, "queued": queued[name], "ages": ages.get(name, [0] * (len(AGES_S) + 1))}
        for name in names[:SEGMENTS]
    ]
    return {"errors": errors, "shape": shape}


def _segment(text: str) -> str:
    """`directory/` of the first path segment, or "" for a file in the folder itself."""
    head, slash, _ = text.removeprefix("//").partition("/")
    mark = "//" if text.startswith("//") else ""
    return f"{mark}{head}/" if slash else ""
