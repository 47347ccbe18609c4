"""Growth as two curves: time and memory over the number of files, both axes logarithmic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.scale import Grown

WIDTH, HEIGHT, MARGIN, GAP = 340, 240, 46, 40
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.grid { stroke: #d0d7de; }
.flat { stroke: #1a7f64; fill: #1a7f64; }
.spread { stroke: #bc4c00; fill: #bc4c00; }
polyline { fill: none !important; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .grid { stroke: #30363d; }
}
"""


def svg(grown: Sequence[Grown]) -> str:
    """Left: seconds until all is sent, and of the scan at the next start. Right: the most memory of the two runs."""
    left = chart(grown, "seconds until all is sent", lambda one: one.all_s)
    middle = chart(grown, "seconds of the scan at the next start", lambda one: one.scan_s)
    right = chart(grown, "RSS at most, MiB", lambda one: max(one.peak_mib, one.again_mib))
    step = WIDTH + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * step} {HEIGHT + 2 * MARGIN}" role="img">',
        f"<title>Growth with the number of files</title>\n<style>{STYLE}</style>",
    ]
    for number, lines_of in enumerate((left, middle, right)):
        lines += [f'<g transform="translate({number * step} 0)">', *lines_of, "</g>"]
    return "\n".join([*lines, "</svg>\n"])


def chart(grown: Sequence[Grown], title: str, value: Callable[[Grown], float]) -> Iterator[str]:
    """One panel; a straight line with a slope of one decade a decade is linear growth, a level one none."""
    if not grown:
        return
    files = [math.log10(one.files) for one in grown]
    low, high = math.floor(min(files)), math.ceil(max(files))
    values = [math.log10(value(one)) for one in grown]
    bottom, top = math.floor(min(values)), max(math.ceil(max(values)), math.floor(min(values)) + 1)

    def x(decade: float) -> float:
        return MARGIN + (decade - low) / max(1, high - low) * (WIDTH - MARGIN)

    def y(decade: float) -> float:
        return MARGIN + HEIGHT - (decade - bottom) / (top - bottom) * HEIGHT

    yield f'<text class="title" x="{MARGIN}" y="20">{title}</text>'
    for decade in range(low, high + 1):
        yield f'<line class="grid" x1="{x(decade):.0f}" x2="{x(decade):.0f}" y1="{MARGIN}" y2="{MARGIN + HEIGHT}"/>'
        yield f'<text x="{x(decade):.0f}" y="{MARGIN + HEIGHT + 18}" text-anchor="middle">{10**decade:,}</text>'
    for decade in range(bottom, top + 1):
        yield f'<line class="grid" x1="{MARGIN}" x2="{WIDTH}" y1="{y(decade):.0f}" y2="{y(decade):.0f}"/>'
        yield f'<text x="{MARGIN - 6}" y="{y(decade) + 4:.0f}" text-anchor="end">{10.0**decade:,g}</text>'
    for number, (name, spread) in enumerate((("flat", False), ("in directories", True))):
        style = "spread" if spread else "flat"
        points = [
            (x(math.log10(one.files)), y(math.log10(value(one)))) for one in grown if bool(one.directories) is spread
        ]
        if points:
            corners = " ".join(f"{across:.0f},{down:.0f}" for across, down in points)
            yield f'<polyline class="{style}" points="{corners}"/>'
            yield from (f'<circle class="{style}" cx="{across:.0f}" cy="{down:.0f}" r="3"/>' for across, down in points)
            yield f'<text class="{style}" stroke="none" x="{MARGIN + 8 + 50 * number}" y="{MARGIN - 8}">{name}</text>'
