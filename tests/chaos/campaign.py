"""Rounds of: start, work, faults, death. After each the oracle looks; at the end everything has to drain."""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.base_campaign import BACKLOG, DRAIN_S, START_S, BaseCampaign, sections
from chaos.random_faults import TIMEOUT_S
from chaos.steps import LARGE, STARTING, Steps, plan
from chaos.witness import Witness
from s3spool.failure.breaker import STREAK
from s3spool.folder.folder import REMOVING
from support.daemon import Daemon
from support.killing import STEPS, STOPS
from support.killing import program as dying_at
from support.waiting import eventually

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

TESTS = Path(__file__).parents[1]
_COUNTED = (
    "SELECT (SELECT count(*) FROM receipts), (SELECT coalesce(sum(size), 0) FROM receipts),"
    " (SELECT count(*) FROM retries WHERE state = 'waiting'), (SELECT count(*) FROM retries WHERE state = 'parked')"
)
HEARTBEAT_TIMEOUT_S = 3.0  # how long a step is waited for
REQUESTS = 120  # a life at whose end no step waits goes on for so many at most


class Campaign(BaseCampaign):
    """One daemon that dies again and again."""

    def __init__(self, home: Path, action: str, seed: int, *, program: tuple[str, ...] = ()) -> None:
        """`program`: another one than the real daemon, which dies at random moments only."""
        witness = Witness(seed)
        self.daemon = Daemon(
            home,
            bucket=witness.bucket,
            environment=witness.environment() | {"PYTHONPATH": str(TESTS)},
            **sections(home, action, workers=40),
        )
        super().__init__(self.daemon, witness, action, seed)
        self._ordinary = program or self.daemon.program
        self._steps = Steps([] if program else plan(action, seed, STEPS), self._rng)
        self._code: int | None = None  # of this life, once it has ended by itself
        self._left_aside = False  # it died while a file was out of the way

    def __enter__(self) -> Self:
        self.witness.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.daemon.__exit__(kind, error, trace)
        self.writers.end()
        self.witness.stop()

    def round(self, acts: int) -> None:
        """One life, and what was made of it."""
        step = self._program()
        kind = step.partition(":")[2]
        self._set_faults(kind)
        if not step and self._rng.random() < 0.2:
            self._go_down()
        done = self.writers.acts
        early = self._rng.randint(0, acts // 2)
        self._act(early)
        self._start()
        if kind in STARTING:
            self._wait(START_S)
        elif self._rng.random() < 0.1:
            self._wait(self._rng.uniform(0.05, 0.6))
        else:
            self._live(acts - early, kind)
        self._die(step)
        self._come_up()
        self._look()
        self._act(acts - (self.writers.acts - done))  # where life was short: found at the next start
        if len(self.writers.pending) > BACKLOG:
            self._clear_up()

    def stop_for(self, duration_s: float, acts: int) -> None:
        """SIGSTOP in the middle of work, writers go on, SIGCONT."""
        self.daemon.signal(signal.SIGSTOP)
        self._act(acts)
        self._wait(duration_s)
        if self._code is None:  # it may have come to its step before it was stopped
            self.daemon.signal(signal.SIGCONT)
        self.figures.stops += 1

    def meddle(self, *, late: bool) -> None:
        """A life in which a writer comes in between the look at a file and the reading of it.

        It writes half of another content and takes its time; or, `late`, it only opens it, and writes when it is gone.
        """
        (step,) = STOPS
        self.daemon.program = dying_at(f"stop:{step}")
        self._start()
        self.daemon.wait_ready(START_S)
        path = self.writers.drop_medium()
        eventually(self.daemon.stands_still, timeout_s=START_S, message=f"{self.context}: it stops at {step}")
        if late:
            self.writers.open_and_think(path)
        else:
            self.writers.rewrite_slowly(path)
        self.daemon.signal(signal.SIGCONT)
        self.figures.stops += 1
        key = self.writers.key_of(path)
        what = f"{self.context}: {path}"
        eventually(lambda: self.witness.latest(key), timeout_s=START_S, message=f"{what} is sent, torn or not")
        if late:
            place = self.daemon.folder / path
            names = place, place.with_name(REMOVING + place.name)
            eventually(lambda: not any(name.exists() for name in names), timeout_s=START_S, message=f"{what} goes")
        self.writers.end()
        eventually(self._all_seen, timeout_s=DRAIN_S, message=f"{what} is sent again, or lost to its writer")
        self.daemon.kill()
        self.figures.kills += 1

    def refuse_all(self, fault: str, acts: int, *, kill: bool) -> None:
        """A life in which every request is refused for good: the breaker opens before many files have failed for it."""
        before = self.oracle.parked() if self.figures.starts else set()
        self.witness.faults.share, self.witness.faults.only = 1.0, fault
        self.start()
        self._act(acts)
        code = fault.partition(" ")[2] or f"HTTP{fault}"
        eventually(
            lambda: self.daemon.events("destination.paused", this_run=True, error_code=code),
            timeout_s=START_S,
            message=f"{self.context}: {fault} pauses",
        )
        self._act(acts)
        # Fewer than eight fail before it pauses. After three such lives they are parked, until another file succeeds.
        parked = self.oracle.parked() - before
        assert len(parked) < STREAK, f"{self.context}: {fault} parks {parked}"
        if kill:
            self.daemon.kill()
            self.figures.kills += 1
            self._look()

    def starve(self, acts: int) -> None:
        """Not a byte more for the process while writers go on; then SIGKILL, as the kernel does it."""
        self.start()
        self._act(acts // 2)
        self._wait(self._rng.uniform(0.0, 1.0))
        self.limit_memory()
        self._act(acts - acts // 2)
        self._wait(self._rng.uniform(0.2, 1.5))
        if self._code is None:
            self.daemon.kill()
        self.figures.kills += 1
        self._look()

    def limit_memory(self) -> None:
        """Each mmap and brk of the daemon fails from now on, and with it each malloc that needs one."""
        pages = int(Path(f"/proc/{self.daemon.pid}/statm").read_text().split()[0])
        resource.prlimit(self.daemon.pid, resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))

    def start(self) -> None:
        self._start(ordinary=True)
        self.daemon.wait_ready(START_S)

    def act(self, count: int, share: float = 0.0) -> None:
        """Work while this share of the requests meets a fault."""
        self.witness.faults.share = share
        self._act(count)

    def _start_all(self) -> None:
        if not self.daemon.alive:
            self.start()

    def _stop_all(self) -> None:
        assert self.daemon.stop(START_S) == 0
        self._assert_counted()

    def _cli(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return self.daemon.cli(*arguments, timeout_s=timeout_s)

    def _assert_counted(self) -> None:
        """What the ledger's triggers have kept up, and `status` says without counting, is what there is."""
        with contextlib.closing(sqlite3.connect(self.daemon.state_directory / "ledger.sqlite3")) as db:
            said = db.execute("SELECT receipts, receipt_bytes, waiting, parked FROM totals").fetchone()
            assert said == db.execute(_COUNTED).fetchone(), self.context

    # --- one life

    def _program(self) -> str:
        """The step at which this life is to end; "" where the moment is a random one."""
        step = self._steps.take(left_aside=self._left_aside)
        self.daemon.program = dying_at(step, self._steps.call(step)) if step else self._ordinary
        return step

    def _start(self, *, ordinary: bool = False) -> None:
        if ordinary:
            self.daemon.program = self._ordinary
        self.daemon.start()
        self._code = None
        self._left_aside = False
        self.figures.starts += 1

    def _live(self, acts: int, kind: str) -> None:
        """Writers at work, until all is done or the daemon has died at its step."""
        # On a slow machine the start takes seconds: a moment of this life is told by requests, not by the clock.
        self._wait_for(lambda: bool(self.daemon.events("daemon.ready", this_run=True)), START_S)
        stop_at = self._rng.randrange(acts) if self._rng.random() < 0.15 else -1
        while acts > 0 and self.daemon.alive:
            burst = min(acts, self._rng.choice([1, 5, 20, 60]))
            if 0 <= stop_at < burst:
                self._freeze(self._rng.uniform(0.1, 1.5 * TIMEOUT_S))
            self._act(burst)
            if kind in LARGE:
                self.writers.act_on_large()
            acts -= burst
            stop_at -= burst
            self._wait(self._rng.uniform(0.0, 0.1))
        self._come_up()
        enough = self.witness.total + self._rng.randint(0, REQUESTS)
        self._wait_for(lambda: not kind and self.witness.total >= enough, HEARTBEAT_TIMEOUT_S)

    def _die(self, step: str) -> None:
        """At the step it was to die at; else now, by our hand."""
        self.figures.kills += 1
        if self._code is None:
            self.daemon.kill()
            if step:
                self._steps.miss(step)
            return
        self._left_aside = step in {"after:aside", "before:unlink", "before:restore"}
        assert (self._code, bool(step)) == (-signal.SIGKILL, True), f"{self.context}: it ended with {self._code}"
        self.figures.kills_at_steps[step] += 1
        if self.action == "delete" and step.partition(":")[2] in STARTING and self.figures.kills_at_steps[step] == 1:
            self._steps.again(step)  # twice in a row

    def _wait(self, duration_s: float) -> None:
        """Let time pass, or the daemon die."""
        if self._code is None:
            self._code = self.daemon.ends_within(duration_s)

    def _wait_for(self, condition: Callable[[], bool], longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while self._code is None and not condition() and time.monotonic() < deadline:
            self._wait(0.02)

    def _freeze(self, duration_s: float) -> None:
        self.stop_for(duration_s, 5)

    def _clear_up(self) -> None:
        """A life with fewer faults, until the backlog is half of what it may be."""
        self.witness.faults.share, self.witness.faults.only = 0.1, ""
        self._start(ordinary=True)
        eventually(lambda: self._pending() < BACKLOG // 2, timeout_s=DRAIN_S, message=f"{self.context}: the backlog")
        self.daemon.kill()
        self.figures.kills += 1
        self._look()
