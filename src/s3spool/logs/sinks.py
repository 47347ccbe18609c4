"""Targets of log entries: a stream, a terminal with a line of current figures, the journal."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TextIO

from s3spool.logs import journal
from s3spool.logs.text import printable

SUMMARY_S = 0.25  # counting all files for each batch of lines would cost more than it tells
ERASE = "\r\x1b[K"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Entry(NamedTuple):
    """One event; `fields` are raw on the queue and plain (see text.py) from `_tidy` on."""

    time_ns: int
    level: str
    event: str
    fields: dict[str, Any]


Render = Callable[[Entry], str]


class Sink(Protocol):
    """Only the log thread calls it; OSError means that the batch is lost. May block."""

    def write(self, entries: list[Entry]) -> None: ...


class StreamSink:
    """Lines to a file, pipe or terminal; one write() a batch."""

    def __init__(self, render: Render, stream: TextIO) -> None:
        self._render = render
        self._stream = stream
        self._torn = False  # the last write ended inside a line
        try:
            self._descriptor = stream.fileno()
        except (OSError, ValueError):  # not a real file
            self._descriptor = -1

    def write(self, entries: list[Entry]) -> None:
        self._send(self._lines(entries))

    def _lines(self, entries: list[Entry]) -> str:
        return "".join([self._render(entry) + "\n" for entry in entries])

    def _send(self, text: str) -> None:
        if self._descriptor < 0:
            self._stream.write(text)
            self._stream.flush()
            return
        rest = memoryview((("\n" if self._torn else "") + text).encode())
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made this terminal or pipe non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            self._torn = bool(rest)


class TerminalSink(StreamSink):
    """Log lines, and below them one line that is drawn anew with each batch and each second.

    Only the log thread writes, so the two never mix.
    """

    def __init__(self, render: Render, stream: TextIO, *, colours: bool) -> None:
        super().__init__(render, stream)
        self._colours = colours
        self._drawn = False
        self._text, self._asked_at = "", -SUMMARY_S
        self.summary: Callable[[], str] | None = None  #: called on the log thread

    def write(self, entries: list[Entry]) -> None:
        erase = ERASE if self._drawn else ""
        line = self._line()
        self._drawn = bool(line)
        if entries or line or erase:
            self._send(erase + self._lines(entries) + line)

    def end(self) -> None:
        """Erase the line: other programs write next."""
        self.summary = None
        self.write([])

    def _line(self) -> str:
        if self.summary is None:
            return ""
        now = time.monotonic()
        try:
            if now - self._asked_at >= SUMMARY_S:
                self._text, self._asked_at = printable(self.summary()), now
            # Wrapped, it would not be erased as a whole. Some terminals do not know their width.
            text = self._text[: (os.get_terminal_size(self._descriptor).columns or 80) - 1]
        except Exception:  # noqa: BLE001 - the log continues without this line
            return ""
        return f"{_DIM}{text}{_PLAIN}" if text and self._colours else text


class JournalSink:
    """Native entries to journald."""

    def __init__(self, send: journal.Send) -> None:
        self._send = send

    def write(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._send(*journal.fields(timestamp(entry.time_ns), entry.level, entry.event, entry.fields))


def timestamp(time_ns: int) -> str:
    """RFC 3339 in UTC, with microseconds."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest_ns // 1000:06}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
