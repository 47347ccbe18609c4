"""The last step: once a receipt is durable, keep, delete or archive the local file, and say so."""

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
from s3spool.ledger.rows import Receipt
from s3spool.queue.inbox import Inbox
from s3spool.queue.settle import Settle, SettleReason
from s3spool.upload.stats import Stats

SLOW_CLOSE_S = 1.0  # removals in slow directories: what is left is removed after the next start
COMPLAINT_S = 60.0
COMPLAINTS = 1000  # directories of which is kept when they were told
log = structlog.get_logger()


class Sent(NamedTuple):
    """A durable receipt, and what the log line says besides."""

    receipt: Receipt
    bucket: str
    duration_s: float
    attempt: int


class Complaints:
    """One warning for each directory, error and minute, with the number of files that it stands for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, str, int]] = {}  # directory -> when, which error, how many files since

    def count(self, path: str, error: str) -> int:
        """For how many files to warn now; 0: it has been said."""
        directory = path.rpartition("/")[0]
        now = self._clock()
        told_at, before, files = self._told.pop(directory, (now - COMPLAINT_S, error, 0))
        say = error != before or now - told_at >= COMPLAINT_S
        self._told[directory] = (now, error, 0) if say else (told_at, before, files + 1)
        if len(self._told) > COMPLAINTS:
            del self._told[next(iter(self._told))]
        return files + 1 if say else 0

    def end(self, path: str) -> None:
        """It works in this directory."""
        if self._told:
            self._told.pop(path.rpartition("/")[0], None)


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
        action: str,
        archive: Path | None,
        rescan: Callable[[str], None],
        slow: SlowDirectories | None = None,
    ) -> None:
        self._slow = slow or SlowDirectories()
        self._folder = folder
        self._inbox = inbox
        self._settle = settle
        self._stats = stats
        self.action = action
        self.archive = archive
        self._rescan = rescan
        self._exhausted = False  # removals have failed for nothing but that
        self._complaints = Complaints()
        self._queue: queue.SimpleQueue[Sent | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="after", daemon=True)
        # Files of slow directories: their removal may hang, and whatever else waits for it.
        self._slow_queue: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._slow_thread = threading.Thread(target=self._run_slow, name="after-slow", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._slow_thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> bool:
        """Finish what is durable; False if that took too long."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._slow_queue.put(None)
        self._slow_thread.join(min(timeout_s, SLOW_CLOSE_S))
        return not self._thread.is_alive()

    def committed(self, sent: Sent) -> None:
        self._queue.put(sent)

    def ping(self, answer: Callable[[], None]) -> None:
        """Call back from the thread, once it has done what is before it."""
        self._queue.put(answer)

    def finish(self, receipt: Receipt) -> None:
        """Sent and committed earlier, still here: only the removal is left. The path is in flight already."""
        self._queue.put(Sent(receipt, "", 0.0, 0))

    def _run(self) -> None:
        while (sent := self._queue.get()) is not None:
            if not isinstance(sent, Sent):
                sent()
                continue
            self._tell(sent)
            if self._slow.holds(sent.receipt.path):
                self._slow_queue.put(sent)
            else:
                self._finish(sent)

    def _run_slow(self) -> None:
        while (sent := self._slow_queue.get()) is not None:
            self._finish(sent)

    def _finish(self, sent: Sent) -> None:
        again = False
        try:
            again = self._step(sent)
        except Exception:  # one odd file must not end the thread for all others
            log.exception("file.failed", path=sent.receipt.path, operation=sent.receipt.after)
        finally:
            # In this order: what is offered again must not be refused because it is still in flight.
            again = self._inbox.done(sent.receipt.path) or again
            if again and not self._settle.add(sent.receipt.path, SettleReason.CHANGED):
                self._rescan("full")

    def _tell(self, sent: Sent) -> None:
        receipt = sent.receipt
        if sent.attempt:
            self._stats.uploaded += 1
            self._stats.bytes_uploaded += receipt.identity.size
            log.info(
                "file.uploaded",
                path=receipt.path,
                key=receipt.key,
                bucket=sent.bucket,
                bytes=receipt.identity.size,
                duration_s=sent.duration_s,
                attempt=sent.attempt,
                etag=receipt.etag,
                checksum=receipt.checksum,
                version_id=receipt.version_id,
            )

    def _step(self, sent: Sent) -> bool:
        """True when the file is no longer what was sent, and has to be sent again."""
        receipt = sent.receipt
        if "keep" in {receipt.after, self.action}:
            return False  # who says keep today means the files of yesterday as well
        try:
            removed = self._remove(receipt)
        except (FileNotFoundError, NotAFileError):
            return False  # somebody else removed or replaced it; what was there is in S3
        except OSError as exc:
            self._complain(receipt, exc)
            self._exhausted = self._exhausted or exc.errno in EXHAUSTED
            return False
        self._complaints.end(receipt.path)
        if self._exhausted:
            self._exhausted = False
            self._rescan("full")  # it works again: what was left is not to wait for the next scan
        if not removed:
            log.info("file.changed", path=receipt.path, operation=receipt.after)
        return not removed

    def _complain(self, receipt: Receipt, exc: OSError) -> None:
        error = exc.strerror or str(exc)
        self._stats.last_error = f"{receipt.after} {receipt.path}: {error}"
        files = self._complaints.count(receipt.path, error)
        (log.warning if files else log.debug)(
            "file.failed",
            path=receipt.path,
            operation=receipt.after,
            error_code=type(exc).__name__,
            error=error,
            hint=f"it is in S3 and stays here, the next scan tries again: {_advice(exc, receipt.after)}",
            files=files or 1,
        )

    def _remove(self, receipt: Receipt) -> bool:
        if receipt.after == "delete":
            return self._folder.unlink_if_same(receipt.path, receipt.identity)
        if self.archive is None:
            return True  # was to be archived once, but the configuration has no archive any more: keep
        return self._folder.move_if_same(receipt.path, receipt.identity, self.archive) is not None


def _advice(exc: OSError, after: str) -> str:
    code = exc.errno
    if isinstance(exc, SpecialBitsError):
        return "its owner may: chmod u-s,g-s,-t FILE"
    if code in EXHAUSTED:
        return NOTHING_LEFT
    if after == "archive" and code == errno.EXDEV:
        return "after.archive_directory must be on the file system and mount of watch.directory"
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return "make room there"
    if code == errno.EROFS:
        return "it is mounted read-only: remount it"
    where = "its directory and after.archive_directory" if after == "archive" else "its directory"
    return f"give the daemon write access to {where}"
