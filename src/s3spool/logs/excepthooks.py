"""Logs uncaught exceptions and warnings of Python, so that no thread dies unnoticed."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType

import structlog

_log = structlog.get_logger()
_before_main = sys.excepthook
_before_thread = threading.excepthook
_then: list[Callable[[], None]] = []


def tell(then: Callable[[], None] | None = None) -> None:
    """From now on, and call `then` when a thread has died, on that thread. May be called again."""
    global _before_main, _before_thread
    _then[:] = [then] if then is not None else []
    if sys.excepthook is not _main_died:
        _before_main, sys.excepthook = sys.excepthook, _main_died
    if threading.excepthook is not _thread_died:
        _before_thread, threading.excepthook = threading.excepthook, _thread_died
    logging.captureWarnings(capture=True)


def tell_no_more() -> None:
    """Restore the hooks of Python, because the log is closed."""
    if sys.excepthook is _main_died:
        sys.excepthook = _before_main
    if threading.excepthook is _thread_died:
        threading.excepthook = _before_thread
    logging.captureWarnings(capture=False)


def _main_died(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _before_main(kind, error, trace)
    else:
        _say(threading.main_thread().name, kind, error)


def _thread_died(args: threading.ExceptHookArgs) -> None:
    if not issubclass(args.exc_type, SystemExit):
        _say(args.thread.name if args.thread else "?", args.exc_type, args.exc_value)
    for then in _then:
        then()


def _say(thread: str, kind: type[BaseException], error: BaseException | None) -> None:
    _log.error("thread.died", thread=thread, error=f"{kind.__name__}: {error}", exc_info=error or False)
