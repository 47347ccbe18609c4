"""The figures of the ledger, kept up to date at little cost."""

from __future__ import annotations

import threading
import time

from s3spool.errors import LedgerError
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LedgerReader, Totals

PAUSE_S = 5.0  # between two tries to read: a connection that fails may take seconds
# A shared ledger counts its rows anew, a million in a second: that takes at most a twentieth of the time.
LONG_S = 0.05
SHARE = 20


class LedgerFigures:
    """Thread-safe."""

    def __init__(self, ledger: LedgerBackend) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._reader: LedgerReader | None = None
        self._seen = 0  # the reader's version at the last count
        self._totals = Totals()
        self._again_at = 0.0  # monotonic seconds

    def now(self) -> Totals:
        """The last figures where the ledger cannot be read: the retry thread reports that."""
        with self._lock:
            try:
                if self._reader is None:
                    if time.monotonic() < self._again_at:
                        return self._totals
                    self._reader, self._seen = self._ledger.reader(), 0
                version, began_s = self._reader.version(), time.monotonic()
                if version != self._seen and began_s >= self._again_at:  # an idle daemon counts no rows
                    self._totals = self._reader.totals()
                    self._seen = version
                    took_s = time.monotonic() - began_s
                    self._again_at = began_s + (SHARE * took_s if took_s > LONG_S else 0.0)
            except (LedgerError, OSError):
                self._close()
                self._again_at = time.monotonic() + PAUSE_S
            return self._totals

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
