"""Sample mutants, run the tests that execute each, list the survivors: `PYTHONPATH=tests python -m mutation`."""

from __future__ import annotations

import argparse
import difflib
import os
import queue
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from mutation.checkout import REPOSITORY, Checkout
from mutation.mutate import Mutant, mutants
from mutation.recording import Recording

SOURCE = Path("src/s3spool")
PACKAGES = ("discovery", "upload", "queue", "failure", "s3", "folder", "ledger")
QUICK_S = 1.0
KILLED, SURVIVED, NOT_COVERED = "killed", "survived", "not covered"


class Sample(NamedTuple):
    """A module, relative to the checkout, and one of its mutants."""

    module: Path
    mutant: Mutant

    def __str__(self) -> str:
        source = (REPOSITORY / self.module).read_bytes()
        before, after = source.decode(), self.mutant.apply(source).decode()
        lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))
        return "\n".join([f"{self.module}:{self.mutant.line}", *(f"    {line}" for line in lines[3:])])


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    samples = _sample(options, random.Random(seed))
    with tempfile.TemporaryDirectory(prefix="s3spool-mutants-") as directory:
        checkouts: queue.SimpleQueue[Checkout] = queue.SimpleQueue()
        for number in range(options.processes):
            checkouts.put(Checkout(Path(directory) / str(number)))
        recorded = options.recording or Path(directory) / "recording"
        if not recorded.exists():
            print("recording which test executes which line", flush=True)
            checkout = checkouts.get()
            checkout.record(recorded, options.processes)
            checkouts.put(checkout)
        recording = Recording(recorded)
        with ThreadPoolExecutor(options.processes) as pool:
            verdicts = list(pool.map(lambda sample: _verdict(sample, recording, checkouts, options.most_s), samples))
    count = Counter(verdicts)
    print(f"\nseed {seed}: {len(samples)} mutants,", ", ".join(f"{number} {each}" for each, number in count.items()))
    for sample, each in zip(samples, verdicts, strict=True):
        if each != KILLED:
            print(f"{sample}\n  {each}")
    return 0 if set(verdicts) <= {KILLED} else 1


def _verdict(sample: Sample, recording: Recording, checkouts: queue.SimpleQueue[Checkout], most_s: float) -> str:
    """Of the quickest tests that execute it: first those of its package, because each file of tests costs an import."""
    started_s = time.monotonic()
    tests = recording.covering(sample.module, sample.mutant.lines)
    package = sample.module.parts[len(SOURCE.parts)]
    own = _quickest([test for test in tests if Path(test[0]).parent.name == package], most_s)
    others = _quickest([test for test in tests if Path(test[0]).parent.name != package], most_s)
    checkout = checkouts.get()
    killer = _killer(checkout, sample, own) or _killer(checkout, sample, others)
    checkouts.put(checkout)
    verdict = KILLED if killer else SURVIVED if tests else NOT_COVERED
    how = f"by {killer}" if killer else f"{len(own) + len(others)} tests of {len(tests)}"
    print(f"{sample}\n  {verdict} {how}, {time.monotonic() - started_s:.0f} s", flush=True)
    return verdict


def _quickest(tests: list[tuple[str, float]], most_s: float) -> list[tuple[str, float]]:
    """As many as take so long together, and one at least."""
    return tests[: 1 + sum(total_s < most_s for total_s in accumulate(seconds for _, seconds in tests))]


def _killer(checkout: Checkout, sample: Sample, tests: list[tuple[str, float]]) -> str:
    """ "" if all pass. What a busy machine may fail as well, a test that waits or all of pytest, has to fail twice."""
    killer = checkout.try_out(*sample, tests) if tests else ""
    again = [test for test in tests if test[0] == killer]
    if not killer or (again and again[0][1] < QUICK_S) or checkout.try_out(*sample, again or tests):
        return killer
    return _killer(checkout, sample, [test for test in tests if test not in again]) if again else ""


def _sample(options: argparse.Namespace, rng: random.Random) -> list[Sample]:
    files = sorted(file for package in PACKAGES for file in (REPOSITORY / SOURCE / package).rglob("*.py"))
    every = [
        Sample(file.relative_to(REPOSITORY), mutant)
        for file in files
        if options.only in str(file)
        for mutant in mutants(file.read_bytes())
    ]
    chosen = rng.sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants", flush=True)
    return sorted(chosen)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=400, help="of mutants (default: %(default)s)")
    add("--seed", type=int, help="the same mutants again (default: another one each time)")
    add("--only", default="", metavar="TEXT", help="of modules whose path contains it")
    # Most tests wait.
    add("--processes", type=int, default=4 * len(os.sched_getaffinity(0)), help="at a time (default: %(default)s)")
    add("--most-s", type=float, default=60, help="of tests of its package, and of others (default: %(default)s)")
    add("--recording", type=Path, help="of which test executes which line: made if missing, kept (default: anew)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
