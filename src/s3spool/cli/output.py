"""Answers on a terminal or in a pipe: for people, every name made printable; for programs, JSON in UTF-8."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

from s3spool.control.protocol import json_line
from s3spool.logs.text import printable, printable_json, shown

_ALWAYS = {"waiting", "parked", "uploaded"}
_KIB = 1024
_BAR = 20  # characters
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def to_json(answer: Any) -> bytes:
    """Indented; UTF-8 whatever the locale says, so that any JSON parser takes it."""
    return printable_json(msgspec.json.format(json_line(answer).rstrip(b"\n"), indent=2).decode()).encode()


def print_status(status: Mapping[str, Any]) -> None:
    """What matters first: does it run, can it send, what is left."""
    destination, watch, files = status["destination"], status["watch"], status["files"]
    process = f" (pid {status['pid']})" if status["pid"] else ""
    since = f" since {status['started']}" if status["started"] else ""
    lines = [("state", f"{status['state']}{process}{since}")]
    if destination["state"] == "paused":
        lines.append(("paused", f"since {destination['since']}: {destination['reason']}"))
    counts = [
        f"{count:,} {name}" for name, count in files.items() if count or name in {"waiting", "parked", "uploaded"}
    ]
    size = status["bytes"]
    moved = f"{_size(size['uploaded'])} uploaded"
    if size["in_flight"]:
        moved += f", {_size(size['in_flight'])} in flight"
    rate = status["rate"]
    endpoint = f" at {destination['endpoint']}" if destination["endpoint"] else ""
    target = f"s3://{destination['bucket']}/{destination['prefix']}{endpoint}"
    lines += [
        ("files", ", ".join(counts)),
        ("bytes", moved),
        ("rate", f"{rate['files_per_s']:,.1f} files/s, {_size(rate['bytes_per_s'])}/s" if status["pid"] else ""),
        *(
            ("large file", f"{_bar(it['bytes_uploaded'], it['bytes'])} {shown(it['path'])}")
            for it in status["large_files"]
        ),
        *(("hanging", f"{shown(path)} (its file system does not answer)") for path in status["hanging"]),
        ("oldest unsent", _duration(status["oldest_unsent_s"]) if status["oldest_unsent_s"] else ""),
        ("last error", printable(status["last_error"] or "")),
        ("folder", shown(watch["directory"]) + (f" ({watch['backend']})" if watch["backend"] else "")),
        ("missed", f"{watch['files_missed']:,} files found by scans only" if watch["files_missed"] else ""),
        ("too deep", _too_deep(watch["too_deep"])),
        ("overflows", f"{watch['overflows']:,}" if watch["overflows"] else ""),
        ("destination", target if destination["bucket"] else ""),
        ("version", status["version"]),
    ]
    for label, text in lines:
        if text:
            click.echo(f"{label:<14} {printable(text)}")


def _too_deep(paths: Sequence[str]) -> str:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"no key has room below {shown(paths[0])}{more}" if paths else ""


def print_rows(rows: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    """A line a row as they come, however many there are."""
    # Bytes, with a buffer: click.echo flushes each line, and a terminal's encoding is not JSON's.
    out = sys.stdout.buffer
    encoding = sys.stdout.encoding or "utf-8"
    for row in rows:
        out.write(
            printable_json(json_line(row).decode()).encode()
            if as_json
            else f"{_row(row)}\n".encode(encoding, "backslashreplace")
        )
    out.flush()


def print_why(answer: Mapping[str, Any]) -> None:
    click.echo(f"{_name(answer)}: {printable(answer['state'])}")
    click.echo(printable(answer["why"]))
    if answer.get("hint"):
        click.echo(f"hint: {printable(answer['hint'])}")


def _row(row: Mapping[str, Any]) -> str:
    size = _size(row["bytes"]) if "bytes" in row else ""
    return f"{printable(row['state']):<9}  {size:>9}  {_name(row)}{printable(_detail(row))}"


def _detail(row: Mapping[str, Any]) -> str:
    if row["state"] == "uploaded":
        return f"  {row['uploaded_at']}  {row['key']}"
    if "bytes_uploaded" in row:
        return f"  {_size(row['bytes_uploaded'])} sent"
    if "error_code" not in row:
        return ""
    again = f"; next try at {row['next_attempt']}" if "next_attempt" in row else ""
    return f"  {row['error_code']}: {row['error']} (attempt {row['attempts']}){again}"


def _name(row: Mapping[str, Any]) -> str:
    from s3spool.ledger.rows import from_text  # noqa: PLC0415 - start-up time

    return shown(from_text(row["path"]))


def _bar(done: float, whole: float) -> str:
    """`[#####...............]  25% of 4.0 GiB`."""
    full = int(_BAR * done / whole)
    return f"[{'#' * full}{'.' * (_BAR - full)}] {done / whole:4.0%} of {_size(whole)}"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIB
    return f"{size:,.1f} TiB"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _DAY_S:.1f} days"
