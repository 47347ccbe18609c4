"""The results as bars: plain SVG, written by hand."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from benchmarks.report import name, set_of_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.results import Measured, Results
    from benchmarks.rows import Row

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 760, 150, 130
BAR_HEIGHT, BAR_STEP = 18, 24
TITLE_HEIGHT, GROUP_GAP = 32, 16
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.peer { fill: #afb8c1; }
.ours { fill: #1a7f64; }
.ceiling { stroke: #cf222e; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .peer { fill: #57606a; }
  .ours { fill: #3fb991; }
  .ceiling { stroke: #ff7b72; }
}
"""


def svg(results: Results) -> str:
    """A group of bars for each row; the dashed line is the ceiling."""
    top, groups = 0, list[str]()
    for row in results.rows:
        bars = [one for one in results.of(row) if one.rounds and one.client != "raw"]
        if bars:
            groups += [f'<g transform="translate(0 {top})">', *_group(row, bars), "</g>"]
            top += TITLE_HEIGHT + len(bars) * BAR_STEP + GROUP_GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">',
        f"<title>Files and MiB per second, by client</title>\n<style>{STYLE}</style>",
        *groups,
        "</svg>\n",
    ]
    return "\n".join(lines)


def _group(row: Row, bars: list[Measured]) -> Iterator[str]:
    ceiling = bars[0].ceiling_files_per_s or 0.0
    speeds = [bar.mib_per_s if row.large else bar.files_per_s for bar in bars]
    pixels_per_unit = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / max([ceiling, *speeds])
    title = f"{row.title}, MiB/s" if row.large else f"{set_of_files(row)}, files/s: {row.title}"
    yield f'<text class="title" y="20">{escape(title)}</text>'
    for number, (bar, speed) in enumerate(zip(bars, speeds, strict=True)):
        y, length = TITLE_HEIGHT + number * BAR_STEP, speed * pixels_per_unit
        style = "ours" if bar.client == "s3spool" else "peer"
        share = f" ({bar.of_ceiling:.0%})" if bar.of_ceiling else ""
        yield f'<rect class="{style}" x="{LABEL_WIDTH}" y="{y}" width="{length:.0f}" height="{BAR_HEIGHT}"/>'
        yield f'<text x="{LABEL_WIDTH - 8}" y="{y + 14}" text-anchor="end">{escape(name(bar.client))}</text>'
        # Beyond the ceiling's line, so that it never crosses a figure.
        right = LABEL_WIDTH + max(length, ceiling * pixels_per_unit) + 8
        yield f'<text x="{right:.0f}" y="{y + 14}">{speed:,.0f}{share}</text>'
    if ceiling:
        x, bottom = LABEL_WIDTH + ceiling * pixels_per_unit, TITLE_HEIGHT + len(bars) * BAR_STEP
        yield f'<line class="ceiling" x1="{x:.0f}" x2="{x:.0f}" y1="{TITLE_HEIGHT - 4}" y2="{bottom}"/>'
        yield f'<text x="{x:.0f}" y="20" text-anchor="middle">ceiling {ceiling:,.0f}</text>'
