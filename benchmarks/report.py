"""The results for people: tables in the terminal and in docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.results import MIB, Measured

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.results import Results
    from benchmarks.rows import Row

BEGIN = "<!-- figures: begin, written by `python -m benchmarks --update-docs` -->"
END = "<!-- figures: end -->"
NAMES = {"go": "Go program", "aws": "aws cli", "raw": "(bare sockets)"}

BY_CLIENT: dict[str, Callable[[Measured], str]] = {
    "Speed: files/s, of large files MiB/s": lambda one: f"{_speed(one):,.0f}",
    "CPU: ms a file, of large files s/GiB": lambda one: (
        f"{one.cpu_s_per_gib if _large(one) else one.cpu_ms_per_file:.2f}"
    ),
    "Memory at the height: MiB": lambda one: f"{one.peak_rss_mib:.0f}",
    "Connections opened": lambda one: f"{one.connections:,}" if one.connections else "",
}


def _large(one: Measured) -> bool:
    return one.size_bytes >= MIB


def _speed(one: Measured) -> float:
    return one.mib_per_s if _large(one) else one.files_per_s


def name(client: str) -> str:
    return NAMES.get(client, client)


def set_of_files(row: Row) -> str:
    return "Large files" if row.large else f"{row.files:,} x {row.size_bytes / 1024:g} KiB"


def table(results: Results, row: Row) -> str:
    """A Markdown table, aligned so that it reads well in a terminal too."""
    speed, cpu = ("MiB/s", "CPU s/GiB") if row.large else ("files/s", "CPU ms/file")
    header = ["client", speed, "x s5cmd", "of ceiling", cpu, "RSS MiB", "switches/file", "connections"]
    lines = [header, *(_cells(results, row, one) for one in results.of(row))]
    return markdown_table(lines)


def markdown_table(lines: list[list[str]]) -> str:
    """The first line is the header; the first column is text, the others are figures."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (lines[0], rule, *lines[1:]))


def headline(results: Results, row: Row) -> str:
    """One sentence with s3spool's ratios, or why there are none."""
    problems = [f"{name(one.client)}: {one.problem}" for one in results.of(row) if one.problem]
    ours = next((one for one in results.of(row) if one.client == "s3spool" and one.rounds), None)
    if ours is None:
        same = {one.problem for one in results.of(row)}
        return f"not measured: {same.pop()}" if len(same) == 1 else "; ".join(problems)
    ratios = [
        f"{ratio:.2f} x {name(other.client)}"
        for other in results.of(row)
        if other.client not in {"s3spool", "raw"} and (ratio := results.ratio(ours, other.client)) is not None
    ]
    of_ceiling = [f"{ours.of_ceiling:.1%} of the ceiling"] if ours.of_ceiling else []
    alone = f"{ours.files_per_s:,.0f} files/s, {ours.cpu_ms_per_file:.3f} ms CPU a file"
    return "; ".join([f"s3spool: {', '.join([*of_ceiling, *ratios]) or alone}", *problems])


def by_client(results: Results, figure: Callable[[Measured], str]) -> str:
    """One figure: a line per client, a column per row of the benchmark that has the figure."""
    cells = {(one.row, one.client): figure(one) for one in results.measured if one.rounds}
    rows = [row for row in results.rows if any(told and name == row.name for (name, _), told in cells.items())]
    clients = dict.fromkeys(one.client for row in rows for one in results.of(row))
    lines = [[name(client), *(cells.get((row.name, client), "") for row in rows)] for client in clients]
    return markdown_table([["client", *(row.name for row in rows)], *lines])


def quiet(results: Results) -> str:
    """The rows without peers."""
    return "\n".join(
        f"- {row}: {', '.join(f'{_words(figure)} {value:.2f}' for figure, value in figures.items())}"
        for row, figures in results.quiet.items()
    )


def markdown(results: Results) -> str:
    """The part of docs/performance.md between the markers."""
    facts = results.machine
    versions = [told if client in told else f"{client} {told}" for client, told in facts["versions"].items()]
    sentences = (
        f"Measured {facts['when'][:10]} on {facts['cores']} cores ({facts['processor']})",
        f"Linux {facts['kernel']}",
        f"Python {facts['python']}",
        f"commit {facts['commit']}",
        f"files on {facts['files_on']}, state on {facts['state_on']}",
        f"medians of {results.rounds} rounds",
    )
    parts = [f"{'; '.join(sentences)}. {', '.join(versions)}."]
    for title, figure in BY_CLIENT.items():
        parts += [f"### {title}", by_client(results, figure)]
    parts += ["### s3spool beside the others"]
    parts += ["\n".join(f"- {row.name}: {headline(results, row).removeprefix('s3spool: ')}" for row in results.rows)]
    if results.quiet:
        parts += ["### The daemon by itself", quiet(results)]
    return "\n\n".join(part for part in parts if part)


def update_docs(path: Path, results: Results) -> None:
    replace_between(path, BEGIN, END, markdown(results))


def replace_between(path: Path, begin_line: str, end_line: str, text: str) -> None:
    """Raises ValueError where the two lines are missing."""
    before, begin, rest = path.read_text().partition(begin_line)
    _, end, after = rest.partition(end_line)
    if not (begin and end):
        raise ValueError(f"{path}: the lines {begin_line} and {end_line} are missing")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _cells(results: Results, row: Row, one: Measured) -> list[str]:
    if not one.rounds:
        return [name(one.client), "-", *[""] * 6]
    ratio = results.ratio(one)
    return [
        name(one.client),
        f"{one.mib_per_s if row.large else one.files_per_s:,.0f}",
        f"{ratio:.2f}" if ratio else "",
        f"{one.of_ceiling:.1%}" if one.of_ceiling else "",
        f"{one.cpu_s_per_gib if row.large else one.cpu_ms_per_file:.2f}",
        f"{one.peak_rss_mib:.0f}",
        f"{one.switches_per_file:,.1f}",
        f"{one.connections:,}" if one.connections else "",
    ]


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join([first.strip().ljust(widths[0]), *others])} |"


def _words(figure: str) -> str:
    return figure.replace("_per_s", "/s").replace("_percent", " %").replace("_", " ")
