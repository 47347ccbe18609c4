"""Liveness for systemd's watchdog: a thread hangs when its heartbeat is old."""

from __future__ import annotations

from collections.abc import Mapping

from s3spool.heartbeat import Heartbeat

HEARTBEAT_TIMEOUT_S = 60.0  # a slow disk may block a thread for long; a deadlock never ends


class LivenessCheck:
    """Names the components whose heartbeat is older than `timeout_s`."""

    def __init__(self, heartbeats: Mapping[str, Heartbeat], *, timeout_s: float = HEARTBEAT_TIMEOUT_S) -> None:
        self._heartbeats = heartbeats
        self.timeout_s = timeout_s

    def silent(self, now: float) -> list[str]:
        return [name for name, heartbeat in self._heartbeats.items() if now - heartbeat.last > self.timeout_s]
