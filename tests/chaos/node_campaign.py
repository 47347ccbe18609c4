"""Rounds of work, faults and deaths on three nodes with one folder and one database."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.base_campaign import BACKLOG, DRAIN_S, START_S, BaseCampaign, sections
from chaos.steps import LARGE, WHEN, Steps, plan
from chaos.witness import Witness
from support.database_proxy import DatabaseProxy
from support.killing import program as dying_at
from support.killing_nodes import STEPS
from support.nodes import LEASE_S, Nodes
from support.postgres import Postgres
from support.waiting import eventually

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from support.daemon import Daemon

TESTS = Path(__file__).parents[1]
NAMES = ("a", "b", "c")
DATABASE = "postgres"
KILLED = (0, 1, 1, 1, 2, 3)  # nodes of a round, at random moments
LARGE_EVERY = 30  # acts in a round at one of whose steps a large file has to come
SLOW_S = (0.02, 0.1, 0.5, 1.0)  # for each message to the database

Event = tuple[float, "Callable[[], None]"]  # seconds after the round's begin


class NodeCampaign(BaseCampaign):
    """Each node reaches the database through a proxy of its own."""

    def __init__(self, home: Path, action: str, seed: int, *, program: tuple[str, ...] = ()) -> None:
        """`program`: another one than the real daemon, which dies at random moments only."""
        witness = Witness(seed)
        self._database = Postgres()
        self._proxies = [DatabaseProxy(self._database.directory / ".s.PGSQL.5432") for _ in NAMES]
        self.nodes = Nodes(
            home,
            witness,
            self._database.url(DATABASE),
            [(name, proxy.url(DATABASE)) for name, proxy in zip(NAMES, self._proxies, strict=True)],
            sections(home, action, workers=20),
            environment={"PYTHONPATH": str(TESTS)},
        )
        super().__init__(self.nodes, witness, action, seed)
        self._stack = ExitStack()
        self._ordinary = program or self.nodes.nodes[0].program
        self._todo = Steps([] if program else plan(action, seed, STEPS), self._rng)
        self.figures.every_step = [f"{when}:{step}" for step in STEPS for when in WHEN]
        self._steps: dict[Daemon, str] = {}  # at which the nodes that run are to die
        self._stopped: set[Daemon] = set()
        self._left_aside = False  # a node died while a file was out of the way
        self._disturbed: set[Daemon] = set()  # since these nodes started, the database was away or slow

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._database)
            for proxy in self._proxies:
                stack.enter_context(proxy)
            self.witness.start()
            stack.callback(self.witness.stop)
            stack.callback(self.writers.end)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.nodes:
            node.__exit__(kind, error, trace)
        self._stack.close()

    def round(self, acts: int) -> None:
        """Each trouble begins and ends within the round; whoever died is started at its end."""
        self._start_dead()
        events = sorted(self._events(), key=lambda event: event[0])
        length_s = max([self._rng.uniform(1.0, 4.0), *(at_s for at_s, _ in events)])
        kind = self._rng.choice([*(step.partition(":")[2] for step in self._steps.values()), ""])
        self._set_faults(kind)
        begun = time.monotonic()
        done = 0
        while (now_s := time.monotonic() - begun) < length_s or events:
            while events and events[0][0] <= now_s:
                events.pop(0)[1]()
            due = min(acts, int(acts * now_s / length_s) + 1)
            self._act(due - done)
            if kind in LARGE and due // LARGE_EVERY > done // LARGE_EVERY:
                self.writers.act_on_large()
            done = due
            self._bury()
            time.sleep(0.02)
        if self._rng.random() < 0.15:
            for node in self.nodes.nodes:
                self._kill(node)
        self._look()
        if len(self.writers.pending) > BACKLOG:
            self._clear_up()

    # --- what happens in a round

    def _events(self) -> list[Event]:
        rng, nodes = self._rng, self.nodes.nodes
        killed = rng.sample(nodes, rng.choice(KILLED))
        events: list[Event] = [(rng.uniform(0.0, 4.0), partial(self._kill, node)) for node in killed]
        if rng.random() < 0.3:
            node, at_s = rng.choice(nodes), rng.uniform(0.2, 2.0)
            beyond = rng.random() < 0.7
            for_s = LEASE_S * (rng.uniform(1.1, 3.0) if beyond else rng.uniform(0.1, 0.9))
            events += [(at_s, partial(self._stop, node, beyond=beyond)), (at_s + for_s, partial(self._continue, node))]
        if rng.random() < 0.15:
            at_s = rng.uniform(0.0, 1.0)
            events += [(at_s, self._go_down), (at_s + rng.uniform(0.2, 2.0 * LEASE_S), self._come_up)]
        if rng.random() < 0.5:
            at_s = rng.uniform(0.2, 2.0)
            begin, end = self._database_trouble()
            events += [(at_s, begin), (at_s + rng.uniform(0.2, 2.5) * LEASE_S, end)]
        return events

    def _database_trouble(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """How it begins, and how it ends."""
        kind = self._rng.choice(["restarted", "cut", "slow"])
        proxies = self._rng.choice([self._proxies, [self._rng.choice(self._proxies)]])
        delay_s = self._rng.choice(SLOW_S)

        def begin() -> None:
            self._disturbed.update(self.nodes.nodes)
            if kind == "restarted":
                self.figures.database["restarted"] += 1
                self._database.stop("immediate")
                return
            self.figures.database[f"{kind} for {'all nodes' if len(proxies) > 1 else 'one node'}"] += 1
            for proxy in proxies:
                if kind == "cut":
                    proxy.cut()
                else:
                    proxy.delay_s = delay_s

        def end() -> None:
            if kind == "restarted":
                self._database.start()
            for proxy in proxies:
                proxy.mend()
                proxy.delay_s = 0.0

        return begin, end

    def _kill(self, node: Daemon) -> None:
        self._bury()
        if node.runs:
            node.kill()
            self._stopped.discard(node)
            self.figures.kills += 1
            if step := self._steps.pop(node, ""):
                self._todo.miss(step)

    def _stop(self, node: Daemon, *, beyond: bool) -> None:
        self._bury()
        if node.alive:
            node.signal(signal.SIGSTOP)
            self._stopped.add(node)
            self.figures.stops += 1
            self.figures.stops_beyond_lease += beyond

    def _continue(self, node: Daemon) -> None:
        if node in self._stopped:
            self._stopped.discard(node)
            node.signal(signal.SIGCONT)

    def _bury(self) -> None:
        """Count those that have come to their step. None may end otherwise, but at a start without the database."""
        for node in self.nodes.nodes:
            code = node.ends_within(0) if node.runs else None
            if code is None:
                continue
            self._stopped.discard(node)
            step = self._steps.pop(node, "")
            if step and code == -signal.SIGKILL:
                self.figures.kills += 1
                self.figures.kills_at_steps[step] += 1
                self._left_aside |= step in {"after:aside", "before:unlink", "before:restore"}
                continue
            refused = code == 1 and node in self._disturbed and not node.events("daemon.ready", this_run=True)
            assert refused, f"{self.context}: {node.home.name} ended with {code}\n{node.log_tail()}"
            self.figures.refused_starts += 1
            if step:
                self._todo.miss(step)

    # --- starts

    def _start_dead(self) -> None:
        """Most of them, and most of the time until they are ready."""
        self._bury()
        dead = [node for node in self.nodes.nodes if not node.runs]
        for node in dead:
            if len(dead) < len(NAMES) and self._rng.random() < 0.15:
                continue  # it stays away for a round
            step = self._todo.take(left_aside=self._left_aside)
            self._start(node, step)
        if self._rng.random() < 0.8:
            self._wait_ready()

    def _start(self, node: Daemon, step: str = "") -> None:
        node.program = self._ordinary
        if step:
            node.program = dying_at(step, self._todo.call(step), module="support.killing_nodes")
            self._steps[node] = step
            if step.endswith(":restore"):
                self._left_aside = False
        node.start()
        self._disturbed.discard(node)
        self.figures.starts += 1

    def _wait_ready(self) -> None:
        def ready() -> bool:
            self._bury()
            return all(node.events("daemon.ready", this_run=True) for node in self.nodes.nodes if node.alive)

        eventually(ready, timeout_s=START_S, message=f"{self.context}: all are ready")

    def _start_all(self) -> None:
        self._bury()
        for node in self.nodes.nodes:
            if node in self._steps:  # it would die in the end
                self._kill(node)
            if not node.runs:
                self._start(node)
        self._wait_ready()

    def _stop_all(self) -> None:
        for node in self.nodes.nodes:
            assert node.stop(START_S) == 0, f"{self.context}: {node.home.name}\n{node.log_tail()}"

    def _clear_up(self) -> None:
        """Fewer faults, until the backlog is half of what it may be."""
        self.witness.faults.share, self.witness.faults.only = 0.1, ""
        self._start_all()
        eventually(lambda: self._pending() < BACKLOG // 2, timeout_s=DRAIN_S, message=f"{self.context}: the backlog")

    def _cli(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return self.nodes.nodes[0].cli(*arguments, timeout_s=timeout_s)

    def _is_insane(self, event: dict[str, Any]) -> bool:
        if event["event"] == "ledger.failed":
            return str(event.get("error", "")).startswith("a row was refused")
        return super()._is_insane(event)

    def _count(self) -> None:
        super()._count()
        self.figures.claims_lost = len(self.nodes.events("file.claim_lost"))
