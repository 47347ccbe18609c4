"""The tool itself: which mutants a module has, and which tests each meets."""

from __future__ import annotations

import json
from pathlib import Path

from coverage import CoverageData

from mutation.mutate import mutants
from mutation.recording import Recording, combine

SOURCE = b"""\
LIMIT = 8

def full(
    size: int,
) -> bool:
    if (
        size >= LIMIT
        or not size
    ):
        return True
    return False
"""


def test_each_mutant_is_a_module_that_compiles() -> None:
    """One place differs."""
    changed = [mutant.apply(SOURCE).decode() for mutant in mutants(SOURCE)]

    assert len(changed) == len(set(changed)) == 8
    for each in changed:
        compile(each, "module.py", "exec")


def test_a_mutant_knows_its_statement() -> None:
    """Python may report another line of it than that of the mutant; the body of an `if` is another statement."""
    lines = {mutant.line: mutant.lines for mutant in mutants(SOURCE)}

    assert lines == {1: (1, 1), 7: (6, 9), 8: (6, 9), 10: (10, 10), 11: (11, 11)}


def test_the_tests_of_a_line_are_those_that_execute_it(tmp_path: Path) -> None:
    """Quickest first; those of the whole module where an import executes the line."""
    (tmp_path / "durations").write_text(json.dumps({"t.py::quick[a (b)]": 0.1, "t.py::slow": 0.3, "t.py::other": 0.2}))
    executed = {
        "": [1],
        "t.py::slow": [6, 7],
        "t.py::quick[a (b)] (call)": [1, 6],
        "t.py::other": [10],
        "t.py::failed": [6],
    }
    for number, (context, lines) in enumerate(executed.items()):
        data = CoverageData(str(tmp_path / f"data.{number}"))
        data.set_context(context)
        data.add_lines({"/copy/src/s3spool/m.py": lines})
        data.write()
    combine(tmp_path)
    recording = Recording(tmp_path)

    def names(*lines: int, module: str = "src/s3spool/m.py") -> list[str]:
        return [test.removeprefix("t.py::") for test, _ in recording.covering(Path(module), (lines[0], lines[-1]))]

    assert names(6, 9) == ["quick[a (b)]", "slow"]
    assert names(10) == ["other"]
    assert names(1) == ["quick[a (b)]", "other", "slow"]
    assert names(11) == names(1, module="src/s3spool/other.py") == []
