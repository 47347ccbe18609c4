"""The answer of `/healthz`: the supervisor's checks, and what stops all uploads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from s3spool.daemon.status_line import paused, paused_by_hand

if TYPE_CHECKING:
    from s3spool.daemon.supervisor import Daemon


def health(daemon: Daemon) -> dict[str, str]:
    """`unhealthy` and why; a pause by hand is no illness. Any thread."""
    if reason := "; ".join(_reasons(daemon)):
        return {"status": "unhealthy", "reason": reason}
    held = daemon.components.pause.current
    return {"status": "paused", "reason": paused_by_hand(held, time.time())} if held else {"status": "ok"}


def _reasons(daemon: Daemon) -> Iterator[str]:
    """One sentence each; none where all is well."""
    components = daemon.components
    if daemon.state != "running":
        yield f"the daemon is {daemon.state}"
    reason, since = components.breaker.reason, components.breaker.paused_at
    if components.breaker.open and reason is not None and since is not None:
        yield paused(reason.short, since, components.breaker.next_probe_s, time.time())
    if daemon.watch_manager.lost:
        yield f"the folder is gone: {components.folder.root}"
    if components.ledger.failing_since is not None:
        yield f"the ledger cannot be written: {components.ledger.name}"
    elif daemon.state == "running" and (silent := daemon.silent_threads(time.monotonic())):
        yield f"these threads died or hang: {', '.join(silent)}"
