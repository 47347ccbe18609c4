"""What campaigns against one daemon and against several have in common: writers, faults, the oracle, the end."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from chaos.figures import Figures
from chaos.oracle import Oracle
from chaos.random_faults import TIMEOUT_S
from chaos.steps import FAILING
from chaos.writers import Writers
from support.waiting import eventually

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from chaos.witness import Witness
    from support.daemon import Daemon
    from support.nodes import Nodes

DRAIN_S = 180.0
START_S = 60.0
BACKLOG = 1500  # names not seen to arrive; above it there are fewer faults for a while
INSANE = {"thread.died", "worker.replaced", "daemon.unhealthy", "ledger.failed", "watch.lost", "log.dropped"}


def sections(home: Path, action: str, *, workers: int) -> dict[str, dict[str, Any]]:
    """The configuration of each daemon."""
    return {
        "after": {"action": action, "archive_directory": str(home / "archive")},
        "upload": {"multipart_threshold": "5MiB", "part_size": "5MiB", "timeout_s": TIMEOUT_S, "workers": workers},
        "retry": {"initial_s": 0.1, "max_s": 0.5},
        "watch": {"settle_s": 0, "rescan_s": 5},
    }


class BaseCampaign(ABC):
    """One mode of removal, one seed."""

    def __init__(self, daemon: Daemon | Nodes, witness: Witness, action: str, seed: int) -> None:
        self.action = action
        self.figures = Figures()
        self.witness = witness
        self.context = f"{action}, CHAOS_SEED={seed}"
        self.writers = Writers(daemon.folder, random.Random(f"{seed} {action} writers"))
        self.oracle = Oracle(daemon, self.writers, witness)
        self._daemon = daemon
        self._rng = random.Random(f"{seed} {action}")
        self._down = False  # the server refuses connections

    def finish(self, *, sane: bool = True) -> Figures:
        """The faults end: everything drains, and what is parked has a reason and can be released.

        `sane`: nothing went wrong in the daemon itself, all it met were faults of others.
        """
        self._end_faults()
        self.writers.end()
        self._start_all()
        done = self._cli("wait", "--timeout", str(DRAIN_S), timeout_s=DRAIN_S + START_S)
        assert done.returncode in {0, 3}, f"{self.context}: {done.stderr}{done.stdout}"
        self.figures.parked = len(self.oracle.parked())
        assert self._cli("retry", "--all", timeout_s=START_S).returncode == 0
        eventually(lambda: not self.oracle.undelivered(), timeout_s=DRAIN_S, message=f"{self.context}: all is sent")
        eventually(self._all_seen, timeout_s=DRAIN_S, message=f"{self.context}: all is recorded and removed")
        self._stop_all()
        self._look()
        assert self.oracle.undelivered() == []
        self.figures.verdict = self.oracle.judge()
        self.figures.verdict.assert_clean(self.context)
        if sane:
            self._assert_sane()
        self._count()
        return self.figures

    @abstractmethod
    def _start_all(self) -> None:
        """What does not run, without a step at which to die."""

    @abstractmethod
    def _stop_all(self) -> None: ...

    @abstractmethod
    def _cli(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]: ...

    def _is_insane(self, event: dict[str, Any]) -> bool:
        return event["event"] in INSANE or str(event.get("hint", "")).startswith("this is a bug")

    def _assert_sane(self) -> None:
        strange = [event for event in self._daemon.events() if self._is_insane(event)]
        assert not strange, f"{self.context}: {strange[:3]}"

    def _set_faults(self, step: str) -> None:
        """At random, but not such that the step is out of reach."""
        faults = self.witness.faults
        faults.share = self._rng.choice([0.05, 0.1, 0.2, 0.3] if step else [0.2, 0.4, 0.6, 1.0])
        faults.only = self._rng.choice(faults.kinds) if faults.share == 1.0 or self._rng.random() < 0.2 else ""
        if step in FAILING:
            faults.share, faults.only = 0.3, "500 InternalError"

    def _end_faults(self) -> None:
        self.witness.faults.share = 0.0

    def _go_down(self) -> None:
        self.witness.go_down()
        self._down = True
        self.figures.outages += 1

    def _come_up(self) -> None:
        if self._down:
            self._down = False
            self.witness.come_up()

    def _act(self, count: int) -> None:
        for _ in range(count):
            self.writers.act()

    def _look(self) -> None:
        self.oracle.look()
        self.oracle.verdict.assert_clean(self.context)

    def _all_seen(self) -> bool:
        return self._pending() == 0

    def _pending(self) -> int:
        self.oracle.look()
        return len(self.writers.pending)

    def _count(self) -> None:
        figures, writers = self.figures, self.writers
        figures.files, figures.states = len(writers.files), writers.states
        figures.large = sum(file.large for file in writers.files.values())
        figures.dropped_bytes = writers.written_bytes
        figures.requests = self.witness.total
        figures.faults = self.witness.faults.met
