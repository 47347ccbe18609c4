"""Figures: medians over the rounds, and the facts of the machine they were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import proc
from benchmarks.clients import Usage

if TYPE_CHECKING:
    from benchmarks.rows import Row

REPOSITORY = Path(__file__).parents[1]
MIB = 2**20


@dataclass(kw_only=True)
class Measured:
    """One client in one row."""

    row: str
    client: str
    files: int
    size_bytes: int
    ceiling_files_per_s: float | None = None
    rounds: list[Usage] = field(default_factory=list)
    connections: int | None = None  # opened to the sink in the last round
    problem: str = ""

    @property
    def files_per_s(self) -> float:
        return self.files / median(usage.wall_s for usage in self.rounds)

    @property
    def mib_per_s(self) -> float:
        return self.files_per_s * self.size_bytes / MIB

    @property
    def of_ceiling(self) -> float | None:
        return self.files_per_s / self.ceiling_files_per_s if self.ceiling_files_per_s else None

    @property
    def cpu_s(self) -> float:
        return median(usage.cpu_s for usage in self.rounds)

    @property
    def cpu_ms_per_file(self) -> float:
        return self.cpu_s / self.files * 1e3

    @property
    def cpu_s_per_gib(self) -> float:
        return self.cpu_s / (self.files * self.size_bytes / 2**30)

    @property
    def peak_rss_mib(self) -> float:
        return max(usage.peak_rss_bytes for usage in self.rounds) / MIB

    @property
    def switches_per_file(self) -> float:
        return median(usage.voluntary_switches for usage in self.rounds) / self.files

    def as_json(self) -> dict[str, Any]:
        if not self.rounds:
            return asdict(self)
        names = ("files_per_s", "mib_per_s", "of_ceiling", "cpu_ms_per_file", "cpu_s_per_gib", "peak_rss_mib")
        medians = {name: getattr(self, name) for name in (*names, "switches_per_file")}
        return asdict(self) | {"median": medians}


@dataclass(kw_only=True)
class Results:
    """One run of the whole."""

    machine: dict[str, Any]
    rows: list[Row]
    rounds: int = 0
    measured: list[Measured] = field(default_factory=list)
    quiet: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, row: Row) -> list[Measured]:
        return [one for one in self.measured if one.row == row.name]

    def ratio(self, one: Measured, to: str = "s5cmd") -> float | None:
        """How many times as fast as the client `to` in the same row; None where that has no figure."""
        for other in self.measured:
            if other.row == one.row and other.client == to and other.rounds and one.rounds:
                return one.mib_per_s / other.mib_per_s
        return None

    def keep_earlier(self, earlier: dict[str, Any], rows: tuple[Row, ...]) -> None:
        """Take in what another run of the same commit has measured, and this one has not."""
        if earlier["machine"]["commit"] != self.machine["commit"]:
            return
        mine = {row.name for row in self.rows}
        for told in earlier["rows"]:
            if told["row"] not in mine:
                known = {name: told[name] for name in Measured.__dataclass_fields__}
                rounds = [Usage(**usage) for usage in known.pop("rounds")]
                self.measured.append(Measured(**known, rounds=rounds))
        theirs = {one.row for one in self.measured}
        scaled = {one.row: (one.files, one.size_bytes) for one in reversed(self.measured) if one.rounds}
        kept = [
            row.scaled(files=scaled[row.name][0], size_bytes=scaled[row.name][1])
            for row in rows
            if row.name in theirs - mine and row.name in scaled
        ]
        order = [row.name for row in rows]
        self.rows = sorted([*self.rows, *kept], key=lambda row: order.index(row.name))
        self.quiet = earlier["daemon"] | self.quiet

    def as_json(self) -> dict[str, Any]:
        rows = [one.as_json() | {"ratio_to_s5cmd": self.ratio(one)} for one in self.measured]
        return {"machine": self.machine, "rounds": self.rounds, "rows": rows, "daemon": self.quiet}


def machine(versions: dict[str, str], *, memory: Path, disk: Path) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "cores": os.cpu_count(),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "files_on": proc.filesystem(memory),
        "state_on": proc.filesystem(disk),
        "versions": versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
