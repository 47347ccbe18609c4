"""Rounds of: start, work, faults, death. After each the oracle looks; at the end everything has to drain."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.figures import Figures
from chaos.oracle import Oracle
from chaos.random_faults import TIMEOUT_S
from chaos.witness import Witness
from chaos.writers import Writers
from s3spool.failure.breaker import STREAK
from s3spool.folder.folder import REMOVING
from support.daemon import Daemon
from support.killing import STEPS, STOPS
from support.killing import program as dying_at
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

TESTS = Path(__file__).parents[1]
DRAIN_S = 180.0
_COUNTED = (
    "SELECT (SELECT count(*) FROM receipts), (SELECT coalesce(sum(size), 0) FROM receipts),"
    " (SELECT count(*) FROM retries WHERE state = 'waiting'), (SELECT count(*) FROM retries WHERE state = 'parked')"
)
START_S = 60.0
HEARTBEAT_TIMEOUT_S = 3.0  # how long a step is waited for
REQUESTS = 120  # a life at whose end no step waits goes on for so many at most
SOON = 3  # lives until a step is tried once more
BACKLOG = 1500  # names not seen to arrive; above it there are fewer faults for a while
# Steps that some mode of removal never comes to.
ONLY = {"compare+unlink": "delete", "aside": "delete", "unlink": "delete", "restore": "delete"}
ONLY |= {"compare+rename": "archive", "rename": "archive"}
INSANE = {"thread.died", "worker.replaced", "daemon.unhealthy", "ledger.failed", "watch.lost", "log.dropped"}
_WHEN = ("before", "after")
ACTIONS = ("delete", "archive", "keep")
LARGE = ("resumed", "create", "record multipart", "record part", "complete", "forget multipart", "abort")
FAILING = ("record retry", "claim")
STARTING = ("lock", "migrate", "ledger", "watch", "control", "scan")


class Campaign:
    """One mode of removal, one seed, one daemon that dies again and again."""

    def __init__(self, home: Path, action: str, seed: int, *, program: tuple[str, ...] = ()) -> None:
        """`program`: another one than the real daemon, which dies at random moments only."""
        self.action = action
        self.figures = Figures()
        self.witness = Witness(seed)
        self._rng = random.Random(f"{seed} {action}")
        self.daemon = Daemon(
            home,
            bucket=self.witness.bucket,
            environment=self.witness.environment() | {"PYTHONPATH": str(TESTS)},
            after={"action": action, "archive_directory": str(home / "archive")},
            upload={"multipart_threshold": "5MiB", "part_size": "5MiB", "timeout_s": TIMEOUT_S, "workers": 40},
            retry={"initial_s": 0.1, "max_s": 0.5},
            watch={"settle_s": 0, "rescan_s": 5},
        )
        self.writers = Writers(self.daemon.folder, random.Random(f"{seed} {action} writers"))
        self.oracle = Oracle(self.daemon, self.writers, self.witness)
        self._ordinary = program or self.daemon.program
        self._todo = [] if program else _plan(action, seed)  # where it is still to die
        self._missed: set[str] = set()  # where it was to die already, but did not come to
        self._code: int | None = None  # of this life, once it has ended by itself
        self._left_aside = False  # it died while a file was out of the way
        self._down = False  # the server refuses connections
        self.context = f"{action}, CHAOS_SEED={seed}"

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
            self.witness.go_down()
            self._down = True
            self.figures.outages += 1
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
        eventually(self._is_stopped, timeout_s=START_S, message=f"{self.context}: it stops at {step}")
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

    def _is_stopped(self) -> bool:
        return Path(f"/proc/{self.daemon.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

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

    def finish(self, *, sane: bool = True) -> Figures:
        """The faults end: everything drains, and what is parked has a reason and can be released.

        `sane`: nothing went wrong in the daemon itself, all it met were faults of others.
        """
        self._end_faults()
        self.writers.end()
        if not self.daemon.alive:
            self.start()
        self._drain()
        self.figures.parked = len(self.oracle.parked())
        assert self.daemon.cli("retry", "--all", timeout_s=START_S).returncode == 0
        eventually(lambda: not self._left(), timeout_s=DRAIN_S, message=f"{self.context}: all is sent")
        eventually(self._all_seen, timeout_s=DRAIN_S, message=f"{self.context}: all is recorded and removed")
        assert self.daemon.stop(START_S) == 0
        self._look()
        self._assert_counted()
        assert self.oracle.undelivered() == []
        self.figures.verdict = self.oracle.judge()
        self.figures.verdict.assert_clean(self.context)
        if sane:
            self._assert_sane()
        self._count()
        return self.figures

    def _assert_counted(self) -> None:
        """What the ledger's triggers have kept up, and `status` says without counting, is what there is."""
        with contextlib.closing(sqlite3.connect(self.daemon.state_directory / "ledger.sqlite3")) as db:
            said = db.execute("SELECT receipts, receipt_bytes, waiting, parked FROM totals").fetchone()
            assert said == db.execute(_COUNTED).fetchone(), self.context

    def _assert_sane(self) -> None:
        events = self.daemon.events()
        strange = [it for it in events if it["event"] in INSANE or str(it.get("hint", "")).startswith("this is a bug")]
        assert not strange, f"{self.context}: {strange[:3]}"

    # --- one life

    def _set_faults(self, step: str) -> None:
        """At random, but not such that the step is out of reach."""
        faults = self.witness.faults
        faults.share = self._rng.choice([0.05, 0.1, 0.2, 0.3] if step else [0.2, 0.4, 0.6, 1.0])
        faults.only = self._rng.choice(faults.kinds) if faults.share == 1.0 or self._rng.random() < 0.2 else ""
        if step in FAILING:
            faults.share, faults.only = 0.3, "500 InternalError"

    def _end_faults(self) -> None:
        self.witness.faults.share = 0.0

    def _program(self) -> str:
        """The step at which this life is to end; "" where the moment is a random one."""
        self.daemon.program = self._ordinary
        # To put a file back it has to be found out of the way.
        ready = [step for step in self._todo if not step.endswith(":restore") or self._left_aside]
        restoring = [step for step in ready if step.endswith(":restore")]
        if not ready or (not restoring and self._rng.random() < 0.2):
            return ""
        step = (restoring or ready)[0]
        self._todo.remove(step)
        rare = step.partition(":")[2] in {*STARTING, *LARGE, *FAILING, "restore"} or step in self._missed
        calls = [1] if rare else [1, 1, 2, 3, 10, 40]
        self.daemon.program = dying_at(step, self._rng.choice(calls))
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
            if step:  # it has not come to that: soon again, or another time
                self._todo.insert(len(self._todo) if step in self._missed else SOON, step)
                self._missed.add(step)
            return
        self._left_aside = step in {"after:aside", "before:unlink", "before:restore"}
        assert (self._code, bool(step)) == (-signal.SIGKILL, True), f"{self.context}: it ended with {self._code}"
        self.figures.kills_at_steps[step] += 1
        if self.action == "delete" and step.partition(":")[2] in STARTING and self.figures.kills_at_steps[step] == 1:
            self._todo.insert(0, step)  # twice in a row

    def _wait(self, duration_s: float) -> None:
        """Let time pass, or the daemon die."""
        if self._code is None:
            self._code = self.daemon.ends_within(duration_s)

    def _wait_for(self, condition: Callable[[], bool], longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while self._code is None and not condition() and time.monotonic() < deadline:
            self._wait(0.02)

    def _come_up(self) -> None:
        if self._down:
            self._down = False
            self.witness.come_up()

    def _freeze(self, duration_s: float) -> None:
        self.stop_for(duration_s, 5)

    def _act(self, count: int) -> None:
        for _ in range(count):
            self.writers.act()

    def _look(self) -> None:
        self.oracle.look()
        self.oracle.verdict.assert_clean(self.context)

    # --- draining

    def _clear_up(self) -> None:
        """A life with fewer faults, until the backlog is half of what it may be."""
        self.witness.faults.share, self.witness.faults.only = 0.1, ""
        self._start(ordinary=True)
        eventually(
            lambda: self._retry_summary() < BACKLOG // 2, timeout_s=DRAIN_S, message=f"{self.context}: the backlog"
        )
        self.daemon.kill()
        self.figures.kills += 1
        self._look()

    def _retry_summary(self) -> int:
        self.oracle.look()
        return len(self.writers.pending)

    def _drain(self) -> None:
        done = self.daemon.cli("wait", "--timeout", str(DRAIN_S), timeout_s=DRAIN_S + START_S)
        assert done.returncode in {0, 3}, f"{self.context}: {done.stderr}{done.stdout}"

    def _left(self) -> list[str]:
        return self.oracle.undelivered()

    def _all_seen(self) -> bool:
        self.oracle.look()
        return not self.writers.pending

    def _count(self) -> None:
        figures, writers = self.figures, self.writers
        figures.files, figures.states = len(writers.files), writers.states
        figures.large = sum(file.large for file in writers.files.values())
        figures.dropped_bytes = writers.written_bytes
        figures.requests = self.witness.total
        figures.faults = self.witness.faults.met


def _plan(action: str, seed: int) -> list[str]:
    """Steps that only this mode comes to, then all others; each mode begins elsewhere, so that together they do all."""
    rng = random.Random(f"{seed} steps")
    own = [f"{when}:{step}" for step in STEPS if ONLY.get(step) == action for when in _WHEN]
    others = [f"{when}:{step}" for step in STEPS if step not in ONLY for when in _WHEN]
    rng.shuffle(own)
    rng.shuffle(others)
    start = len(others) * ACTIONS.index(action) // len(ACTIONS)
    return [*own, *others[start:], *others[:start]]
