"""`make soak MINUTES=n`: one daemon, random load, random faults. Does anything grow?"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.proc import rss_bytes

from chaos.curves import svg
from chaos.figures import seed
from chaos.oracle import Oracle
from chaos.soak_result import Faults, Sample, SoakResult
from chaos.witness import Witness
from chaos.writers import Writers
from support.daemon import Daemon
from support.preload import lying
from support.waiting import eventually

SAMPLE_S = 5.0
TICK_S = 0.25
TOLERANCE = 1.1  # how much more the last fifth may take than the first one after warming up
DRAIN_S = 180.0  # once all is well and nobody writes, all is sent, recorded and removed within this time
DRAIN_EVERY_S = 600.0
RATES = (0.0, 1.0, 5.0, 15.0, 40.0)  # acts of the writers a second
PERIOD_S = (5.0, 45.0)  # how long a rate and its faults last
SHARES = (0.0, 0.0, 0.01, 0.05, 0.2, 1.0)  # of the requests that meet a fault


class Soak:
    def __init__(self, home: Path, number: int, *, slow_fsync_ms: int = 0) -> None:
        self.result = SoakResult(number)
        self._rng = random.Random(f"{number} soak")
        self._witness = Witness(number)
        self._daemon = Daemon(
            home,
            bucket=self._witness.bucket,
            environment=self._witness.environment()
            | (lying(home, slow_fsync_ms=slow_fsync_ms) if slow_fsync_ms else {}),
            after={"action": "delete"},
            upload={"multipart_threshold": "5MiB", "part_size": "5MiB", "timeout_s": 2},
            retry={"initial_s": 0.5, "max_s": 10},
            watch={"settle_s": 0.1, "rescan_s": 30},
        )
        self._writers = Writers(self._daemon.folder, self._rng, large_share=0.002)
        self._oracle = Oracle(self._daemon, self._writers, self._witness)
        self._pause = threading.Event()  # never set: a rate is a matter of time
        self._down = False  # the server refuses connections

    def run(self, minutes: float) -> SoakResult:
        with self._witness, self._daemon as daemon:
            daemon.wait_ready(60)
            begun = time.monotonic()
            period_until = sample_at = 0.0
            rate, owed, drain_at = 0.0, 0.0, DRAIN_EVERY_S
            while (now := time.monotonic() - begun) < minutes * 60:
                if now >= drain_at:
                    self._drain(now)
                    drain_at, period_until = now + DRAIN_EVERY_S, 0.0
                elif now >= period_until:
                    rate, period_until = self._begin_period(now)
                if now >= sample_at:
                    sample_at = now + SAMPLE_S
                    self._sample(now)
                owed += rate * TICK_S
                while owed >= 1:
                    owed -= 1
                    self._writers.act()
                self._pause.wait(TICK_S)
            self._drain(time.monotonic() - begun)
            self._sample(time.monotonic() - begun)
            assert daemon.stop(60) == 0
            self._conclude()
        return self.result

    def _begin_period(self, now: float) -> tuple[float, float]:
        """Another rate, other faults; now and then a server that cannot be reached."""
        self._end_faults()
        faults = self._witness.faults
        faults.share = self._rng.choice(SHARES)
        faults.only = self._rng.choice(faults.kinds) if faults.share == 1.0 else ""
        if self._rng.random() < 0.1:
            self._witness.go_down()
            self._down = True
        self.result.set_faults(self._faults(), now / 60)
        return self._rng.choice(RATES), now + self._rng.uniform(*PERIOD_S)

    def _faults(self) -> Faults:
        if self._down:
            return Faults.UNREACHABLE
        share = self._witness.faults.share
        return Faults.ALL if share == 1.0 else Faults.SOME if share else Faults.NONE

    def _end_faults(self) -> None:
        self._witness.faults.share = 0.0
        if self._down:
            self._down = False
            self._witness.come_up()

    def _sample(self, now: float) -> None:
        assert self._daemon.alive, f"the daemon has died:\n{self._daemon.log_tail()}"
        self._oracle.look()
        proc = Path(f"/proc/{self._daemon.pid}")
        sample = Sample(
            minute=round(now / 60, 3),
            rss_mib=round(rss_bytes(self._daemon.pid) / 2**20, 2),
            descriptors=len(list((proc / "fd").iterdir())),
            threads=len(list((proc / "task").iterdir())),
            waiting=len(self._writers.pending),
            files=len(self._writers.files),
            faults=sum(self._witness.faults.met.values()),
        )
        if not self.result.samples or int(sample.minute) > int(self.result.samples[-1].minute):
            _say(
                _line(sample),
                f"lost {len(self._oracle.verdict.lost)} torn {len(self._oracle.verdict.torn)}",
            )
        self.result.samples.append(sample)

    def _drain(self, now: float) -> None:
        self._end_faults()
        self.result.set_faults(Faults.NONE, now / 60)
        self._writers.end()
        self._daemon.cli("retry", "--all")

        def drained() -> bool:
            self._oracle.look()
            if self._oracle.parked():
                self._daemon.cli("retry", "--all")
            return not self._writers.pending

        try:
            eventually(drained, timeout_s=DRAIN_S, message="all is sent, recorded and removed")
        except AssertionError:
            for path in sorted(self._writers.pending)[:10]:
                _say(self._daemon.cli("why", path).stdout)
            _say(self._daemon.cli("status").stdout, self._daemon.cli("list", "--all", "--state", "waiting").stdout)
            raise

    def _conclude(self) -> None:
        undelivered = self._oracle.undelivered()
        verdict = self._oracle.judge()
        self.result.figures = {
            "files": len(self._writers.files),
            "states of files": self._writers.states,
            "MiB": self._writers.written_bytes // 2**20,
            "requests": self._witness.total,
            "faults": sum(self._witness.faults.met.values()),
            "lost": len(verdict.lost) + len(undelivered),
            "torn": len(verdict.torn) + len(verdict.early),
            "duplicates": verdict.duplicates,
            "torn, noticed and sent again": verdict.refused_torn,
            "excluded": verdict.excluded,
        }
        for complaint in [*verdict.lost, *verdict.early, *verdict.torn, *undelivered][:20]:
            _say(complaint)


def _say(*words: str) -> None:
    print(*words, flush=True)  # noqa: T201 - a program of its own


def _line(sample: Sample) -> str:
    return (
        f"minute {sample.minute:6.1f}  RSS {sample.rss_mib:6.1f} MiB  descriptors {sample.descriptors:4}  threads"
        f" {sample.threads:4}  waiting {sample.waiting:5}  files {sample.files:7}  faults {sample.faults:6}"
    )


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--svg", type=Path, default=Path("soak.svg"), help="where the plot goes")
    options.add_argument("--slow-fsync-ms", type=int, default=0, help="the disk is slow")
    options.add_argument("--json", type=Path, help="where the samples go")
    asked = options.parse_args()
    number = seed()
    _say(f"CHAOS_SEED={number}")
    with tempfile.TemporaryDirectory(prefix="s3spool-soak-") as home:
        result = Soak(Path(home), number, slow_fsync_ms=asked.slow_fsync_ms).run(asked.minutes)
    asked.svg.write_text(svg(result))
    if asked.json:
        asked.json.write_text(json.dumps(asdict(result)))
    growth = result.growth()
    for name, value in result.figures.items():
        _say(f"{name:<40}{value:>10,}")
    for name, factor in growth.items():
        _say(f"{name + ', last fifth by second':<40}{factor:>10.3f}")
    bad = result.figures["lost"] or result.figures["torn"] or max(growth.values()) > TOLERANCE
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
