"""The last step: once a receipt is durable, log the upload, and keep, delete or archive the local file."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from s3spool.errors import EXHAUSTED, NOTHING_LEFT
from s3spool.folder.directories import NotAFileError
from s3spool.folder.folder import Folder, SpecialBitsError
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.heartbeat import Heartbeat
from s3spool.ledger.rows import Receipt
from s3spool.queue.inbox import Inbox
from s3spool.queue.settle import Settle, SettleReason
from s3spool.upload.receipt_marks import ReceiptMarks
from s3spool.upload.stats import Stats

SLOW_CLOSE_S = 1.0  # for removals in slow directories; the next start removes the rest
WARN_EVERY_S = 60.0
MAX_DIRECTORIES = 1000  # remembered
log = structlog.get_logger()


class Sent(NamedTuple):
    """A durable receipt, and the other fields of its log line."""

    receipt: Receipt
    duration_s: float
    attempt: int


class WarningLimit:
    """One warning per directory, error and minute, with the number of files that it covers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._warned: dict[str, tuple[float, str, int]] = {}  # directory -> when, which error, files since

    def files_to_report(self, path: str, error: str) -> int:
        """How many files to warn of now; 0: do not warn."""
        directory = path.rpartition("/")[0]
        now = self._clock()
        warned_at, before, files = self._warned.pop(directory, (now - WARN_EVERY_S, error, 0))
        warn = error != before or now - warned_at >= WARN_EVERY_S
        self._warned[directory] = (now, error, 0) if warn else (warned_at, before, files + 1)
        if len(self._warned) > MAX_DIRECTORIES:
            del self._warned[next(iter(self._warned))]
        return files + 1 if warn else 0

    def end(self, path: str) -> None:
        """A removal in this directory has succeeded."""
        if self._warned:
            self._warned.pop(path.rpartition("/")[0], None)


