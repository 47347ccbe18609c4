"""Which tests execute which lines, and how long each test takes."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from coverage import CoverageData


class Recording:
    """Reads what `combine` has written into this directory."""

    def __init__(self, directory: Path) -> None:
        self._durations_s: dict[str, float] = json.loads((directory / "durations").read_text())
        self._data = CoverageData(str(directory / "executed"))
        self._data.read()
        self._files = {file[file.index("/src/s3spool/") + 1 :]: file for file in self._data.measured_files()}

    def covering(self, module: Path, lines: tuple[int, int]) -> list[tuple[str, float]]:
        """The tests of these lines, quickest first; the whole module's where an import executes one of them."""
        executed = self._executed(str(module))
        names = {name for line in range(lines[0], lines[1] + 1) for name in executed.get(line, ())}
        if "" in names:
            names = {name for each in executed.values() for name in each}
        passed = [(name, self._durations_s[name]) for name in names if name in self._durations_s]
        return sorted(passed, key=lambda test: (test[1], test[0]))

    @functools.cache  # noqa: B019 - there is one recording, as long as the program
    def _executed(self, module: str) -> dict[int, set[str]]:
        """The tests per line; "" stands for an import."""
        found = self._data.contexts_by_lineno(self._files.get(module, ""))
        return {line: {re.sub(r" \(\w+\)$", "", name) for name in names} for line, names in found.items()}


def combine(directory: Path) -> None:
    """Make one file of those that the processes of the tests and their daemons have written."""
    data = CoverageData(str(directory / "executed"))
    for file in directory.glob("data.*"):
        part = CoverageData(str(file))
        part.read()
        data.update(part)
        file.unlink()
    data.write()
