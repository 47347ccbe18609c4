"""A plugin of pytest: notes which test executes which lines and for how long, or runs given tests in a given order."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from coverage import Coverage

CHOSEN = "MUTATION_CHOSEN"  # the file with the limit of each test to run, in seconds
DURATIONS = "MUTATION_DURATIONS"  # the file for the duration of each test that passed
_durations_s: defaultdict[str, float] = defaultdict(float)
_not_passed: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHOSEN not in os.environ:
        return
    limits_s: dict[str, float] = json.loads(Path(os.environ[CHOSEN]).read_text())
    order = {test: number for number, test in enumerate(limits_s)}
    items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
    for item in items:
        item.add_marker(pytest.mark.timeout(limits_s[item.nodeid]), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if coverage := Coverage.current():
        coverage.switch_context(item.nodeid)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _durations_s[report.nodeid] += report.duration
    if not report.passed:
        _not_passed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if coverage := Coverage.current():
        coverage.stop()
        coverage.save()
    if DURATIONS in os.environ and not hasattr(session.config, "workerinput"):
        passed = {test: seconds for test, seconds in _durations_s.items() if test not in _not_passed}
        Path(os.environ[DURATIONS]).write_text(json.dumps(passed))
