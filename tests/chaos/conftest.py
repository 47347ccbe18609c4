"""The seed ahead of the run, the figures after it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from chaos.figures import NO_SUMS, seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.figures import Figures

_KEY, _STEPS, _EVERY = "chaos", "chaos steps", "chaos every step"


@pytest.fixture(scope="session")
def chaos_seed() -> int:
    return seed()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Figures], None]:
    """Hand the test's figures to the summary."""

    def hand_over(figures: Figures) -> None:
        record_property(_KEY, figures.as_dict())
        record_property(_STEPS, sorted(figures.kills_at_steps))
        record_property(_EVERY, figures.every_step)

    return hand_over


def pytest_report_header() -> str:
    return f"CHAOS_SEED={seed()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [test for results in ("passed", "failed") for test in terminalreporter.getreports(results)]
    properties = {test.nodeid.rpartition("::")[2]: dict(test.user_properties) for test in reports}
    columns = {name: its[_KEY] for name, its in properties.items() if _KEY in its}
    if not columns:
        return
    totals: defaultdict[str, int] = defaultdict(int)
    for figures in columns.values():
        for name, value in figures.items():
            totals[name] = max(totals[name], value) if name in NO_SUMS else totals[name] + value
    terminalreporter.section("chaos")
    for name, total in totals.items():
        if not total and not name.isupper():
            continue
        apart = "  ".join(f"{figures.get(name, 0):>8,}" for figures in columns.values())
        terminalreporter.write_line(f"{name:<55} {total:>9,} : {apart}")
    died_at = {step for its in properties.values() for step in its.get(_STEPS, [])}
    every = {step for its in properties.values() for step in its.get(_EVERY, [])}
    terminalreporter.write_line(f"named steps: died at {len(every & died_at)} of {len(every)}")
    if every - died_at:
        terminalreporter.write_line(f"not at: {', '.join(sorted(every - died_at))}")
    terminalreporter.write_line(f"CHAOS_SEED={seed()}; in this order: {', '.join(columns)}")
