"""A copy of the checkout, with an interpreter of its own that imports the package from there.

A daemon that a test starts is mutated as well, and the checkout stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mutation.mutate import Mutant
from mutation.plugin import CHOSEN, DURATIONS
from mutation.recording import combine

REPOSITORY = Path(__file__).parents[2]
APART = ("system", "chaos", "compat", "contention", "cluster", "mutation", "end_to_end")
PATIENCE, LEAST_S = 3, 20  # a test may take so many times as long as without the mutant, and LEAST_S
IMPORT_COVERAGE = (
    "import os; exec('if os.getenv(\"COVERAGE_PROCESS_START\"): import coverage as c; c.process_startup()')"
)


class Checkout:
    def __init__(self, root: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns(".venv", ".git", ".*_cache", "results", "tmp")
        shutil.copytree(REPOSITORY, root, ignore=ignored, symlinks=True)
        venv.create(root / ".venv", symlinks=True)
        packages = sysconfig.get_path("purelib", vars={"base": str(root / ".venv")})
        ours = sysconfig.get_path("purelib")
        # The source first; then what is installed, without the checkout that it leads to.
        Path(packages, "mutation.pth").write_text(f"{root / 'src'}\n{ours}\n{IMPORT_COVERAGE}\n")

    def record(self, directory: Path, processes: int) -> None:
        """Run the tests without a mutant; `Recording` reads the directory."""
        recorded, settings = self.root / "recorded", self.root / "coverage.ini"
        recorded.mkdir()
        settings.write_text(
            f"[run]\nparallel = true\ndata_file = {recorded / 'data'}\nsource = {self.root / 'src'}\n"
            "context = ${PYTEST_CURRENT_TEST-}\n"  # the lines of a daemon belong to the test that started it
        )
        environment = {"COVERAGE_PROCESS_START": str(settings), DURATIONS: str(recorded / "durations")}
        arguments = ["--numprocesses", str(processes), "--dist", "worksteal"]
        self._pytest([*arguments, *(f"--ignore=tests/{name}" for name in APART)], environment, limit_s=7200)
        combine(recorded)
        shutil.copytree(recorded, directory)

    def try_out(self, module: Path, mutant: Mutant, tests: Sequence[tuple[str, float]]) -> str:
        """How the tests killed it, or ""."""
        limits_s = {test: PATIENCE * seconds + LEAST_S for test, seconds in tests}
        chosen = self.root / "chosen"
        chosen.write_text(json.dumps(limits_s))
        files = dict.fromkeys(test.split("::")[0] for test in limits_s)
        with self._mutated(module, mutant):
            status, output = self._pytest(["-x", *files], {CHOSEN: str(chosen)}, limit_s=sum(limits_s.values()) + 60)
        if status in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            return ""
        told = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
        failed = set(told.findall(output)) & limits_s.keys()
        return failed.pop() if failed else (output.strip().splitlines() or ["no end"])[-1][:200]

    @contextlib.contextmanager
    def _mutated(self, module: Path, mutant: Mutant) -> Iterator[None]:
        place = self.root / module
        source = place.read_bytes()
        place.write_bytes(mutant.apply(source))
        try:
            yield
        finally:
            place.write_bytes(source)

    def _pytest(self, arguments: list[str], environment: dict[str, str], limit_s: float) -> tuple[int, str]:
        """Its exit status, and what it printed."""
        command = [str(self.root / ".venv/bin/python"), "-m", "pytest", "-q", "-p", "mutation.plugin"]
        command += ["-p", "no:randomly", "-p", "no:cacheprovider", "-W", "ignore::ResourceWarning"]
        output = self.root / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=self.root,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "tests"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # servers and daemons that a test which was cut short has left
        return process.wait(), output.read_text(errors="replace")
