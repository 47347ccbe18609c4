"""A log entry as a line: JSON for programs, a sentence for people."""

from __future__ import annotations

import time
from functools import lru_cache

import msgspec

from s3spool.logs import journal
from s3spool.logs.events import message, readable
from s3spool.logs.sinks import Entry, timestamp
from s3spool.logs.text import legible, printable, printable_json, shown

# Fields that a terminal does not show.
_ONLY_FOR_PROGRAMS = frozenset((
    "etag", "checksum", "version_id", "upload_id", "pid", "transport", "endpoint", "action", "reason", "duration_s",
    "key", "part_bytes",
))  # fmt: skip
_FIRST = ("attempt", 1)
_COLOURS = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def to_json(entry: Entry) -> str:
    """One JSON object on one line, whatever the values hold and however the reader splits lines."""
    time_ns, level, event, fields = entry
    line = {"timestamp": timestamp(time_ns), "level": level, "event": event, **fields}
    try:
        text = msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        text = msgspec.json.encode(legible(line)).decode()
    # JSON allows U+2028, U+0085 and terminals' C1 codes as they are; line readers and terminals do not.
    return printable_json(text)


def to_console(entry: Entry, *, colours: bool) -> str:
    """A line for people: time, event, sentence, then the fields that the sentence left out, unless they are empty."""
    sentence, used = message(entry.event, entry.fields)
    verb = entry.event.rpartition(".")[2]
    begun = sentence.removeprefix(verb)
    if begun == sentence or begun[:1].isalnum():
        begun = f" {sentence}" if sentence else ""  # else the event has said the first word already
    level = "" if entry.level == "info" else f" [{entry.level}]"
    more = [
        f"{shown(name)}={readable('', value)}"
        for name, value in entry.fields.items()
        if name not in used | _ONLY_FOR_PROGRAMS and _is_news(value) and (name, value) != _FIRST
    ]
    clock, rest = _clock(entry.time_ns // 1_000_000_000), " ".join(more)
    text = f"{printable(entry.event)}{level}{begun}"
    if colours:
        text = f"{_COLOURS[entry.level]}{text}{_PLAIN}" if entry.level in _COLOURS else text
        clock, rest = f"{_DIM}{clock}{_PLAIN}", f"{_DIM}{rest}{_PLAIN}" if rest else ""
    return f"{clock} {text}  {rest}".rstrip()


def to_prefixed_json(entry: Entry) -> str:
    """What journald reads from a stream: the prefix becomes PRIORITY (sd-daemon(3))."""
    return f"<{journal.PRIORITY.get(entry.level, 6)}>{to_json(entry)}"


def _is_news(value: object) -> bool:
    return value is False or (value is not True and value not in (None, "", [], 0))


@lru_cache(maxsize=2)
def _clock(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
