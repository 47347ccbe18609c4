"""One cause cannot flood the log, and nothing that matters is left out."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import structlog

from s3spool.logs import log_thread as logs
from s3spool.logs.line_limit import CAUSES, LINES, PERIOD_S, LineLimit

DENIED = {"error_code": "PermissionError"}


def test_a_cause_writes_so_many_lines_a_minute() -> None:
    """All others are counted, and told of once, when the minute is over."""
    limit = LineLimit()

    admitted = [limit.admits("file.failed", DENIED, 0.001 * number) for number in range(20_000)]

    assert admitted == [True] * LINES + [False] * (20_000 - LINES)
    assert limit.next_s(20.0) == PERIOD_S - 20.0
    assert limit.summaries(PERIOD_S - 1) == []
    expected = [{"summarized": "file.failed", "error_code": "PermissionError", "lines": 20_000 - LINES}]
    assert limit.summaries(PERIOD_S) == expected
    assert limit.summaries(PERIOD_S) == []
    assert limit.next_s(PERIOD_S) is None
    assert limit.admits("file.failed", DENIED, PERIOD_S + 1)


def test_the_count_is_not_lost_when_nothing_follows() -> None:
    """A line after the minute, but before the summary, counts to the old minute."""
    limit = LineLimit()
    for _ in range(LINES + 1):
        limit.admits("file.failed", DENIED, 0.0)

    assert not limit.admits("file.failed", DENIED, PERIOD_S + 1)

    assert [it["lines"] for it in limit.summaries(PERIOD_S + 1)] == [2]


def test_each_cause_has_lines_of_its_own() -> None:
    """A flood of one must not hide another."""
    limit = LineLimit()
    for _ in range(2 * LINES):
        limit.admits("file.failed", DENIED, 0.0)

    assert limit.admits("file.failed", {"error_code": "SlowDown"}, 0.0)
    assert limit.admits("file.failed", {}, 0.0)


@pytest.mark.parametrize("event", ["file.uploaded", "file.parked", "worker.replaced"])
def test_other_events_are_never_limited(event: str) -> None:
    """Each of their lines is evidence."""
    limit = LineLimit()
    assert all(limit.admits(event, DENIED, 0.0) for _ in range(10 * LINES))


def test_codes_without_end_take_no_memory_without_end() -> None:
    """A server may think of a new one for each answer."""
    limit = LineLimit()
    for number in range(10 * CAUSES):
        limit.admits("file.failed", {"error_code": str(number)}, 0.001 * number)

    assert len(limit._lines) <= CAUSES + 1


def test_the_writer_says_how_many() -> None:
    """At its end at the latest."""
    stream = io.StringIO()
    writer = logs.configure("json", "info", stream)
    log: Any = structlog.get_logger()

    for number in range(1000):
        log.warning("file.failed", path=f"{number}", **DENIED)
        log.error("file.parked", path=f"{number}", **DENIED)
        log.info("file.uploaded", path=f"{number}")
    assert writer.close(10)

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    counts = {name: sum(line["event"] == name for line in lines) for name in ("file.parked", "file.uploaded")}
    assert counts == {"file.parked": 1000, "file.uploaded": 1000}
    assert sum(line["event"] == "file.failed" for line in lines) == LINES
    assert [line["lines"] for line in lines if line["event"] == "log.summarized"] == [1000 - LINES]
