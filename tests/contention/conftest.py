"""The table of what came of the scenarios."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_KEY = "contention"
_HEAD = """\
# Crowds and contention: test evidence

Written by `make test-contention`: {when}, {machine}, sizes x {scale:g}. In each scenario a good file is dropped each
{each_s:g} s; the column *slowest* says how long the slowest of them took to be at S3.

| scenario | size | slowest good file | limit | peak RSS | result |
|---|---|---|---|---|---|
"""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [
        dict(report.user_properties)[_KEY]
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call" and _KEY in dict(report.user_properties)
    ]
    path = os.environ.get("CONTENTION_TABLE")
    if not path or not rows:
        return
    scale = float(os.environ["CONTENTION_SCALE"])
    when, machine = datetime.now(UTC).strftime("%Y-%m-%d"), f"{platform.machine()}, Linux {platform.release()}"
    cells = ("name", "size", "slowest", "limit", "memory", "result")
    lines = [
        f"| {' | '.join(str(row[cell]) for cell in cells)} |" for row in sorted(rows, key=lambda row: row["number"])
    ]
    Path(path).write_text(_HEAD.format(when=when, machine=machine, scale=scale, each_s=2.5) + "\n".join(lines) + "\n")
