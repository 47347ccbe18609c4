"""A soak's course as small curves: plain SVG, in the style of the benchmarks' bars."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from benchmarks.plot import STYLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chaos.soak import Course

WIDTH, LEFT, RIGHT = 760, 60, 16
TITLE_HEIGHT, HEIGHT, GAP = 26, 70, 26
CURVES = {
    "rss_mib": "RSS, MiB",
    "descriptors": "open descriptors",
    "threads": "threads",
    "waiting": "files not yet seen to arrive",
}
CURVE_STYLE = """.curve { fill: none; stroke: #1a7f64; stroke-width: 1.5; }
.axis { stroke: #afb8c1; }
@media (prefers-color-scheme: dark) { .curve { stroke: #3fb991; } .axis { stroke: #6e7681; } }
"""


def svg(course: Course) -> str:
    """Time goes to the right; each axis begins at zero, so that what is flat looks flat."""
    step = TITLE_HEIGHT + HEIGHT + GAP
    height = len(CURVES) * step
    minutes = [sample.minute for sample in course.samples]
    groups = [
        line
        for number, (name, title) in enumerate(CURVES.items())
        for line in _curve(number * step, title, minutes, [getattr(sample, name) for sample in course.samples])
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(f'A soak of {minutes[-1]:.0f} minutes')}</title>\n<style>{STYLE}{CURVE_STYLE}</style>",
        *groups,
        "</svg>\n",
    ]
    return "\n".join(lines)


def _curve(top: int, title: str, minutes: Sequence[float], values: Sequence[float]) -> Iterator[str]:
    highest, longest = max(*values, 1), max(*minutes, 0.1)
    floor = top + TITLE_HEIGHT + HEIGHT
    right = WIDTH - RIGHT
    points = " ".join(
        f"{LEFT + minute / longest * (right - LEFT):.1f},{floor - value / highest * HEIGHT:.1f}"
        for minute, value in zip(minutes, values, strict=True)
    )
    yield f'<text class="title" x="{LEFT}" y="{top + 16}">{escape(title)}</text>'
    yield f'<text x="{LEFT - 8}" y="{floor - HEIGHT + 5}" text-anchor="end">{highest:,.0f}</text>'
    yield f'<text x="{LEFT - 8}" y="{floor + 4}" text-anchor="end">0</text>'
    yield f'<text x="{LEFT}" y="{floor + 18}">0 min</text>'
    yield f'<text x="{right}" y="{floor + 18}" text-anchor="end">{longest:.0f} min</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>'
    yield f'<polyline class="curve" points="{points}"/>'
