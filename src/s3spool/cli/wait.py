"""`s3spool wait`: until all files, or the named ones, are in the bucket."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from s3spool.control.protocol import DeniedError
from s3spool.errors import S3SpoolError
from s3spool.logs.text import printable, shown
from s3spool.logs.units import duration, size

if TYPE_CHECKING:
    from typing import Self

    from s3spool.control.client import ControlClient
    from s3spool.control.status import Status

SENT, SOME_PARKED, TIMED_OUT = 0, 3, 4
LOOKS = 2  # a file may be between two components at one look
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_ERASE = "\r\x1b[K"


class _Pauses:
    """Pauses that grow, until the time-out. On a terminal, a line on stderr shows what is waited for."""

    def __init__(self, client: ControlClient, timeout_s: float | None) -> None:
        self._client = client
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._pause_s = _FIRST_PAUSE_S
        self._shows = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shows:
            print(_ERASE, end="", file=sys.stderr, flush=True)  # noqa: T201 - the line must not stay

    def pause(self, files: Sequence[str] = ()) -> bool:
        """False after the time-out."""
        pause_s = self._pause_s
        if self._deadline is not None:
            left_s = self._deadline - time.monotonic()
            if not left_s > 0:  # so that "nan" is no time at all
                return False
            pause_s = min(pause_s, left_s)
        if self._shows:
            self._show(files)
        threading.Event().wait(pause_s)
        self._pause_s = min(self._pause_s * 1.5, _LONGEST_PAUSE_S)
        return True

    def _show(self, files: Sequence[str]) -> None:
        with suppress(S3SpoolError, OSError):
            text = waits_for(self._client.status(), files)
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"{_ERASE}{printable(text)[: width - 1]}", end="", file=sys.stderr, flush=True)  # noqa: T201


def waits_for(status: Status, files: Sequence[str] = ()) -> str:
    """`waiting for 43 files: 3 uploading, 40 queued; 1.2 GiB, 45.1 MiB/s, 27 s left`."""
    counts, rate = status.files, status.rate.bytes_per_s
    left = counts.unsent - counts.parked
    if files:
        text = f"waiting for {shown(files[0])}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
    else:
        text = f"waiting for {left:,} file{'' if left == 1 else 's'}" if left else "waiting for the scan of the folder"
    states = ("uploading", "queued", "settling", "waiting")
    words = [f"{count:,} {state}" for state in states if (count := getattr(counts, state))]
    text += f": {', '.join(words)}" if words and not files else ""
    if status.destination.state == "paused":
        return f"{text}; uploads are paused: {status.destination.reason}"
    if status.bytes.unsent:
        text += f"; {size(status.bytes.unsent)}"
        text += f", {size(rate)}/s, {duration(status.bytes.unsent / rate)} left" if rate else ""
    return text


def wait_for_all(client: ControlClient, timeout_s: float | None) -> int:
    """Exit code once a scan begun now has ended and nothing is left. Raises S3SpoolError; NoDaemonError without one."""
    with _Pauses(client, timeout_s) as pauses:
        asked = client.rescan()
        quiet_looks = 0
        while True:
            progress = client.progress()
            if not progress["folder_there"] or progress["pid"] != asked["pid"]:
                # A scan of nothing proves nothing, nor do the figures of another daemon: look again.
                quiet_looks = 0
                asked = client.rescan()
            elif progress["left"] or progress["scan"] < asked["scan"]:
                quiet_looks = 0
            else:
                quiet_looks += 1
            if quiet_looks == LOOKS:
                return SOME_PARKED if progress["parked"] else SENT
            if not pauses.pause():
                return TIMED_OUT


def wait_for_files(client: ControlClient, files: Sequence[str], timeout_s: float | None) -> int:
    """Exit code once each of these is uploaded or parked. Raises S3SpoolError for a file that is never sent."""
    parked = False
    pending = dict.fromkeys(files, 0)  # for each, how many looks in a row found nothing to wait for
    asked = False
    with _Pauses(client, timeout_s) as pauses:
        while True:
            for file in list(pending):
                answer = client.why(file)
                state = answer["state"]
                if state in {"uploaded", "parked"}:
                    parked |= state == "parked"
                    del pending[file]
                elif state in {"unknown", "excluded"}:
                    pending[file] += 1  # it may have been sent and removed between two questions
                    if pending[file] == LOOKS:
                        raise S3SpoolError(f"{shown(file)}: there is nothing to wait for: {answer['why']}")
                else:
                    pending[file] = 0
            if not pending:
                return SOME_PARKED if parked else SENT
            if any(looks == 0 for looks in pending.values()):
                # Raises NoDaemonError without a daemon: nothing would ever be sent.
                with suppress(DeniedError):  # the daemon runs, and its own scans find the files, too
                    client.progress() if asked else client.rescan()
                asked = True
            if not pauses.pause([*pending]):
                return TIMED_OUT
