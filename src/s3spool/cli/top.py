"""The picture of `s3spool top`, from the daemon's answers; nothing here asks or waits."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from s3spool.control.views import STATES
from s3spool.ledger.rows import from_text
from s3spool.logs.text import printable, shown
from s3spool.logs.units import bar, duration, size

AGES = ("<5 min", "<1 h", "<1 day", "older")
KEPT_S = 300.0
LATENCY_S = 60.0  # percentiles are of the uploads of the last minute
_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


class Sample(NamedTuple):
    """Counters at one moment."""

    at: float  # monotonic seconds
    files: int
    size: int
    counts: Sequence[int]


class History:
    """The counters of the last minutes."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, answer: Mapping[str, Any], at: float | None = None) -> None:
        status = answer["status"]
        sample = Sample(
            time.monotonic() if at is None else at,
            status["files"]["uploaded"],
            status["bytes"]["uploaded"],
            answer["upload_s"]["counts"],
        )
        if self._samples and sample.files < self._samples[-1].files:
            self._samples.clear()  # the daemon was restarted
        self._samples.append(sample)
        while sample.at - self._samples[0].at > KEPT_S:
            self._samples.popleft()

    def rates(self) -> list[tuple[float, float]]:
        """(files, bytes) per second between each two answers."""
        found = []
        for before, after in zip(self._samples, list(self._samples)[1:], strict=False):
            elapsed_s = max(0.001, after.at - before.at)
            found.append(((after.files - before.files) / elapsed_s, (after.size - before.size) / elapsed_s))
        return found

    def percentiles(self, bounds: Sequence[float]) -> list[str]:
        """50, 95 and 99 % of the uploads of the last minute took no longer."""
        last = self._samples[-1]
        first = next(sample for sample in self._samples if last.at - sample.at <= LATENCY_S)
        counts = [after - before for before, after in zip(first.counts, last.counts, strict=True)]
        if not sum(counts):
            return []
        return [_percentile(counts, bounds, share) for share in (0.5, 0.95, 0.99)]


def view(answer: Mapping[str, Any], history: History, trouble: str, width: int, height: int) -> RenderableType:
    """All that fits into `height` lines."""
    status = answer["status"]
    lines: list[RenderableType] = [*_head(status, trouble, width), *_rates(answer, history, width)]
    room = height - len(lines) - 1
    uploading, errors, shape = answer["uploading"], answer["errors"], answer["shape"]
    few = max(2, room // 3)
    lines += _uploading(uploading, min(few, max(1, len(uploading))))
    room -= min(few, len(uploading)) + 1
    if errors:
        few = max(2, min(room // 2, len(errors) + 1))
        lines += [_title("Waiting and parked by error"), *_errors(errors, few - 1)]
        room -= few
    if shape and room > 2:  # noqa: PLR2004 - title, head and a row
        lines += [_shape(shape[: room - 2], width)]
    return Group(*lines[: height - 1])


def _head(status: Mapping[str, Any], trouble: str, width: int) -> list[RenderableType]:
    destination, files = status["destination"], status["files"]
    paused = destination["state"] == "paused"
    state = Text.assemble(
        (f" {status['state']} ", "black on red" if paused else "black on green"),
        f" oldest unsent {duration(status['oldest_unsent_s'])} " if status["oldest_unsent_s"] else "",
        (" q: quit ", "dim"),
        f" s3://{destination['bucket']}/{destination['prefix']}",
    )
    lines = [state]
    if trouble:
        lines.append(Text(f"no answer: {printable(trouble)}", style="red"))
    if paused:
        lines.append(Text(f"paused since {destination['since']}: {printable(destination['reason'])}", style="red"))
    counts = [f"{files[name]:,} {name}" for name in STATES]
    rows = [counts] if len("  ".join(counts)) <= width else [counts[:3], counts[3:]]
    lines += [Text("  ".join(row), style="bold") for row in rows]
    return [_cut(line) for line in lines]


def _rates(answer: Mapping[str, Any], history: History, width: int) -> list[RenderableType]:
    rates = history.rates()
    files, sent = rates[-1] if rates else (0.0, 0.0)
    rate = f"rate    {files:8,.1f} files/s  {size(sent):>10}/s  "
    plot = _spark([it[0] for it in rates], width - len(rate) - 1)
    percentiles = history.percentiles(answer["upload_s"]["bounds"])
    latency = "  ".join(f"{name} {value}" for name, value in zip(("50 %", "95 %", "99 %"), percentiles, strict=False))
    return [_cut(Text(rate + plot)), _cut(Text(f"upload  {latency or 'none in the last minute'}"))]


def _uploading(rows: Sequence[Mapping[str, Any]], room: int) -> list[RenderableType]:
    lines: list[RenderableType] = [_title("In flight")]
    large_first = sorted(rows, key=lambda row: "bytes" not in row)
    for row in large_first[:room]:
        progress = ""
        if row.get("bytes"):
            progress = f"{bar(row['bytes_uploaded'], row['bytes'])} "
        lines.append(_cut(Text(f"{progress}{_name(row['path'])}")))
    return lines


def _errors(rows: Sequence[Mapping[str, Any]], room: int) -> list[RenderableType]:
    return [
        _cut(Text(f"{row['files']:>10,} {row['state']:<8} {printable(row['error_code'])}", style="yellow"))
        for row in rows[:room]
    ]


def _shape(rows: Sequence[Mapping[str, Any]], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), title=None, header_style="bold", expand=False)
    table.add_column("Backlog by directory", no_wrap=True, overflow="ellipsis", max_width=max(10, width - 56))
    for name in ("queued", *AGES):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(_name(row["segment"]) if row["segment"] else "(folder)"), f"{row['queued']:,}",
                      *(f"{count:,}" for count in row["ages"]))  # fmt: skip
    return table


def _percentile(counts: Sequence[int], bounds: Sequence[float], share: float) -> str:
    wanted, seen = share * sum(counts), 0
    for count, bound in zip(counts, bounds, strict=False):
        seen += count
        if seen >= wanted:
            return f"<= {bound * 1000:.0f} ms" if bound < 1 else f"<= {duration(bound)}"
    return f"> {duration(bounds[-1])}"


def _spark(values: Sequence[float], width: int) -> str:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    blocks = _BLOCKS if encoding == "utf8" else _ASCII_BLOCKS
    shown_values = values[-max(1, width) :]
    top = max(shown_values, default=0.0)
    return "".join(blocks[round((len(blocks) - 1) * value / top)] if top else blocks[0] for value in shown_values)


def _name(path: str) -> str:
    return shown(from_text(path))


def _title(text: str) -> Text:
    return Text(text, style="bold")


def _cut(line: Text) -> Text:
    line.no_wrap = True
    line.overflow = "ellipsis"
    return line
