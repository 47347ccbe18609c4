"""How fast files and bytes leave, for `status` and the live line."""

from __future__ import annotations

import threading
import time

from s3spool.control.status import Rate
from s3spool.daemon.components import Components
from s3spool.upload.large import PartJob

INTERVAL_S = 1.0


class RateMeter:
    """Files and bytes per second since the question before, which came at least INTERVAL_S earlier. Thread-safe."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._lock = threading.Lock()
        self._at, self._files, self._bytes = time.monotonic(), 0, 0
        self._small_bytes = self._sent_bytes = 0
        self._last = Rate()

    def now(self) -> Rate:
        with self._lock:
            elapsed_s = time.monotonic() - self._at
            if elapsed_s >= INTERVAL_S:
                files, size = self._components.stats.uploaded, self.sent_bytes()
                self._last = Rate(
                    files_per_s=round((files - self._files) / elapsed_s, 1),
                    bytes_per_s=round((size - self._bytes) / elapsed_s, 1),
                )
                self._at, self._files, self._bytes = time.monotonic(), files, size
            return self._last

    def sent_bytes(self) -> int:
        """Since the start: small files count when S3 has confirmed them, large ones while they are sent."""
        components = self._components
        whole = components.stats.bytes_uploaded - components.large.completed_bytes
        self._small_bytes = max(self._small_bytes, whole)  # a large file completes before `stats` counts it
        parts = sum(job.position for job in components.workers.jobs() if isinstance(job, PartJob))
        self._sent_bytes = max(self._sent_bytes, self._small_bytes + components.inbox.parts.bytes_done + parts)
        return self._sent_bytes  # a part that failed is sent again
