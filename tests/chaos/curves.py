"""A soak's result as small curves above the periods with faults: plain SVG, in the style of the benchmarks' bars."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from benchmarks.plot import STYLE

from chaos.soak_result import Faults, SoakResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH, LEFT, RIGHT = 760, 60, 16
LEGEND_HEIGHT, TITLE_HEIGHT, HEIGHT, GAP, AXIS_HEIGHT = 34, 26, 84, 12, 44
STEP = TITLE_HEIGHT + HEIGHT + GAP
VALUE_TICKS, TIME_TICKS = 3, 7  # at most, above zero
CURVES = {
    "rss_mib": "resident memory (RSS), MiB",
    "descriptors": "open descriptors",
    "threads": "threads",
    "waiting": "files not yet seen to arrive",
}
FAULTS = {
    Faults.SOME: "1-20 % of requests meet a fault",
    Faults.ALL: "all requests meet a fault",
    Faults.UNREACHABLE: "server unreachable",
}
CURVE_STYLE = """.curve { fill: none; stroke: #1a7f64; stroke-width: 1.5; }
.axis { stroke: #6e7781; }
.grid { stroke: #d0d7de; }
.some, .all, .unreachable { shape-rendering: crispEdges; }
.some { fill: #fdf0c0; }
.all { fill: #ffc59b; }
.unreachable { fill: #d5c2f7; }
@media (prefers-color-scheme: dark) {
  .curve { stroke: #56d4a5; }
  .axis { stroke: #8b949e; }
  .grid { stroke: #30363d; }
  .some { fill: #3a2f0c; }
  .all { fill: #6e3611; }
  .unreachable { fill: #432c78; }
}
"""


def svg(result: SoakResult) -> str:
    """Time goes to the right; each axis begins at zero, so that what is flat looks flat."""
    bottom = LEGEND_HEIGHT + len(CURVES) * STEP - GAP
    longest = max(result.samples[-1].minute, 0.1)
    scale = (WIDTH - RIGHT - LEFT) / longest
    curves = [
        line
        for number, (name, title) in enumerate(CURVES.items())
        for line in _curve(result, name, title, LEGEND_HEIGHT + number * STEP, scale)
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + AXIS_HEIGHT}" role="img">',
        f"<title>A soak of {longest:.0f} minutes</title>\n<style>{STYLE}{CURVE_STYLE}</style>",
        *_legend(),
        *curves,
        *_time_axis(bottom, longest, scale),
        "</svg>\n",
    ]
    return "\n".join(lines)


def ticks(highest: float, count: int) -> list[float]:
    """Round numbers from zero to the first one that is not below `highest`."""
    step = next(
        factor * 10**power for power in range(-2, 12) for factor in (1, 2, 5) if factor * 10**power * count >= highest
    )
    return [step * number for number in range(max(1, math.ceil(highest / step)) + 1)]


def _legend() -> Iterator[str]:
    x = LEFT
    for faults, label in FAULTS.items():
        yield f'<rect class="{faults}" x="{x}" y="8" width="18" height="14"/>'
        yield f'<text x="{x + 24}" y="20">{escape(label)}</text>'
        x += 50 + 7 * len(label)


def _curve(result: SoakResult, name: str, title: str, top: int, scale: float) -> Iterator[str]:
    values: Sequence[float] = [getattr(sample, name) for sample in result.samples]
    marks = ticks(max(*values, 1), VALUE_TICKS)
    ceiling = top + TITLE_HEIGHT

    def y(value: float) -> float:
        return ceiling + HEIGHT * (1 - value / marks[-1])

    yield f'<text class="title" x="{LEFT}" y="{top + 18}">{escape(title)}</text>'
    for period in result.fault_periods:
        if period.faults is Faults.NONE:
            continue
        x, width = LEFT + period.begin * scale, (period.end - period.begin) * scale
        yield f'<rect class="{period.faults}" x="{x:.1f}" y="{ceiling}" width="{width:.1f}" height="{HEIGHT}"/>'
    for mark in marks:
        style = "grid" if mark else "axis"
        yield f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y(mark) + 4:.1f}" text-anchor="end">{mark:,g}</text>'
    points = " ".join(
        f"{LEFT + sample.minute * scale:.1f},{y(value):.1f}"
        for sample, value in zip(result.samples, values, strict=True)
    )
    yield f'<polyline class="curve" points="{points}"/>'


def _time_axis(bottom: int, longest: float, scale: float) -> Iterator[str]:
    for mark in ticks(longest, TIME_TICKS):
        if mark <= longest:
            yield f'<text x="{LEFT + mark * scale:.1f}" y="{bottom + 18}" text-anchor="middle">{mark:g}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 36}" text-anchor="middle">minutes</text>'
