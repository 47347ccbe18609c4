"""Whose fault is a failure? The four rules of `CircuitBreaker`, written a second time and simply: the reference.

`Rules` keeps the evidence and decides. `Simulation` is a queue, a retry list and workers around it, in virtual time.
`python tests/support/failure_model.py` prints one line for each scenario. Times are seconds; a server is a function
(path, now, rng) that answers "ok" or (kind, code) or (kind, code, seconds it takes). An answer takes 30 ms.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

EVERYBODY = "everybody"  # no file could pass (403, DNS, NoSuchBucket ...)
REFUSED = "refused"  # S3 says that it will never take this file (400, 413 ...)
UNKNOWN = "unknown"  # one answer does not tell (5xx, time-outs, broken answers)
ITSELF = "itself"  # the file itself shows it (unreadable ...)

STREAK = 8
PROBES = 4
LONGEST_ROUND_S = 10.0
ARRIVAL_S = 0.25
BETWEEN_ARRIVALS_S = 1 / 32
ANSWER_S = 0.03
PROVISIONAL = 3
RETRY_SHARE = 0.25

Answer = Any  # "ok", (kind, code) or (kind, code, seconds)
Server = Callable[[str, float, random.Random], Answer]


@dataclass
class File:
    """One path: its state and the evidence against it."""

    dropped: float
    state: str = "queued"  # queued, uploading, waiting, parked, uploaded
    done: float = 0.0  # when it was uploaded or parked
    error: str = ""  # of the last failure
    first_failed_at: float = -1.0
    failed_at: float = -1.0
    success_before: float = -1.0  # when the latest success known at the start of this attempt was sent
    own: int = 0  # failures in a row, with this error, that are known to be its own
    attempts: int = 0  # failures after which it backed off or was parked
    provisional: bool = False  # parked, and tried once more after the next success


class Rules:
    """The evidence, and what follows from a failure: "back off", "put back", "park" or "park provisionally".

    Where this differs from the first draft of the rules:

    - A success proves something against another file's failure only if it was known before that file's attempt began:
      at the end of an outage a slow answer from within it would otherwise park a good file.
    - An error that concerns everybody opens the breaker once only: where others passed all the same, it counts like any
      other. Otherwise each new file below a forbidden prefix would pause all others.
    - A success closes the breaker unless it was sent before the request whose failure opened it: good files in flight
      among a crowd of bad ones do, but nothing that was on its way when an outage began.
    - A failure of a request that was sent before the breaker closed is one of the outage: rule 3 holds for it.
    - New arrivals are tried 32 a second at most: after an outage most of those that came in it are untried, and may
      have all workers.
    - An unproven file backs off for at most a sixth of the time since its first failure (10 s at least), so that the
      few files of a quiet folder go out soon after an outage.
    - Proven failures are counted in a row, with the same error.
    """

    def __init__(self, *, max_attempts: int = 0) -> None:
        self.max_attempts = max_attempts
        self.files: dict[str, File] = {}
        self.success_sent = -1.0
        self.unproven: set[str] = set()
        self.open = False
        self.opened_by = ""
        self.failed_sent = -1.0  # when the latest of the unproven, or what opened the breaker, was sent
        self.closed_at = -1.0
        self.refuted: set[str] = set()

    def began(self, path: str) -> None:
        file = self.files[path]
        file.state, file.success_before = "uploading", self.success_sent

    def failed(self, path: str, kind: str, code: str, sent: float, now: float) -> str:
        file = self.files[path]
        others_passed = file.success_before > file.failed_at >= 0
        own = kind == ITSELF or (file.error == code and (file.own > 0 or others_passed))
        file.own = (file.own if file.error == code else 0) + 1 if own else 0
        file.error, file.failed_at = code, now
        if file.first_failed_at < 0:
            file.first_failed_at = now
        if not own:
            if self.open or sent < self.closed_at:  # rule 3
                file.state = "queued"
                return "put back"
            self.unproven.add(path)
            self.failed_sent = max(self.failed_sent, sent)
            if (kind == EVERYBODY and code not in self.refuted) or len(self.unproven) >= STREAK:  # rule 2
                self.open, self.opened_by = True, code
                self.unproven.clear()
                file.state = "queued"
                return "put back"
        file.attempts += 1
        if own and (kind == REFUSED or (self.max_attempts and file.own >= self.max_attempts)):  # rule 1
            file.state = "parked"
            return "park"
        if kind == REFUSED and file.attempts >= PROVISIONAL:
            file.state, file.provisional = "parked", True
            return "park provisionally"
        file.state = "waiting"
        return "back off"

    def longest_wait_s(self, path: str, *, initial_s: float, max_s: float) -> float:
        file = self.files[path]
        if not file.own:
            max_s = min(max_s, max(LONGEST_ROUND_S, (file.failed_at - file.first_failed_at) / 6))
        return min(max_s, initial_s * 2.0 ** min(file.attempts - 1, 30))

    def succeeded(self, path: str, sent: float, now: float) -> list[str]:
        """The files that were parked provisionally and are due now."""
        file = self.files[path]
        file.state, file.done = "uploaded", now
        self.success_sent = max(self.success_sent, sent)
        self.unproven.clear()
        if not self.open:
            self.failed_sent = -1.0
        elif sent >= self.failed_sent:  # rule 4
            self.open, self.failed_sent, self.closed_at = False, -1.0, now
            self.refuted.add(self.opened_by)
        released = [other for other, parked in self.files.items() if parked.provisional]
        for other in released:
            self.files[other].provisional = False
            self.files[other].state = "waiting"
        return released


class Simulated(Protocol):
    """What scenarios need: of the reference, and of the real breaker, queue, retry list and ledger."""

    def drop(self, when: float, path: str) -> None: ...

    def run(self, until: float) -> None: ...

    def files(self) -> dict[str, File]: ...

    def counts(self) -> str: ...


class Simulation:
    """The rules among a hundred workers, a queue and a retry list."""

    def __init__(self, server: Server, *, seed: int = 1, workers: int = 100) -> None:
        self.server, self.rng, self.now, self.workers = server, random.Random(seed), 0.0, workers
        self.rules = Rules()
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.untried: list[str] = []
        self.tried: list[str] = []
        self.busy = self.busy_tried = self.openings = self.requests = 0
        self.rounds = self.probes_left = self.arrivals = self.untried_probes = 0
        self.next_arrival = 0.0

    def drop(self, when: float, path: str) -> None:
        self.at(when, self.arrive, path)

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, act, args = heapq.heappop(self.events)
            act(*args)
            self.send_what_may_go()
        self.now = until

    def files(self) -> dict[str, File]:
        return self.rules.files

    def counts(self) -> str:
        return f"openings {self.openings}, requests {self.requests}"

    def at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (when, next(self.order), act, args))

    def arrive(self, path: str) -> None:
        self.rules.files[path] = File(self.now)
        self.untried.append(path)
        if self.rules.open and self.untried_probes < PROBES:
            self.arrivals += 1
            if self.arrivals == 1:
                self.await_arrival(ARRIVAL_S)

    def await_arrival(self, wait_s: float) -> None:
        """Wake up then: `choose_probe` looks at the clock."""
        self.next_arrival = self.now + wait_s
        self.at(self.next_arrival, lambda: None)

    def plan_round(self) -> None:
        longest_s = min(LONGEST_ROUND_S, 2 ** min(self.rounds, 30))
        self.rounds += 1
        self.at(self.now + self.rng.uniform(0.1, longest_s), self.begin_round, self.openings)

    def begin_round(self, opening: int) -> None:
        if self.rules.open and opening == self.openings:
            self.probes_left = PROBES
            self.plan_round()

    def choose_probe(self) -> str | None:
        if not self.untried:
            self.arrivals = 0
        arrival = self.arrivals > 0 and self.now >= self.next_arrival
        newest = arrival or self.probes_left % 2 == 0
        if arrival:
            self.arrivals -= 1
            self.await_arrival(BETWEEN_ARRIVALS_S)
        elif self.probes_left:
            self.probes_left -= 1
        else:
            return None
        if self.untried:
            return self.untried.pop() if newest else pop_random(self.untried, self.rng)
        return pop_random(self.tried, self.rng) if self.tried else None

    def next_path(self) -> str | None:
        if self.rules.open:
            return self.choose_probe()
        if self.untried:
            return self.untried.pop(0)
        return self.tried.pop(0) if self.tried and self.busy_tried < RETRY_SHARE * self.workers else None

    def send_what_may_go(self) -> None:
        while self.busy < self.workers and (path := self.next_path()) is not None:
            probe, tried = self.rules.open, bool(self.rules.files[path].error)
            self.rules.began(path)
            self.busy += 1
            self.requests += 1
            self.busy_tried += tried
            self.untried_probes += probe and not tried
            answer = self.server(path, self.now, self.rng)
            takes_s = answer[2] if len(answer) == 3 else ANSWER_S
            when = self.now + takes_s * self.rng.uniform(0.8, 1.2)
            self.at(when, self.answered, path, self.now, tried, probe, answer)

    def answered(self, path: str, sent: float, tried: bool, probe: bool, answer: Answer) -> None:
        self.busy -= 1
        self.busy_tried -= tried
        self.untried_probes -= probe and not tried
        if answer == "ok":
            for released in self.rules.succeeded(path, sent, self.now):
                self.due(released)
            return
        was_open = self.rules.open
        what = self.rules.failed(path, answer[0], answer[1], sent, self.now)
        if self.rules.open and not was_open:
            self.openings += 1
            self.rounds = self.probes_left = self.arrivals = 0
            self.plan_round()
        if what == "put back":
            self.tried.append(path)
        elif what == "back off":
            longest_s = self.rules.longest_wait_s(path, initial_s=1.0, max_s=300.0)
            self.at(self.now + self.rng.uniform(0.1, longest_s), self.due, path)
        else:
            self.rules.files[path].done = self.now

    def due(self, path: str) -> None:
        if self.rules.files[path].state == "waiting":
            self.rules.files[path].state = "queued"
            self.tried.append(path)


def pop_random(paths: list[str], rng: random.Random) -> str:
    return paths.pop(rng.randrange(len(paths)))


# Servers


def poison(kind: str, code: str) -> Server:
    """Fails every file whose name begins with "bad"."""
    return lambda path, _now, _rng: (kind, code) if path.startswith("bad") else "ok"


def outage(kind: str, code: str, *, bad: tuple[str, str] | None = None) -> Server:
    """Fails everything from 10 s to 100 s, and "bad" files with `bad` at any other time."""

    def server(path: str, now: float, _rng: random.Random) -> Answer:
        if 10 <= now < 100:
            return kind, code
        return bad if bad and path.startswith("bad") else "ok"

    return server


def silent(path: str, _now: float, _rng: random.Random) -> Answer:
    """Never answers "bad" files: they run into a time-out of 30 s."""
    return (UNKNOWN, "timeout", 30.0) if path.startswith("bad") else "ok"


def flaky(share: float) -> Server:
    return lambda _path, _now, rng: (UNKNOWN, "500") if rng.random() < share else "ok"


# Scenarios


@dataclass
class Scenario:
    """Who arrives when before which server, and what must be true at the end."""

    name: str
    server: Server
    drops: list[tuple[float, str]]
    until: float = 600.0
    slowest_s: float | None = None  # of a good file, from its arrival
    since: float = 0.0  # or from then, whichever is later
    parked: int | None = None  # how many bad files are parked at the end

    def check(self, simulated: Simulated) -> str:
        """One line of figures. Raises AssertionError where it does not hold."""
        for when, path in self.drops:
            simulated.drop(when, path)
        simulated.run(self.until)
        files = simulated.files()
        good = [file for path, file in files.items() if not path.startswith("bad")]
        bad = [file for path, file in files.items() if path.startswith("bad")]
        sent = [file for file in good if file.state == "uploaded"]
        slowest_s = max((file.done - max(file.dropped, self.since) for file in sent), default=0.0)
        parked = sum(file.state == "parked" for file in bad)
        line = (
            f"{self.name:48s} good {len(sent)}/{len(good)}, slowest {slowest_s:7.1f} s; "
            f"bad parked {parked}/{len(bad)}; {simulated.counts()}"
        )
        assert len(sent) == len(good), line
        assert self.slowest_s is None or slowest_s <= self.slowest_s, line
        assert self.parked is None or parked == self.parked, line
        return line


KINDS = ((REFUSED, "413"), (UNKNOWN, "500"), (EVERYBODY, "403"))


def _crowds() -> list[Scenario]:
    scenarios = []
    for (kind, code), count in itertools.product(KINDS, (1, 5, 40, 300, 3000)):
        drops = [(0.0, "first"), *((1.0, f"bad{number}") for number in range(count))]
        drops += [(7.0 + 3 * number, f"good{number}") for number in range(20)]
        parked = count if kind == REFUSED and count <= 300 else None
        name = f"{count} x {code}, then a good file each 3 s"
        scenarios.append(Scenario(name, poison(kind, code), drops, slowest_s=12, parked=parked))
    for kind, code in KINDS:
        bad = [(0.0, f"bad{number}") for number in range(300)]
        good = [(0.0, f"good{number}") for number in range(300)]
        mixed = [drop for pair in zip(bad, good, strict=True) for drop in pair]
        name = f"300 x {code} mixed with 300 good at the start"
        scenarios.append(Scenario(name, poison(kind, code), mixed, slowest_s=60))
        name = f"300 x {code} before 300 good at the start"
        scenarios.append(Scenario(name, poison(kind, code), bad + good, slowest_s=60))
    drops = [(0.0, f"bad{number}") for number in range(5)]
    scenarios.append(Scenario("5 x 413 and nothing else, 60 s", poison(REFUSED, "413"), drops, until=60, parked=5))
    return scenarios


def _outages() -> list[Scenario]:
    scenarios = []
    for kind, code in KINDS:
        for count in (1, 3, 1000):
            drops = [(number * 0.1, f"before{number}") for number in range(50)]
            drops += [(11 + number * 0.01, f"during{number}") for number in range(count)]
            since = 100.0
            if kind == REFUSED and count < STREAK:
                drops.append((130.0, "after"))  # its success releases what was parked provisionally
                since = 130.0
            name = f"outage {code} for 90 s, {count} files in it"
            scenarios.append(Scenario(name, outage(kind, code), drops, slowest_s=15, since=since))
        drops = [(0.0, f"bad{number}") for number in range(20)]
        drops += [(number * 0.02, f"good{number}") for number in range(2000)]
        name = f"outage {code}, 20 poison files, steady stream"
        server = outage(kind, code, bad=(REFUSED, "400"))
        scenarios.append(Scenario(name, server, drops, slowest_s=15, since=100, parked=20))
    return scenarios


def _slow_and_flaky() -> list[Scenario]:
    scenarios = []
    for count, slowest_s in ((40, 12), (90, 12), (300, 120)):
        drops = [(0.0, "first"), *((1.0, f"bad{number}") for number in range(count))]
        drops += [(7.0 + 3 * number, f"good{number}") for number in range(60)]
        name = f"{count} never answered, a good file each 3 s"
        scenarios.append(Scenario(name, silent, drops, slowest_s=slowest_s))
    drops = [(number * 0.005, f"good{number}") for number in range(3000)]
    scenarios.append(Scenario("half of all answers 500", flaky(0.5), drops, until=3600))
    scenarios.append(Scenario("98 % of all answers 500", flaky(0.98), drops[:100], until=100_000))
    return scenarios


SCENARIOS = [*_crowds(), *_outages(), *_slow_and_flaky()]


if __name__ == "__main__":
    failed = 0
    for scenario in SCENARIOS:
        try:
            print("ok  ", scenario.check(Simulation(scenario.server)))  # noqa: T201 - a program for people
        except AssertionError as exc:
            failed += 1
            print("FAIL", exc)  # noqa: T201
    sys.exit(failed > 0)
