"""The table of what came of the scenarios."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

_KEY = "contention"
_HEAD = """\
# Crowds and contention: test evidence

Written by `make test-contention`: {when}, {machine}, sizes x {scale:g}. In each scenario a good file is dropped each
{each_s:g} s; *slowest*: how long the slowest of them took to be at S3.

scenario|size|slowest, s|limit, s|peak RSS, MiB|result
---|---|---|---|---|---
"""


_rows: list[dict[str, Any]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Anew after each row: a run that is interrupted leaves what it has found."""
    row = dict(report.user_properties).get(_KEY)
    path = os.environ.get("CONTENTION_TABLE")
    if report.when != "call" or not isinstance(row, dict) or not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    _rows.append(row)
    scale = float(os.environ["CONTENTION_SCALE"])
    when, machine = datetime.now(UTC).strftime("%Y-%m-%d"), f"{platform.machine()}, Linux {platform.release()}"
    cells = ("name", "size", "slowest", "limit", "memory", "result")
    lines = ["|".join(str(row[cell]) for cell in cells) for row in sorted(_rows, key=lambda row: row["number"])]
    Path(path).write_text(_HEAD.format(when=when, machine=machine, scale=scale, each_s=2.5) + "\n".join(lines) + "\n")
