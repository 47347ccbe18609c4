"""Log events as native journal entries, so that `journalctl S3SPOOL_PATH=...` finds a file's whole story."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import msgspec

from s3spool.logs.events import EVENTS, message
from s3spool.logs.text import legible, shown

IDENTIFIER = "s3spool"
PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}  # syslog(3)
SOCKET = Path("/run/systemd/journal/socket")
_NAME_BYTES = 64  # journald drops a field with a longer name

Send = Callable[..., None]


def is_stream(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether systemd has connected `stream` to the journal, and nobody redirected it (systemd.exec(5))."""
    try:
        there = os.fstat(stream.fileno())
    except (OSError, ValueError):  # ValueError: a closed file; io.UnsupportedOperation is both
        return False
    return environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


def native_send() -> tuple[Send | None, str]:
    """systemd-python's sendv, or None and the reason.

    Without a journald, libsystemd reports success and the entry is gone, hence the look at the socket.
    """
    if not SOCKET.exists():
        return None, f"no journald listens at {SOCKET}"
    try:
        from systemd.journal import sendv  # noqa: PLC0415 - an extra: most installations have no need of it
    except ImportError:
        return None, "systemd-python is not installed (the extra s3spool[systemd], Debian: python3-systemd)"
    return sendv, ""


def fields(timestamp: str, level: str, event: str, values: Mapping[str, Any]) -> Sequence[bytes]:
    """The entry for sendv; on the wire a value has its length, so a newline cannot forge the next field."""
    sentence, _ = message(event, values)
    entry = {
        "MESSAGE": sentence or shown(event),
        "PRIORITY": str(PRIORITY.get(level, 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "S3SPOOL_EVENT": event,
        "S3SPOOL_TIMESTAMP": timestamp,
    }
    if event in EVENTS and EVENTS[event].message_id:
        entry["MESSAGE_ID"] = EVENTS[event].message_id
    for name, value in values.items():
        text = value if isinstance(value, str) else msgspec.json.encode(legible(value)).decode()
        entry.setdefault(_field_name(name), text)
    return [f"{name}={legible(text)}".encode() for name, text in entry.items()]


@lru_cache(maxsize=1024)
def _field_name(name: str) -> str:
    return "S3SPOOL_" + re.sub("[^A-Z0-9_]", "_", name.upper())[: _NAME_BYTES - len("S3SPOOL_")]
