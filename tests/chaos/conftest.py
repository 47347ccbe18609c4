"""The seed ahead of the run, the figures after it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from chaos.figures import NO_SUMS, seed

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.figures import Figures

_KEY = "chaos"


@pytest.fixture(scope="session")
def chaos_seed() -> int:
    return seed()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[Figures], None]:
    """Hand the test's figures to the summary."""
    return lambda figures: record_property(_KEY, figures.as_dict())


def pytest_report_header() -> str:
    return f"CHAOS_SEED={seed()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    columns = {
        test.nodeid.rpartition("::")[2]: dict(test.user_properties)[_KEY]
        for outcome in ("passed", "failed")
        for test in terminalreporter.getreports(outcome)
        if _KEY in dict(test.user_properties)
    }
    if not columns:
        return
    totals: defaultdict[str, int] = defaultdict(int)
    for figures in columns.values():
        for name, value in figures.items():
            totals[name] = max(totals[name], value) if name in NO_SUMS else totals[name] + value
    terminalreporter.section("chaos")
    for name, total in totals.items():
        apart = "  ".join(f"{figures.get(name, 0):>8,}" for figures in columns.values())
        terminalreporter.write_line(f"{name:<55} {total:>9,} : {apart}")
    terminalreporter.write_line(f"CHAOS_SEED={seed()}; in this order: {', '.join(columns)}")
