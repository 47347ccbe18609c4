"""Whose fault is a failure? The four rules of `CircuitBreaker`, written a second time and simply: the reference.

`Rules` keeps the evidence and decides; `SCENARIOS` are played by the real parts, in virtual time (support/virtual.py).
Times are seconds; a server is a function (path, now, rng) that answers "ok" or (kind, code) or (kind, code, seconds it
takes). An answer takes 30 ms.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EVERYBODY = "everybody"  # no file could pass (403, DNS, NoSuchBucket ...)
REFUSED = "refused"  # S3 says that it will never take this file (400, 413 ...)
UNKNOWN = "unknown"  # one answer does not tell (5xx, time-outs, broken answers)
ITSELF = "itself"  # the file itself shows it (unreadable ...)

STREAK = 8
LONGEST_ROUND_S = 10.0
PROVISIONAL = 3

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
