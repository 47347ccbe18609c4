"""`s3spool wait`: until all, or some named files, are in the bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from s3spool.control.protocol import DeniedError
from s3spool.errors import S3SpoolError
from s3spool.logs.text import shown

if TYPE_CHECKING:
    from s3spool.control.client import Desk

SENT, SOME_PARKED, TIMED_OUT = 0, 3, 4
LOOKS = 2  # a file may be between two rooms at one look
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class _Patience:
    """Pauses that grow, until the time is over."""

    def __init__(self, timeout_s: float | None) -> None:
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._pause_s = _FIRST_PAUSE_S

    def pause(self) -> bool:
        """False when the time is over."""
        pause_s = self._pause_s
        if self._deadline is not None:
            left_s = self._deadline - time.monotonic()
            if not left_s > 0:  # so that "nan" is no time at all
                return False
            pause_s = min(pause_s, left_s)
        threading.Event().wait(pause_s)
        self._pause_s = min(self._pause_s * 1.5, _LONGEST_PAUSE_S)
        return True


def wait_for_all(desk: Desk, timeout_s: float | None) -> int:
    """Exit code once a scan begun now has ended and nothing is left. Raises S3SpoolError; NoDaemonError without one."""
    patience = _Patience(timeout_s)
    asked = desk.rescan()
    quiet_looks = 0
    while True:
        progress = desk.progress()
        if not progress["folder_there"] or progress["pid"] != asked["pid"]:
            # A scan of nothing proves nothing, nor do the numbers of another daemon: look again.
            quiet_looks = 0
            asked = desk.rescan()
        elif progress["left"] or progress["scan"] < asked["scan"]:
            quiet_looks = 0
        else:
            quiet_looks += 1
        if quiet_looks == LOOKS:
            return SOME_PARKED if progress["parked"] else SENT
        if not patience.pause():
            return TIMED_OUT


def wait_for_files(desk: Desk, files: Sequence[str], timeout_s: float | None) -> int:
    """Exit code once each of these is uploaded or parked. Raises S3SpoolError for one that never will be."""
    patience = _Patience(timeout_s)
    parked = False
    pending = dict.fromkeys(files, 0)  # to how many looks in a row found nothing to wait for
    asked = False
    while True:
        for file in list(pending):
            answer = desk.why(file)
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
            # Without a daemon this says so, instead of waiting for nothing.
            with suppress(DeniedError):  # the daemon runs, and its own scans find the files, too
                desk.progress() if asked else desk.rescan()
            asked = True
        if not patience.pause():
            return TIMED_OUT
