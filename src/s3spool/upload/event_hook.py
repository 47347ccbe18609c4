"""`after.exec`: a command for each batch of events, with JSON lines on its stdin."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from typing import Any

import msgspec
import structlog

from s3spool.failure.breaker import CircuitBreaker
from s3spool.ledger.rows import Pause, Receipt, Retry, to_text
from s3spool.logs.text import legible

BATCH_S = 1.0  # events of so long go to one command
BATCH_EVENTS = 1000
MAX_WAITING = 10_000  # events; later ones are dropped and counted while the command is slow
TIMEOUT_S = 60.0  # of a command; then its whole process group is killed
CLOSE_S = 5.0
_LOG_BYTES = 500  # of its output
log = structlog.get_logger()


class EventHook:
    """One thread runs one command at a time. The other methods never block, and do nothing without a command."""

    def __init__(self, command: str, bucket: str, breaker: CircuitBreaker, *, timeout_s: float = TIMEOUT_S) -> None:
        self._arguments = shlex.split(command)
        self._bucket = bucket
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._events: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._paused = False  # only the breaker's callback touches it
        self._thread = threading.Thread(target=self._run, name="exec", daemon=True)
        if self._arguments:
            breaker.on_change(self._breaker_changed)

    def start(self) -> None:
        if self._arguments:
            self._thread.start()

    def close(self) -> None:
        """Send what waits, for CLOSE_S at most; a command that still runs then is killed."""
        self._closing.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S + 1)

    def uploaded(self, receipt: Receipt) -> None:
        if self._arguments:
            self._add(
                "file.uploaded",
                path=to_text(receipt.path),
                bucket=self._bucket,
                key=receipt.key,
                bytes=receipt.identity.size,
                etag=receipt.etag,
                checksum=receipt.checksum,
                version_id=receipt.version_id,
            )

    def parked(self, retry: Retry) -> None:
        if self._arguments:
            self._add(
                "file.parked",
                path=to_text(retry.path),
                attempt=retry.attempts,
                error_code=retry.error_code,
                error=retry.error,
                hint=retry.hint,
            )

    def paused(self, pause: Pause) -> None:
        if self._arguments:
            self._add("uploads.paused", reason=pause.reason)

    def _breaker_changed(self) -> None:
        reason, was_paused = self._breaker.reason, self._paused
        self._paused = self._breaker.open
        if self._paused and not was_paused and reason is not None:
            self._add("destination.paused", error_code=reason.code, error=reason.cause, hint=reason.hint)

    def _add(self, event: str, **fields: Any) -> None:
        if len(self._events) >= MAX_WAITING:
            self._dropped += 1
            return
        self._events.append({"event": event, "time": time.time(), **fields})
        self._changed.set()

    # Below this line everything runs on the hook's thread.

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._events):
            self._changed.wait()
            self._closing.wait(BATCH_S)
            self._changed.clear()
            while batch := self._batch():
                self._call(batch)
                if self._closing.is_set():
                    return  # one command, whatever still waits: the daemon is stopping

    def _batch(self) -> list[dict[str, Any]]:
        batch: list[dict[str, Any]] = []
        while self._events and len(batch) < BATCH_EVENTS:
            batch.append(self._events.popleft())
        dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("exec.failed", error=f"{dropped} events are lost: the command is too slow")
        return batch

    def _call(self, batch: list[dict[str, Any]]) -> None:
        """Never raises."""
        try:
            with tempfile.TemporaryFile() as lines, tempfile.TemporaryFile() as output:
                # Files, not pipes: a command that does not read cannot block this thread.
                lines.writelines(msgspec.json.encode(legible(event)) + b"\n" for event in batch)
                lines.seek(0)
                code = self._wait(lines, output)
                if code:
                    output.seek(max(0, output.seek(0, os.SEEK_END) - _LOG_BYTES))
                    told = output.read(_LOG_BYTES).decode(errors="replace").strip()
                    log.warning("exec.failed", events=len(batch), error=f"{code}{f': {told}' if told else ''}")
        except OSError as exc:
            log.warning("exec.failed", events=len(batch), error=f"{self._arguments[0]}: {exc.strerror or exc}")

    def _wait(self, lines: Any, output: Any) -> str:
        """Why it failed; "" where it did not. Raises OSError."""
        process = subprocess.Popen(  # noqa: S603 - the configuration's command, without a shell
            self._arguments, stdin=lines, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                code = process.wait(BATCH_S if not self._closing.is_set() else CLOSE_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline and not self._closing.is_set():
                    continue
                code = None
            # Its children as well: what it left behind must not add up.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if code is None:
                return f"killed after {self._timeout_s:g} s" if not self._closing.is_set() else "killed: s3spool stops"
            return f"exit status {code}" if code else ""
