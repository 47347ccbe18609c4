"""Counts of the ledger, and the line for people that `systemctl status` and a terminal show."""

from __future__ import annotations

import time

from s3spool.control.status import Files, LargeFile, Rate
from s3spool.errors import LedgerError
from s3spool.ledger.reader import Reader
from s3spool.ledger.store import Ledger
from s3spool.logs.text import shown
from s3spool.logs.units import duration, size


class RetrySummary:
    """Figures of the ledger as of the last `look`. Only the supervisor looks; any thread reads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._reader: Reader | None = None
        self._seen = 0  # the reader's version at the last count
        self.waiting = 0  #: without those that a worker has
        self.parked = 0
        self.oldest_ns = 0  #: ctime of the oldest waiting file, 0: there is none
        self.uploaded = 0
        self.unsent_bytes = 0

    def look(self) -> None:
        """Never raises: the retry thread reports a ledger that cannot be read."""
        try:
            if self._reader is None:
                self._reader, self._seen = Reader(self._ledger.path), 0
            version = self._reader.version()
            if version == self._seen:
                return  # an idle daemon does not count half a million rows again and again
            self.waiting, self.parked, oldest_ns = self._reader.backlog()
            self.oldest_ns = oldest_ns or 0
            self.uploaded = self._reader.counts()["uploaded"]
            self.unsent_bytes = self._reader.unsent_bytes()
            self._seen = version
        except (LedgerError, OSError):
            self._reader = None


def running(files: Files, unsent_bytes: int, rate: Rate, oldest_s: float, large: list[LargeFile]) -> str:
    """`1,204 uploaded, 3 uploading, 2 waiting, 1.2 GiB unsent, 45 MiB/s, 27 s left, oldest unsent 4 s`."""
    states = ("uploading", "queued", "settling", "waiting", "parked")
    words = [f"{files.uploaded:,} uploaded"]
    words += [f"{count:,} {state}" for state in states if (count := getattr(files, state))] or ["0 unsent"]
    if files.unsent > files.parked and unsent_bytes:
        words += [f"{size(unsent_bytes)} unsent"]
    if rate.bytes_per_s:
        words += [f"{size(rate.bytes_per_s)}/s"]
        words += [f"{duration(unsent_bytes / rate.bytes_per_s)} left"] if unsent_bytes else []
    if large:
        words += [f"{shown(large[0].path)} {large[0].bytes_uploaded / large[0].bytes:.0%}"]
    words += [f"oldest unsent {duration(oldest_s)}"] if oldest_s else []
    return ", ".join(words)


def backlog(files: Files, unsent_bytes: int) -> str:
    """`43 unsent (1.2 GiB)`."""
    return f"{files.unsent:,} unsent{f' ({size(unsent_bytes)})' if unsent_bytes else ''}"


def paused(reason: str, since: float, next_s: float, now: float) -> str:
    """`destination paused: 403 AccessDenied since 12:01, next try in 20 s`; times are Unix seconds."""
    began = time.localtime(since)
    today = time.strftime("%x", began) == time.strftime("%x", time.localtime(now))
    clock = time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", began)
    upcoming = f"next try in {next_s:.0f} s" if next_s >= 1 else "trying now"
    return f"destination paused: {reason} since {clock}, {upcoming}"
