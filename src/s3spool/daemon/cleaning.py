"""Daily cleaning: drops receipts of files that are gone, and aborts stale multipart uploads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from s3spool.config.schema import StateConfig
from s3spool.errors import LedgerError
from s3spool.folder.folder import Folder
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.rows import Node
from s3spool.upload.large import LargeUploads

DAY_S = 86400.0
BATCH = 500  # receipts dropped in one group


class DailyCleaning:
    """`run_if_due` is for the supervisor's thread; the cleaning runs on a thread of its own."""

    def __init__(
        self,
        folder: Folder,
        large: LargeUploads,
        ledger: LedgerBackend,
        config: StateConfig,
        folder_is_unsafe: Callable[[str], bool],
        same_folder: Callable[[Sequence[Node]], bool] = lambda _: True,
    ) -> None:
        """`folder_is_unsafe`: whether an access to this path could hang, or the folder is gone.

        `same_folder`: whether this daemon sees the folder of these nodes.
        """
        self._same_folder = same_folder
        self._folder = folder
        self._large = large
        self._ledger = ledger
        self._config = config
        self._folder_is_unsafe = folder_is_unsafe
        self._last = 0.0  # monotonic seconds; 0: due
        self._complaint = ""  # the last error, so that it is logged once

    def run_if_due(self, now: float) -> None:
        if now - self._last > DAY_S or not self._last:
            with suppress(RuntimeError):  # the system has no thread left: the next tick tries again
                threading.Thread(target=self.clean, name="clean", daemon=True).start()
                self._last = now

    def clean(self) -> None:
        """One cleaning. If the ledger cannot be read, the next tick starts another."""
        try:
            with self._ledger.reader() as reader:
                if not self._same_folder(reader.nodes()):
                    return  # what is not in this folder may be in theirs
            self._large.sweep(time.time() - self._config.abort_stale_multipart_days * DAY_S)
            self._drop_receipts(time.time() - self._config.receipt_days * DAY_S)
        except (LedgerError, OSError) as exc:
            self._complaint = self._ledger.report_read_error(exc, self._complaint)
            self._last = 0.0
        else:
            self._complaint = ""

    def _drop_receipts(self, older_than: float) -> None:
        """Drop old receipts whose file is gone. Raises LedgerError, OSError."""
        batch: list[str] = []
        with self._ledger.reader() as reader:
            for receipt in reader.receipts_before(older_than):
                if self._is_gone(receipt.path):
                    batch.append(receipt.path)
                if len(batch) == BATCH:
                    self._ledger.drop_receipts(batch)
                    batch = []
            self._ledger.drop_receipts(batch)

    def _is_gone(self, path: str) -> bool:
        if self._folder_is_unsafe(path):
            return False
        try:
            return self._folder.identity_of(path) is None
        except OSError:
            return False
