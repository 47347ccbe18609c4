"""Walks the folder and offers the files that the watch did not report; memory does not grow with the folder."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence

import structlog

from s3spool.discovery.deduplicate import Deduplicator
from s3spool.discovery.deep_directories import DeepDirectories
from s3spool.discovery.directory_files import DirectoryFiles, FoundFile, warn_unreadable
from s3spool.discovery.directory_watches import DirectoryWatches
from s3spool.discovery.mount_scan import ERROR_S, MountScans
from s3spool.discovery.pending_directories import PendingDirectories
from s3spool.errors import EXHAUSTED, LedgerError
from s3spool.folder.directories import NotAFileError
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.heartbeat import Heartbeat
from s3spool.ledger.protocol import CLAIMED_ROWS, LedgerBackend
from s3spool.ledger.queries import LOOKUP_ROWS, LedgerReader
from s3spool.ledger.rows import Identity
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.settle import Settle, SettleReason

BATCH = 20 * LOOKUP_ROWS  # sorted: a larger batch reads fewer pages of the ledger per file
SHARED_BATCH = 4 * CLAIMED_ROWS  # the same where several daemons claim the files of a batch
ROUTINE = {"timer", "poll", "request"}  # such a scan is worth a line only if it found something
EXPECTED = {"start", "full", "removals", "ledger", "poll", "restored", "limit", "takeover"}  # found, not missed
AT_ONCE = {"start", "request", "reload", "restored", "takeover"}  # a person asks, or files may have no daemon
POLL_SHARE = 10  # scans for any other reason take at most a tenth of the time
ROOM_S = 0.5  # how often the walk of a mount looks for room in the queue
log = structlog.get_logger()

Offer = Callable[[Sequence[Item], Container[str]], object]  # items, and the paths to leave out: see Inbox.lookup


class Scan:
    """One thread that walks at start, on request, and every `rescan_s` seconds (more often without inotify).

    `want` may be called from any thread and never blocks. The walk blocks while the inbox is full, so that a million
    waiting files stay out of memory.
    """

    def __init__(
        self,
        folder: Folder,
        names: FileFilter,
        *,
        recursive: bool,
        settle_s: float,
        rescan_s: float,
        settle: Settle,
        inbox: Inbox,
        deduplicator: Deduplicator,
        ledger: LedgerBackend,
        slow: SlowDirectories | None = None,
    ) -> None:
        self._slow = slow or SlowDirectories()
        self.mounts = MountScans(self._slow, self._walk_mount)
        self.deep = DeepDirectories()
        self._files = DirectoryFiles(folder, ledger, self.deep, recursive=recursive)
        self._folder = folder
        self.names = names
        self._settle_s = settle_s
        self._rescan_s = rescan_s
        self._settle = settle
        self._inbox = inbox
        self._deduplicator = deduplicator
        self._ledger = ledger
        self._batch = BATCH if ledger.claims is None else SHARED_BATCH
        self._unreadable = False  # whether the last scan has warned of a directory
        self.watches: DirectoryWatches | None = None  # None: polling
        self.reasons: set[str] = set()  #: of scans that are wanted and have not begun
        self._lock = threading.Lock()  # guards the reasons
        self.heartbeat = Heartbeat()
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scan", daemon=True)
        self._last_duration_s = 0.0  # of the last scan, without waiting for room in the inbox
        self._waited_s = 0.0
        self.started = 0  # scans begun: a scan that begins after a file was dropped finds it
        self.finished = 0  # the number of the last scan that ended, but for the walks of mounts: see MountScans.ended
        self.excluded = 0  # names that include and exclude left out of the last scan; a directory counts as one
        self.missed = 0  # files that the watch should have reported

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def apply(self, names: FileFilter) -> None:
        """Other include and exclude patterns, from the next directory on."""
        self.names = names

    def use(self, watches: DirectoryWatches | None) -> None:
        """The watches that report new files between scans; None: scans alone find them."""
        self.watches = watches

    def want(self, reason: str) -> None:
        if reason in self.reasons:
            return  # thousands of hints a second may find no room
        with self._lock:
            self.reasons.add(reason)
        self._wanted.set()

    def close(self, timeout_s: float) -> None:
        self._stop.set()
        self.mounts.close()
        self._wanted.set()
        self._thread.join(timeout_s)

    def _interval_s(self) -> float:
        if self.watches is not None and not self.watches.exhausted:
            return self._rescan_s
        return min(self._rescan_s, max(1.0, self._settle_s, POLL_SHARE * self._last_duration_s))

    def _run(self) -> None:
        complaint = ""  # logged once, not every few seconds
        last = time.monotonic()
        while not self._stop.is_set():
            reasons = self._due(last)
            if not reasons:
                continue
            self.started += 1
            try:
                self._scan(reasons)
            except (LedgerError, OSError) as exc:
                if isinstance(exc, LedgerError):
                    self._ledger.report_read_error(exc, str(exc))
                if str(exc) != complaint:
                    log.warning("scan.failed", error=str(exc), reason=",".join(sorted(reasons)))
                complaint = str(exc)
                self._stop.wait(ERROR_S)
                for reason in reasons:
                    self.want(reason)
            else:
                self.finished = self.started
                complaint = ""
            last = time.monotonic()

    def _due(self, last: float) -> set[str]:
        """Wait for a reason to scan; none when the scan thread is to end, or must rest first."""
        wait_s = last + self._interval_s() - time.monotonic()
        asked = wait_s > 0 and self.heartbeat.wait(self._wanted, wait_s)
        if self._stop.is_set():
            return set()
        self._wanted.clear()
        self.heartbeat.beat()
        if self.reasons and not self.reasons & AT_ONCE and self._rest(last):
            return set()
        with self._lock:
            reasons, self.reasons = self.reasons, set()
        return reasons if reasons or asked else {"poll" if self.watches is None else "timer"}

    def _rest(self, last: float) -> bool:
        """Wait for the pause after the last scan; True if `want` was called meanwhile."""
        end = last + min(self._rescan_s, POLL_SHARE * self._last_duration_s)
        while (rest_s := end - time.monotonic()) > 0 and not self._workers_wait():
            if self.heartbeat.wait(self._wanted, min(rest_s, ROOM_S)):
                return True
        return False

    def _workers_wait(self) -> bool:
        """Whether there was no room for all new files, and those that had room are taken."""
        return "full" in self.reasons and self._settle.has_room() and self._inbox.wants_files()

    def _scan(self, reasons: set[str]) -> None:
        start = time.monotonic()
        reason = ",".join(sorted(reasons))
        log.debug("scan.started", reason=reason)
        files = offered = 0
        self._slow.refresh(self._folder.root)
        apart = self.mounts.start(self.started, again=not reasons <= {"timer", "poll"})
        self._waited_s = 0.0
        with self._ledger.reader() as reader:
            found = self._walk(reader, apart)
            while batch := list(itertools.islice(found, self._batch)):
                files += len(batch)
                offered += self._offer(batch, reader)
                self.heartbeat.beat()
                if self._stop.is_set():
                    return
        duration_s = time.monotonic() - start
        self._last_duration_s = duration_s - self._waited_s
        self.mounts.wait(self.heartbeat.beat)
        if self._ledger.claims is not None:
            self._ledger.claims.drop_void()  # files of dead daemons that this scan has not found
        missed = 0 if reasons & EXPECTED or (self.watches is not None and self.watches.exhausted) else offered
        self.missed += missed
        say = log.debug if reasons == {"full"} or (reasons <= ROUTINE and not offered) else log.info
        say(
            "scan.finished",
            reason=reason,
            files=files,
            offered=offered,
            files_missed_by_watch=missed,
            duration_s=round(duration_s, 3),
        )

    def _walk_mount(self, mount: str, stopped: Callable[[], bool]) -> None:
        """Offer all files below a mount; blocks for room. Runs on the thread of this mount."""

        def offer(items: Sequence[Item], taken: Container[str]) -> None:
            while (items := items[self._inbox.offer_nowait(items) :]) and not stopped():
                self._stop.wait(ROOM_S)
                items = [item for item in items if item.path not in taken]

        pending = PendingDirectories()
        parent, _, name = mount.rstrip("/").rpartition("/")
        pending.add(f"{parent}/" if parent else "", [name])
        with self._ledger.reader() as reader:
            while (directory := pending.pop()) is not None and not stopped():
                if self.watches is not None:
                    self.watches.ensure(directory)
                found = self._files.listed(directory, pending, reader, self.names)
                try:  # offered per directory: the next one may hang
                    while (batch := list(itertools.islice(found, self._batch))) and not stopped():
                        self._offer(batch, reader, offer)
                except (FileNotFoundError, NotAFileError):
                    continue
                except OSError as exc:
                    warn_unreadable(directory, exc)

    def _walk(self, reader: LedgerReader, apart: frozenset[str] = frozenset()) -> Iterator[FoundFile]:
        """Yield every file that include and exclude accept, except below the directories `apart`.

        Raises LedgerError, and OSError where the root is gone.
        """
        unreadable = False
        watches = self.watches
        self._files.take_excluded()
        if watches is not None:
            watches.begin_walk()
        pending = PendingDirectories()
        pending.add("", [""])
        while (directory := pending.pop(apart)) is not None and not self._stop.is_set():
            self.heartbeat.beat()
            if self.watches is not None:
                self.watches.ensure(directory)
            try:
                yield from self._files.listed(directory, pending, reader, self.names)
            except (FileNotFoundError, NotAFileError):
                if directory == "":
                    raise
            except OSError as exc:
                if directory == "" or exc.errno in EXHAUSTED:
                    raise  # not a fault of this directory: a scan without it would miss its files
                if not unreadable and not self._unreadable:
                    warn_unreadable(directory, exc)
                unreadable = True
        self._unreadable = unreadable
        if not self._stop.is_set():
            self._end_walk(watches)

    def _end_walk(self, watches: DirectoryWatches | None) -> None:
        self.excluded = self._files.take_excluded()
        self.deep.end_scan()
        if watches is not None:
            watches.end_walk()

    def _offer(self, batch: list[FoundFile], reader: LedgerReader, offer: Offer | None = None) -> int:
        """Offer the files that are neither in the ledger nor under way; returns how many."""
        settling = 0

        def settles(path: str, identity: Identity) -> bool:
            # Changed recently: settle keeps its identity for comparison. Without room there, the worker decides.
            nonlocal settling
            quiet_s = (time.time_ns() - identity.mtime_ns) / 1e9
            waits = quiet_s < self._settle_s and self._settle.add(path, SettleReason.CHANGED, identity)
            settling += waits
            return waits

        offered, waits_at = 0, time.monotonic()
        with self._inbox.lookup(path for path, _ in batch) as (here, taken):
            underway = here | self._settle.knows(path for path, _ in batch)
            found = sorted(each for each in batch if each[0] not in underway) if underway else sorted(batch)
            for items in self._deduplicator.sort_found(found, reader, settles, self.heartbeat.beat):
                offered += len(items)
                if offer is not None:
                    offer(items, taken)
                    continue
                if self._ledger.claims is None:  # else the scan has waited for the database as well
                    waits_at = time.monotonic()
                is_open = self._inbox.offer(items, self.heartbeat.beat, taken)
                now = time.monotonic()
                self._waited_s += now - waits_at
                waits_at = now
                if not is_open:
                    break
        return settling + offered
