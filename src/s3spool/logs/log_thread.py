"""structlog with a log thread: a log call puts the raw event on a queue, and never blocks.

The thread `log` makes values plain, masks secrets, renders, and writes many lines with one write(). If a stalled
reader fills the queue, lines are counted instead of kept, and one `log.dropped` says how many.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TextIO

import structlog

from s3spool.logs import excepthooks, journal
from s3spool.logs.events import EVENTS
from s3spool.logs.line_limit import LineLimit
from s3spool.logs.render import to_console, to_json, to_prefixed_json
from s3spool.logs.sinks import Entry, JournalSink, Sink, StreamSink, TerminalSink
from s3spool.logs.text import plain, plain_fields

QUEUE_LINES = 10_000
BATCH_LINES = 500
# Lines that follow each other share one write() and one wake-up of the log thread, which would otherwise compete with
# the workers for the GIL.
LINGER_S = 0.01

SUMMARY_S = 1.0  # how often the line on a terminal is drawn anew

_RESERVED = ("timestamp", "level", "event")

# Loggers are cached and keep the list and the class of their first use, so both stay the same objects for
# ever: `configure` replaces the list's content, `set_level` the class's base.
_processors: list[Any] = []
_Logger: Any = type("_Logger", (structlog.make_filtering_bound_logger("info"),), {})
_log = structlog.get_logger()


def configure(
    format: str,  # noqa: A002 - the name of the setting
    level: str,
    stream: TextIO | None = None,
) -> LogWriter:
    """Start the log thread and send every structlog event, and other libraries' warnings, through it.

    `format` is one of auto, console, json and journal; `stream` is stderr unless given.
    """
    stream = sys.stderr if stream is None else stream
    if format == "auto":
        format = _suitable(stream)  # noqa: A001 - the same
    sink: Sink
    fallback = ""
    if format == "journal":
        send, fallback = journal.native_send()
        sink = JournalSink(send) if send else StreamSink(to_prefixed_json, stream)
    elif format == "console":
        colours = stream.isatty() and not os.environ.get("NO_COLOR")
        render = functools.partial(to_console, colours=colours)
        controllable = stream.isatty() and os.environ.get("TERM") != "dumb"
        sink = TerminalSink(render, stream, colours=colours) if controllable else StreamSink(render, stream)
    else:
        sink = StreamSink(to_json, stream)

    writer = LogWriter(sink, format=format, fallback=fallback)
    writer.set_level(level)
    _processors[:] = [writer]
    structlog.configure(
        processors=_processors,
        wrapper_class=_Logger,
        context_class=dict,
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    logging.getLogger().addHandler(_bridge)
    excepthooks.tell()
    return writer


class LogWriter:
    """The queue, the thread behind it, the structlog processor in front of it. Methods are thread-safe."""

    def __init__(self, sink: Sink, *, format: str = "json", fallback: str = "") -> None:  # noqa: A002 - as above
        self.format = format  #: the format that `auto` has chosen
        self.fallback = fallback  #: why journal entries go as JSON lines to the stream, "" where they do not
        self._sink = sink
        self._queue: SimpleQueue[Entry | threading.Event | None] = SimpleQueue()
        self._limit = LineLimit()
        self._closed = False
        self._dropped = 0
        self._reported = 0  # only the log thread touches this
        self._counting = threading.Lock()  # held for one addition only
        # A daemon thread: one that hangs in write() must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a process that dies of an exception still says its last lines

    @property
    def dropped(self) -> int:
        """Lines lost since the start."""
        return self._dropped

    def __call__(self, _logger: object, level: str, fields: dict[str, Any]) -> NoReturn:
        """Take an event off the calling thread; the end of structlog's chain."""
        if level == "warning" and not self._limit.admits(fields.get("event", ""), fields, time.monotonic()):
            raise structlog.DropEvent
        time_ns = time.time_ns()
        exc_info = fields.pop("exc_info", None)
        if exc_info:
            # As text, at once: a queued traceback would hold frames, and they descriptors and buffers.
            fields["exception"] = _traceback(exc_info)
        if self._closed or self._queue.qsize() >= QUEUE_LINES:
            self._lost(1)
        else:
            self._queue.put(Entry(time_ns, level, fields.pop("event", ""), fields))
        raise structlog.DropEvent

    def set_level(self, level: str) -> None:
        """Change the least level that is logged; loggers in use follow at once."""
        _Logger.__bases__ = (structlog.make_filtering_bound_logger(level),)

    def show_summary(self, summary: Callable[[], str]) -> bool:
        """Keep one line up to date below the others; False if there is no terminal for it.

        The log thread calls `summary` with each batch of lines and each second.
        """
        if isinstance(self._sink, TerminalSink):
            self._sink.summary = summary
            self._queue.put(threading.Event())
            return True
        return False

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was logged before is written; False if that took too long, or after `close`."""
        written = threading.Event()
        self._queue.put(written)
        return self._thread.is_alive() and written.wait(timeout_s)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Write what is queued and end the thread; False if a stalled reader kept it from that.

        May be called again. What is logged afterwards counts as dropped.
        """
        atexit.unregister(self.close)
        logging.getLogger().removeHandler(_bridge)
        excepthooks.tell_no_more()
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._step():
            pass
        if isinstance(self._sink, TerminalSink):
            with contextlib.suppress(OSError):
                self._sink.end()

    def _step(self) -> bool:
        """Write one batch, however long it takes to come; False after the last."""
        timeout_s = self._limit.next_s(time.monotonic())
        if isinstance(self._sink, TerminalSink) and self._sink.summary is not None:
            timeout_s = SUMMARY_S if timeout_s is None else min(SUMMARY_S, timeout_s)
        try:
            # Without a time-out while nothing is logged: an idle service has no wake-ups.
            items = [self._queue.get(timeout=timeout_s)]
        except Empty:
            items = []
        if self._queue.qsize() < BATCH_LINES:
            time.sleep(LINGER_S)
        while len(items) < BATCH_LINES and not self._queue.empty():
            items.append(self._queue.get())
        entries = [_tidy(item) for item in items if isinstance(item, Entry)]
        if self.format == "console":
            entries = [entry for entry in entries if not _found_nothing(entry)]
        summaries = self._limit.summaries(time.monotonic() if None not in items else float("inf"))
        entries += [Entry(time.time_ns(), "warning", "log.summarized", fields) for fields in summaries]
        self._write(entries)
        for item in items:
            if isinstance(item, threading.Event):
                item.set()
        return None not in items

    def _write(self, entries: list[Entry]) -> None:
        dropped = self._dropped
        report = Entry(time.time_ns(), "warning", "log.dropped", {"lines": dropped - self._reported})
        try:
            self._sink.write([*entries, report] if dropped > self._reported else entries)
        except (OSError, ValueError):  # no reader, disk full; ValueError: closed
            self._lost(len(entries))
        else:
            self._reported = dropped

    def _lost(self, lines: int) -> None:
        with self._counting:
            self._dropped += lines