class PostUpload:
    """One thread. `committed` is called by the ledger's thread and never blocks.

    Files that were sent before the process died arrive here again through `finish`, without a second upload.
    """

    def __init__(
        self,
        folder: Folder,
        inbox: Inbox,
        settle: Settle,
        stats: Stats,
        *,
        bucket: str,
        action: str,
        archive: Path | None,
        rule_action: Callable[[str], str] | None = None,
        rescan: Callable[[str], None],
        slow: SlowDirectories | None = None,
        marks: ReceiptMarks | None = None,
        on_uploaded: Callable[[Receipt], None] = lambda _: None,
    ) -> None:
        self._bucket = bucket
        self._marks = marks
        self._on_uploaded = on_uploaded
        self._slow = slow or SlowDirectories()
        self._folder = folder
        self._inbox = inbox
        self._settle = settle
        self._stats = stats
        self.apply(action, archive, rule_action)
        self._rescan = rescan
        self._exhausted = False  # a removal has failed for lack of descriptors or memory
        self._warnings = WarningLimit()
        self._log = log
        self._queue: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self.heartbeat = Heartbeat()
        self._thread = threading.Thread(target=self._run, name="after", daemon=True)
        # The removal of a slow file may hang: a separate thread keeps it away from all other files.
        self._slow_queue: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._slow_thread = threading.Thread(target=self._run_slow, name="after-slow", daemon=True)

    def apply(self, action: str, archive: Path | None, rule_action: Callable[[str], str] | None = None) -> None:
        """Another action, for receipts that are recorded from now on; `rule_action`: by path, where a rule has one."""
        self.archive = archive  # first: the action may need it
        self.action = action
        self._rule_action = rule_action

    def action_of(self, path: str) -> str:
        return self._rule_action(path) if self._rule_action else self.action

    def start(self) -> None:
        self._log = log.bind()  # the lazy logger of a module takes a microsecond for each line
        self._thread.start()
        self._slow_thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        """Apply the action to all durable receipts; False after the timeout."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._slow_queue.put(None)
        self._slow_thread.join(min(timeout_s, SLOW_CLOSE_S))
        return not self._thread.is_alive()

    def receipt_committed(self, sent: Sent) -> None:
        self._queue.put(sent)

    def finish(self, receipt: Receipt) -> None:
        """Remove a file that was sent and committed by an earlier process. The path is in flight already."""
        self._queue.put(Sent(receipt, 0.0, 0))

    def _run(self) -> None:
        while True:
            self.heartbeat.beat()
            try:
                sent = self._queue.get(timeout=self.heartbeat.capped(None))
            except queue.Empty:
                continue
            if sent is None:
                return
            self._report_uploaded(sent)
            if self._slow.holds(sent.receipt.path):
                self._slow_queue.put(sent)
            else:
                self._finish(sent)

    def _run_slow(self) -> None:
        while (sent := self._slow_queue.get()) is not None:
            self._finish(sent)

    def _finish(self, sent: Sent) -> None:
        changed = False
        try:
            changed = self._apply_action(sent)
        except Exception:  # one bad file must not end the thread
            log.exception("file.failed", path=sent.receipt.path, operation=sent.receipt.after)
        finally:
            # `done` first: the inbox refuses a path in flight.
            changed = self._inbox.done(sent.receipt.path) or changed
            if changed and not self._settle.add(sent.receipt.path, SettleReason.CHANGED):
                self._rescan("full")

    def _report_uploaded(self, sent: Sent) -> None:
        receipt = sent.receipt
        if sent.attempt:
            self._stats.uploaded += 1
            self._stats.bytes_uploaded += receipt.identity.size
            self._stats.upload_s.observe(sent.duration_s)
            # The ctime is not older than the drop: a copied file brings its mtime along.
            self._stats.completion_s.observe(max(0.0, receipt.uploaded_at - receipt.identity.ctime_ns / 1e9))
            self._on_uploaded(receipt)
            self._log.info(
                "file.uploaded",
                path=receipt.path,
                key=receipt.key,
                bucket=self._bucket,
                bytes=receipt.identity.size,
                duration_s=sent.duration_s,
                attempt=sent.attempt,
                etag=receipt.etag,
                checksum=receipt.checksum,
                version_id=receipt.version_id,
            )

    def _apply_action(self, sent: Sent) -> bool:
        """Keep, delete or archive; True when the file has changed and has to be sent again."""
        receipt = sent.receipt
        if receipt.after == "keep" or self.action_of(receipt.path) == "keep":
            self._mark(receipt, None)
            return False  # "keep" in the configuration now also applies to earlier uploads
        try:
            removed = self._remove(receipt)
        except (FileNotFoundError, NotAFileError):
            return False  # removed or replaced by another process; the sent content is in S3
        except OSError as exc:
            self._warn_not_removed(receipt, exc)
            self._exhausted = self._exhausted or exc.errno in EXHAUSTED
            return False
        self._warnings.end(receipt.path)
        if self._exhausted:
            self._exhausted = False
            self._rescan("full")  # removals work again: a scan finds the files that were left
        if not removed:
            log.info("file.changed", path=receipt.path, operation=receipt.after)
        return not removed

    def _mark(self, receipt: Receipt, archived: Path | None) -> None:
        if self._marks is None:
            return
        try:
            if archived is None:
                self._marks.keep(receipt)
            elif self.archive is not None:
                self._marks.archive(receipt, archived, self.archive)
        except (FileNotFoundError, NotAFileError):
            return  # removed or replaced by another process
        except OSError as exc:
            error = exc.strerror or str(exc)
            files = self._warnings.files_to_report(receipt.path, error)
            (log.warning if files else log.debug)(
                "file.failed",
                path=receipt.path,
                operation="receipt",
                error_code=type(exc).__name__,
                error=error,
                hint="the file is in S3, without after.receipt: the daemon needs the right to write to the file",
                files=files or 1,
            )

    def _warn_not_removed(self, receipt: Receipt, exc: OSError) -> None:
        error = exc.strerror or str(exc)
        self._stats.last_error = f"{receipt.after} {receipt.path}: {error}"
        files = self._warnings.files_to_report(receipt.path, error)
        (log.warning if files else log.debug)(
            "file.failed",
            path=receipt.path,
            operation=receipt.after,
            error_code=type(exc).__name__,
            error=error,
            hint=f"the file is in S3 and stays here, the next scan tries again: {_advice(exc, receipt.after)}",
            files=files or 1,
        )

    def _remove(self, receipt: Receipt) -> bool:
        if receipt.after == "delete":
            return self._folder.unlink_if_same(receipt.path, receipt.identity)
        if self.archive is None:
            return True  # an earlier configuration had an archive: keep the file
        archived = self._folder.move_if_same(receipt.path, receipt.identity, self.archive)
        if archived is not None:
            self._mark(receipt, archived)
        return archived is not None


def _advice(exc: OSError, after: str) -> str:
    code = exc.errno
    if isinstance(exc, SpecialBitsError):
        return "its owner can run: chmod u-s,g-s,-t FILE"
    if code in EXHAUSTED:
        return NOTHING_LEFT
    if after == "archive" and code == errno.EXDEV:
        return "after.archive_directory must be on the file system and mount of watch.directory"
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return "free disk space there"
    if code == errno.EROFS:
        return "it is mounted read-only: remount it"
    where = "its directory and after.archive_directory" if after == "archive" else "its directory"
    return f"give the daemon write access to {where}"
