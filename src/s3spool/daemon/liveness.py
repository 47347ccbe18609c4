"""Liveness: threads that died or hang, for systemd's watchdog; files whose file system does not answer."""

from __future__ import annotations

import structlog

from s3spool.daemon.components import Components
from s3spool.heartbeat import HEARTBEAT_TIMEOUT_S, Heartbeat

log = structlog.get_logger()


class LivenessCheck:
    """Only the supervisor's thread calls `find_hanging_files`; any thread may call `silent`."""

    def __init__(self, components: Components, watch: Heartbeat) -> None:
        self._components = components
        self._heartbeats = {
            "ledger": components.ledger.heartbeat,
            "after": components.after.heartbeat,
            "workers": components.workers.heartbeat,
            "retry": components.retry.heartbeat,
            "settle": components.settle.heartbeat,
            "scan": components.scan.heartbeat,
            "watch": watch,
        }
        self.timeout_s = HEARTBEAT_TIMEOUT_S
        self.hanging_files: list[str] = []

    def silent(self, now: float) -> list[str]:
        """The names of threads that died, or whose heartbeat is older than `timeout_s`."""
        components = self._components
        components.workers.look_at_gate()
        threads = (components.ledger, components.after, components.retry, components.settle_thread, components.scan)
        dead = [type(thread).__name__ for thread in threads if not thread.alive()]
        return dead + [name for name, one in self._heartbeats.items() if now - one.last > self.timeout_s]

    def find_hanging_files(self, now: float) -> None:
        """Update `hanging_files`, and log the new ones."""
        self._components.slow.refresh(self._components.folder.root)
        before, self.hanging_files = self.hanging_files, self._components.workers.hanging_files(now)
        for path in set(self.hanging_files) - set(before):
            log.warning("file.hanging", path=path, hint="the file system does not answer; the other files go on")
