"""Answers on a terminal or in a pipe: printable names and headers for people, JSON in UTF-8 for programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import click
import msgspec

from s3spool.control.protocol import json_line
from s3spool.control.status import LargeFile, Node, Status
from s3spool.ledger.rows import from_text
from s3spool.logs.text import printable, printable_json, shown
from s3spool.logs.units import bar, duration, size

_ALWAYS = {"waiting", "parked", "uploaded"}  # states that `status` shows even if their count is 0
_LONGEST_DETAIL = 1000  # characters, in a pipe
_LEAST_DETAIL = 24  # characters, on a narrow terminal
_HEADER = f"{'STATE':<9}  {'SIZE':>9}  {'AGE':>8}  FILE"


def to_json(answer: Any) -> bytes:
    """Indented; in UTF-8 for each locale, so that any JSON parser takes it."""
    return printable_json(msgspec.json.format(json_line(answer).rstrip(b"\n"), indent=2).decode()).encode()


def print_status(status: Status) -> None:
    """The important lines first: does it run, can it send, what is left."""
    destination, watch = status.destination, status.watch
    process = f" (pid {status.pid})" if status.pid else ""
    since = f" since {status.started}" if status.started else ""
    counts = [
        f"{count:,} {name}"
        for name, count in msgspec.structs.asdict(status.files).items()
        if (count or name in _ALWAYS) and name != "unsent"
    ]
    moved = f"{size(status.bytes.uploaded)} uploaded"
    moved += f", {size(status.bytes.in_flight)} in flight" if status.bytes.in_flight else ""
    moved += f", {size(status.bytes.unsent)} unsent" if status.bytes.unsent else ""
    endpoint = f" at {destination.endpoint}" if destination.endpoint else ""
    target = f"s3://{destination.bucket}/{destination.prefix}{endpoint}"
    rate = f"{status.rate.files_per_s:,.1f} files/s, {size(status.rate.bytes_per_s)}/s"
    if status.rate.bytes_per_s and status.bytes.unsent:
        rate += f", {duration(status.bytes.unsent / status.rate.bytes_per_s)} left"
    paused = f"since {destination.since}: {destination.reason}" if destination.state == "paused" else ""
    lines = [
        ("state", f"{status.state}{process}{since}"),
        ("paused", paused),
        ("files", ", ".join(counts)),
        ("bytes", moved),
        ("rate", rate if status.pid else ""),
        *(("large file", f"{progress(file)} {shown(file.path)}") for file in status.large_files),
        *(("hanging", f"{shown(path)} (its file system does not answer)") for path in status.hanging),
        *(("node", _node(node)) for node in status.nodes),
        ("oldest unsent", duration(status.oldest_unsent_s) if status.oldest_unsent_s else ""),
        ("last error", status.last_error or ""),
        ("folder", shown(watch.directory) + (f" ({watch.backend})" if watch.backend else "")),
        ("missed", f"{watch.files_missed:,} files found by scans only" if watch.files_missed else ""),
        ("too deep", _too_deep(watch.too_deep)),
        ("overflows", f"{watch.overflows:,}" if watch.overflows else ""),
        ("destination", target if destination.bucket else ""),
        ("version", status.version),
    ]
    for label, text in lines:
        if text:
            click.echo(f"{label:<14} {printable(text)}")


def _node(node: Node) -> str:
    where = f"{node.name}{' (this one)' if node.this else ''}"
    return f"{where}: {node.in_flight:,} in flight, {node.files_per_minute:,.0f} files/minute"


def print_nodes(nodes: Sequence[Node]) -> None:
    width = max([4, *(len(printable(node.name)) for node in nodes)])
    click.echo(f"{'NODE':<{width}}  IN FLIGHT  FILES/MIN  LEASE LEFT  SINCE")
    for node in nodes:
        figures = f"{node.in_flight:>9,}  {node.files_per_minute:>9,.0f}  {node.lease_left_s:>8.1f} s"
        where = f"{node.started} on {node.host}, s3spool {node.version}"
        click.echo(f"{printable(node.name):<{width}}  {figures}  {printable(where)}")


def progress(file: LargeFile) -> str:
    """`[#####...............]  25% of 4.0 GiB, 45.1 MiB/s, 3 min left`."""
    text = bar(file.bytes_uploaded, file.bytes)
    if file.bytes_per_s and file.left_s is not None:
        text += f", {size(file.bytes_per_s)}/s, {duration(file.left_s)} left"
    return text


def _too_deep(paths: Sequence[str]) -> str:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"no key has room below {shown(paths[0])}{more}" if paths else ""


def print_rows(rows: Iterable[Mapping[str, Any]], *, as_json: bool, limit: int | None) -> None:
    """A line per row as they come, however many there are; on a terminal a header, and lines of its width."""
    # Bytes, with a buffer: click.echo flushes each line, and a terminal's encoding is not JSON's.
    out = sys.stdout.buffer
    encoding = sys.stdout.encoding or "utf-8"
    on_terminal = sys.stdout.isatty() and not as_json
    width = shutil.get_terminal_size().columns if on_terminal else 0
    rows = iter(rows)
    first = list(islice(rows, 1))
    if on_terminal and first:
        out.write(f"{_HEADER}\n".encode())
    for row in islice(chain(first, rows), limit):
        out.write(
            printable_json(json_line(row).decode()).encode()
            if as_json
            else f"{_row(row, width)}\n".encode(encoding, "backslashreplace")
        )
    out.flush()
    if on_terminal and not first:
        click.echo("no file is in such a state", err=True)
    elif on_terminal and limit is not None and next(rows, None) is not None:
        click.echo(f"... and more: only {limit} are shown (--limit)", err=True)


def print_why(answer: Mapping[str, Any]) -> None:
    click.echo(f"{_name(answer)}: {printable(answer['state'])}")
    click.echo(printable(answer["why"]))
    if answer.get("hint"):
        click.echo(f"hint: {printable(answer['hint'])}")


def _row(row: Mapping[str, Any], width: int) -> str:
    """With `width`, the detail is cut there."""
    length = size(row["bytes"]) if "bytes" in row else ""
    age = duration(row["age_s"]) if "age_s" in row else ""
    text = f"{printable(row['state']):<9}  {length:>9}  {age:>8}  {_name(row)}"
    detail = printable(_detail(row, on_terminal=bool(width)))
    if not detail:
        return text
    room = max(_LEAST_DETAIL, width - len(text) - 2) if width else _LONGEST_DETAIL
    return f"{text}  {detail if len(detail) <= room else detail[: room - 3] + '...'}"


def _detail(row: Mapping[str, Any], *, on_terminal: bool) -> str:
    if row["state"] == "uploaded":
        return f"to {row['key']}" if on_terminal else f"{row['uploaded_at']}  {row['key']}"
    if "bytes_uploaded" in row:
        file = msgspec.convert(row, LargeFile)
        speed = f", {size(file.bytes_per_s)}/s, {duration(file.left_s)} left" if file.left_s is not None else ""
        return f"{file.bytes_uploaded / file.bytes:.0%}{speed}"
    if "node" in row:
        return f"on {row['node']}"
    if "error_code" not in row:
        return ""
    again = f", next try at {row['next_attempt']}" if "next_attempt" in row and not on_terminal else ""
    return f"{row['error_code']} (attempt {row['attempts']}{again}): {row['error']}"


def _name(row: Mapping[str, Any]) -> str:

    return shown(from_text(row["path"]))
