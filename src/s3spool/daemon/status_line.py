"""The line for people that `systemctl status` and a terminal show."""

from __future__ import annotations

import time

from s3spool.control.status import Files, LargeFile, Rate
from s3spool.daemon.components import Components
from s3spool.daemon.file_states import FileStates
from s3spool.daemon.rate import RateMeter
from s3spool.ledger.rows import Pause
from s3spool.logs.text import printable, shown
from s3spool.logs.units import bar, duration, size


class StatusLine:
    """Thread-safe."""

    def __init__(self, components: Components, files: FileStates, rate: RateMeter, *, with_bar: bool) -> None:
        """`with_bar`: the progress of all files comes first."""
        self._components = components
        self._files = files
        self._rate = rate
        self._with_bar = with_bar

    def text(self, state: str) -> str:
        components = self._components
        if state == "draining":
            uploading = len(components.workers.jobs())
            return f"stopping, {uploading} uploading may finish" if uploading else "stopping"
        files, unsent_bytes = self._files.count(), self._files.unsent_bytes()
        reason, since, held = components.breaker.reason, components.breaker.paused_at, components.pause.current
        if held is None and components.breaker.open and reason is not None and since is not None:
            pause = paused(reason.short, since, components.breaker.next_probe_s, time.time())
            return f"{pause}; {backlog(files, unsent_bytes)}"
        large = sorted(self._files.large_files().values(), key=lambda file: -file.bytes)
        line = running(files, unsent_bytes, self._rate.now(), self._files.oldest_unsent_s(), large)
        if self._with_bar and (whole := self._rate.sent_bytes() + unsent_bytes):
            line = f"{bar(whole - unsent_bytes, whole)}, {line}"
        return f"{line}; {paused_by_hand(held, time.time())}" if held else line


def running(files: Files, unsent_bytes: int, rate: Rate, oldest_s: float, large: list[LargeFile]) -> str:
    """`1,204 uploaded, 3 uploading (big.iso 40%), 2 waiting, 1.2 GiB unsent, 45 MiB/s, 27 s left`."""
    states = ("uploading", "queued", "settling", "waiting", "parked")
    words = [f"{files.uploaded:,} uploaded"]
    counts = [f"{count:,} {state}" for state in states if (count := getattr(files, state))] or ["0 unsent"]
    if large:
        counts[0] += f" ({shown(large[0].path)} {large[0].bytes_uploaded / large[0].bytes:.0%})"
    words += counts
    if files.unsent > files.parked and unsent_bytes:
        words += [f"{size(unsent_bytes)} unsent"]
    if rate.bytes_per_s:
        words += [f"{size(rate.bytes_per_s)}/s"]
        words += [f"{duration(unsent_bytes / rate.bytes_per_s)} left"] if unsent_bytes else []
    words += [f"oldest unsent {duration(oldest_s)}"] if oldest_s else []
    return ", ".join(words)


def backlog(files: Files, unsent_bytes: int) -> str:
    """`43 unsent (1.2 GiB)`."""
    return f"{files.unsent:,} unsent{f' ({size(unsent_bytes)})' if unsent_bytes else ''}"


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
