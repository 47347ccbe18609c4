"""The counts of the retry list, and the sentences of `systemctl status`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from s3spool.errors import LedgerError
from s3spool.folder.folder import Folder
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.ledger.protocol import LedgerBackend, LedgerReader
from s3spool.ledger.rows import Pause
from s3spool.logs.text import printable


class RetrySummary:
    """The retry list in three numbers, as of the last `refresh`, which only the supervisor calls; any thread reads."""

    def __init__(self, ledger: LedgerBackend) -> None:
        self._ledger = ledger
        self._reader: LedgerReader | None = None
        self._seen = 0  # the ledger's version at the last count
        self.waiting = 0  #: without those that a worker has
        self.parked = 0
        self.oldest_ns = 0  #: ctime of the oldest waiting file, 0: there is none

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
            self._seen = version
        except (LedgerError, OSError):
            self._reader = None


def oldest_ctime_ns(paths: Iterable[str], folder: Folder, slow: SlowDirectories) -> int:
    """The earliest ctime of these files; 0: none is there. A copied file brings its mtime along, never its ctime."""
    found = []
    for path in paths:
        if slow.holds(path):
            continue  # the supervisor must not hang with a mount
        with suppress(OSError):
            identity = folder.identity_of(path)
            if identity is not None:
                found.append(identity.ctime_ns)
    return min(found, default=0)


def going(uploaded: int, in_flight: int, waiting: int, parked: int, oldest_s: float) -> str:
    """`1,204 uploaded, 3 in flight, 2 waiting, oldest unsent 4 s`."""
    words = [f"{uploaded:,} uploaded", f"{in_flight:,} in flight", f"{waiting:,} waiting"]
    words += [f"{parked:,} parked"] if parked else []
    words += [f"oldest unsent {oldest_s:,.0f} s"] if oldest_s else []
    return ", ".join(words)


def paused(reason: str, since: float, next_s: float, now: float) -> str:
    """`destination paused: 403 AccessDenied since 12:01, next try in 20 s`; times are Unix seconds."""
    upcoming = f"next try in {next_s:.0f} s" if next_s >= 1 else "trying now"
    return f"destination paused: {reason} since {_clock(since, now)}, {upcoming}"


def paused_by_hand(pause: Pause, now: float) -> str:
    """`paused by hand since 12:01: bucket maintenance`."""
    reason = f": {printable(pause.reason)}" if pause.reason else ""
    return f"paused by hand since {_clock(pause.since, now)}{reason}"


def _clock(time_s: float, now: float) -> str:
    then = time.localtime(time_s)
    today = time.strftime("%x", then) == time.strftime("%x", time.localtime(now))
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)
