"""Counts of the ledger, kept up to date at little cost."""

from __future__ import annotations

from s3spool.errors import LedgerError
from s3spool.ledger.protocol import LedgerBackend, LedgerReader


class RetrySummary:
    """Figures of the ledger as of the last `refresh`, which one thread calls; any thread reads."""

    def __init__(self, ledger: LedgerBackend) -> None:
        self._ledger = ledger
        self._reader: LedgerReader | None = None
        self._seen = 0  # the reader's version at the last count
        self.waiting = 0  #: without those that a worker has
        self.parked = 0
        self.oldest_ns = 0  #: ctime of the oldest waiting file, 0: there is none
        self.uploaded = 0
        self.unsent_bytes = 0
        self.uploaded_bytes = 0

    def refresh(self) -> None:
        """Never raises: the retry thread reports a ledger that cannot be read."""
        try:
            if self._reader is None:
                self._reader, self._seen = self._ledger.reader(), 0
            version = self._reader.version()
            if version == self._seen:
                return  # nothing has changed: an idle daemon counts no rows
            self.waiting, self.parked, oldest_ns = self._reader.backlog()
            self.oldest_ns = oldest_ns or 0
            self.uploaded = self._reader.counts()["uploaded"]
            self.unsent_bytes = self._reader.unsent_bytes()
            self.uploaded_bytes = self._reader.uploaded_bytes()
            self._seen = version
        except (LedgerError, OSError):
            self._reader = None
