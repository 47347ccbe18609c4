"""Sample mutants, run the tests that cover each, list the survivors: `PYTHONPATH=tests python -m mutation`.

The mutants live in a copy of the checkout, with an interpreter of its own that imports the package from there: a daemon
that a test starts is mutated as well, and the checkout stays as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mutation.mutate import Mutant, mutants

REPOSITORY = Path(__file__).parents[2]
SOURCE = Path("src/s3spool")
PACKAGES = ("discovery", "upload", "queue", "ledger", "s3")
END_TO_END = Path("tests/end_to_end")
APART = {"end_to_end", "system", "chaos", "compat", "contention"}
TEST_S = 60  # of one test
PATIENCE = 3  # a file of tests may take so many times as long as without the mutant, and TEST_S


class Sample(NamedTuple):
    """A module, relative to the checkout, and one of its mutants."""

    module: Path
    mutant: Mutant

    def __str__(self) -> str:
        return f"{self.module}:{self.mutant.line}"

    def diff(self, root: Path) -> str:
        source = (root / self.module).read_bytes()
        before, after = source.decode(), self.mutant.apply(source).decode()
        lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))
        return "\n".join(f"    {line}" for line in lines[3:])


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="s3spool-mutants-") as directory:
        copy = Copy(Path(directory) / "checkout")
        samples = _sample(copy.root, options, random.Random(seed))
        survivors = []
        for number, sample in enumerate(samples, 1):
            started_s = time.monotonic()
            verdict = copy.try_out(sample, end_to_end=options.end_to_end)
            told = f"{number}/{len(samples)} {sample}: {verdict}, {time.monotonic() - started_s:.0f} s"
            print(f"{told}\n{sample.diff(REPOSITORY)}", flush=True)
            if verdict == "survived":
                survivors.append(sample)
    print(f"\nseed {seed}: {len(samples)} mutants, {len(samples) - len(survivors)} killed, {len(survivors)} survived")
    for sample in survivors:
        print(f"{sample}\n{sample.diff(REPOSITORY)}")
    return 1 if survivors else 0


class Copy:
    """The checkout's copy, and the time that its tests take unchanged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns(".venv", ".git", ".*_cache", "__pycache__", "results")
        shutil.copytree(REPOSITORY, root, ignore=ignored, symlinks=True)
        venv.create(root / ".venv", symlinks=True)
        self._python = root / ".venv/bin/python"
        packages = sysconfig.get_path("purelib", vars={"base": str(root / ".venv")})
        ours = sysconfig.get_path("purelib")
        # The source first; then what is installed, without the checkout that it leads to.
        Path(packages, "mutation.pth").write_text(f"{root / 'src'}\n{ours}\n")

    def try_out(self, sample: Sample, *, end_to_end: bool) -> str:
        """How it was killed, or "survived"."""
        tests = self._tests_of(sample.module)
        if end_to_end:
            tests += sorted((self.root / END_TO_END).glob("test_*.py"))
        for test in tests:
            unchanged_s = self._unchanged_s(test)
            if unchanged_s is None:
                continue
            limit_s = PATIENCE * unchanged_s + TEST_S
            with self._mutated(sample):
                verdict = self._run(test, limit_s)
            if verdict:
                return verdict
        return "survived"

    @contextlib.contextmanager
    def _mutated(self, sample: Sample) -> Iterator[None]:
        place = self.root / sample.module
        source = place.read_bytes()
        place.write_bytes(sample.mutant.apply(source))
        try:
            yield
        finally:
            place.write_bytes(source)

    @functools.cache  # noqa: B019 - there is one copy, as long as the program
    def _unchanged_s(self, test: Path) -> float | None:
        """Seconds that a file of tests takes without a mutant; None where it fails even so, and proves nothing."""
        started_s = time.monotonic()
        if verdict := self._run(test, 3600):
            print(f"{test.relative_to(self.root)} is left out: {verdict} without a mutant", flush=True)
            return None
        return time.monotonic() - started_s

    def _tests_of(self, module: Path) -> list[Path]:
        """The tests of its package, those that name the module first; then others that name it."""
        package = module.parent.name
        named = re.compile(rf"s3spool\.{package}(\.{module.stem}\b| import .*\b{module.stem}\b)")

        def rank(test: Path) -> tuple[bool, bool, Path]:
            return test.parent.name != package, not named.search(test.read_text()), test

        tests = [test for test in (self.root / "tests").rglob("test_*.py") if test.parent.name not in APART]
        return sorted((test for test in tests if not all(rank(test)[:2])), key=rank)

    def _run(self, test: Path, limit_s: float) -> str:
        """ "" if all pass, else the test that failed first."""
        command = [str(self._python), "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
        command += [f"--timeout={TEST_S}", "-W", "ignore::ResourceWarning", str(test)]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                return f"killed: no end within {limit_s:.0f} s"
            finally:
                _end_group(process.pid)
        if process.returncode == 0:
            return ""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        return f"killed by {failed[1]}" if failed else f"killed: {output.strip().splitlines()[-1][:200]}"


def _end_group(group: int) -> None:
    """Servers and daemons that a test which was cut short has left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _sample(root: Path, options: argparse.Namespace, rng: random.Random) -> list[Sample]:
    modules = sorted(
        path.relative_to(root) for name in options.packages for path in (root / SOURCE / name).glob("*.py")
    )
    every = [
        Sample(module, mutant)
        for module in modules
        for mutant in mutants((root / module).read_bytes())
        if not options.only or str(module).endswith(options.only)
    ]
    chosen = rng.sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants in {len(modules)} modules", flush=True)
    return sorted(chosen)  # the tests of a module are timed once


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=400, help="of mutants (default: %(default)s)")
    add("--seed", type=int, help="the same mutants again (default: another one each time)")
    add("--packages", nargs="+", default=PACKAGES, choices=PACKAGES, help="where (default: all)")
    add("--only", default="", metavar="MODULE", help="of modules whose path ends so")
    add("--end-to-end", action="store_true", help="what survives meets tests/end_to_end as well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
