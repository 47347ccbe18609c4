"""Whatever the trouble, a good file goes through in seconds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from contention.scenarios import SCENARIOS, Scenario
from contention.stage import stage
from support.arrivals import slowest_arrival_s

QUICK_SCALE = 0.1
FILES, EACH_S = 8, 2.5
QUICK_FILES, QUICK_EACH_S, QUICK_LIMIT_S = 3, 0.5, 30.0
WAIT_S = 60.0  # for the slowest, so that the table can tell


def marked(scenario: Scenario) -> object:
    marks = [pytest.mark.integration] if scenario.quick else [pytest.mark.contention]
    return pytest.param(scenario, id=scenario.name.replace(" ", "-"), marks=marks)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", [marked(scenario) for scenario in SCENARIOS])
def test_a_good_file_goes_through(
    scenario: Scenario,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """See docs/contention.md for what came of it in whole."""
    scale = float(os.environ.get("CONTENTION_SCALE", "0"))
    size = max(min(scenario.least, scenario.size), round(scenario.size * (scale or QUICK_SCALE)))
    files, each_s = (FILES, EACH_S) if scale else (QUICK_FILES, QUICK_EACH_S)
    limit_s = scenario.limit_s if scale else QUICK_LIMIT_S
    with stage(tmp_path, size, scenario.sections) as it:
        scenario.make(it)
        slowest_s = slowest_arrival_s(
            it.daemon, it.server, files, each_s=each_s, timeout_s=WAIT_S, meanwhile=it.meanwhile
        )
        wrong = it.check()
        alive = it.daemon.alive
        row = {
            "number": SCENARIOS.index(scenario),
            "name": scenario.name,
            "size": f"{size:,}",
            "slowest": "not in time" if math.isinf(slowest_s) else f"{slowest_s:.2f}",
            "limit": f"{limit_s:g}",
            "memory": f"{it.peak_mib()}" if alive else "",
            "result": "passed" if slowest_s < limit_s and alive and not wrong else f"**failed** {wrong}".strip(),
        }
        record_property("contention", row)
        assert alive
        assert slowest_s < limit_s
        assert not wrong