class _Bridge(logging.Handler):
    """Passes on warnings of libraries that use the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - placeholders and arguments of a foreign call may not match
            text = str(record.msg)
        say = _log.error if record.levelno >= logging.ERROR else _log.warning
        say("library.warning", logger=record.name, message=text, exc_info=record.exc_info)


_bridge = _Bridge(logging.WARNING)


def _suitable(stream: TextIO) -> str:
    if journal.is_stream(stream, os.environ):
        return "journal"
    return "console" if stream.isatty() else "json"


def _found_nothing(entry: Entry) -> bool:
    """Whether the entry is of the first scan, and a person need not read it."""
    return entry.event == "scan.finished" and entry.level == "info" and entry.fields.get("offered") == 0


def _tidy(entry: Entry) -> Entry:
    time_ns, level, event, fields = entry
    try:
        fields = plain_fields(fields)
        for name in _RESERVED:
            if name in fields:
                fields[f"{name}_"] = fields.pop(name)
        return Entry(time_ns, level, event if event in EVENTS else str(plain(event)), fields)
    except Exception as exc:  # noqa: BLE001 - whatever was logged, the log thread must live on
        return Entry(time_ns, level, "log.dropped", {"lines": 1, "error": type(exc).__name__})


def _traceback(exc_info: object) -> str:
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    elif not isinstance(exc_info, BaseException):
        exc_info = sys.exc_info()[1]
    if not isinstance(exc_info, BaseException):
        return ""  # exc_info=True outside of an except block
    return "".join(traceback.format_exception(exc_info)).rstrip()
