"""The real circuit breaker, queue, retry list and ledger in virtual time; workers and server are simulated."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from s3spool.config.schema import RetryConfig
from s3spool.errors import Scope, UploadError
from s3spool.failure import breaker
from s3spool.failure.concurrency_limiter import ConcurrencyLimiter
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import NO_FAILURES, Identity, State
from s3spool.ledger.store import Ledger
from s3spool.queue import inbox
from s3spool.queue.item import Item, Lane
from s3spool.queue.parts import PartItem
from s3spool.s3.content import Stored
from s3spool.upload import result as results
from s3spool.upload import retry
from s3spool.upload.stats import Stats
from support.failure_model import EVERYBODY, ITSELF, REFUSED, UNKNOWN, Answer, File, Server

EPOCH = 1_000_000_000.0
SAME = Identity(1, 1, 1, 1, 1)
SCOPES = {EVERYBODY: Scope.EVERYBODY, REFUSED: Scope.UNKNOWN, UNKNOWN: Scope.UNKNOWN, ITSELF: Scope.FILE}


class InlineLedger(Ledger):
    """The real statements and file, without a thread: each row is committed at once, without fsync."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, destination="virtual")
        self._db.execute("PRAGMA synchronous = OFF")

    def _put(self, table: str, statement: str, row: tuple[Any, ...], committed: Callable[[], None] | None) -> None:
        from s3spool.ledger.store import _Work  # noqa: PLC0415 - private, and only here

        self._commit([_Work(table, statement, row, committed)])
        if committed is not None:
            committed()

    def end(self) -> None:
        self._db.close()


class Pipeline:
    """What decides over failures, wired as in production; `now` is the time for all of it."""

    def __init__(self, directory: Path, *, workers: int = 100, max_attempts: int = 0) -> None:
        self.directory, self.workers = directory, workers
        self.now = 0.0
        self.rng = random.Random(1)
        self.policy = RetryConfig(initial_s=1.0, max_s=300.0, max_attempts=max_attempts)
        clock = SimpleNamespace(time=self.time, monotonic=self.time)
        self._patches = ExitStack()
        for module in (breaker, inbox, results, retry):
            self._patches.enter_context(mock.patch.object(module, "time", clock))
        self._patches.enter_context(mock.patch.object(breaker, "log", mock.Mock()))
        self._patches.enter_context(mock.patch.object(results, "log", mock.Mock()))
        self.woken = False
        self.start()

    def time(self) -> float:
        return EPOCH + self.now

    def start(self) -> None:
        limiter = ConcurrencyLimiter("virtual", max_s=300.0)
        limiter.widen(self.workers)
        self.breaker = breaker.CircuitBreaker("virtual", initial_s=1.0, max_s=300.0, limiter=limiter, rng=self.rng)
        self.inbox = inbox.Inbox(100_000, self.workers, self.breaker, rng=self.rng)
        self.ledger = InlineLedger(self.directory / "ledger.sqlite3")
        self.retry = retry.RetryThread(self.ledger, self.inbox, self.policy)
        self.retry.wake = self._wake  # type: ignore[method-assign] # there is no thread
        self.reader = Reader(self.ledger.path)
        done = self.inbox.done
        after: Any = SimpleNamespace(action_of=lambda _: "keep", receipt_committed=lambda sent: done(sent.receipt.path))
        self.results = results.ResultHandler(
            self.ledger,
            self.inbox,
            mock.Mock(),
            self.breaker,
            after,
            self.retry,
            Stats(),
            rescan=mock.Mock(),
        )
        self.results._rng = self.rng

    def restart(self) -> None:
        """As after kill -9: what was in memory is gone."""
        self.reader.close()
        self.ledger.end()
        self.start()

    def close(self) -> None:
        self.reader.close()
        self.ledger.end()
        self._patches.close()

    def offer(self, path: str) -> None:
        self.inbox.offer_nowait([Item(path, Lane.ARRIVED)])

    def take(self) -> tuple[Item, breaker.Times] | None:
        """What a worker does before it sends."""
        item = self.inbox.take_nowait()
        if item is None:
            return None
        assert not isinstance(item, PartItem)
        if item.tried:
            item = item._replace(success_before=self.breaker.last_success_at)
        return item, breaker.Times(self.time(), self.time())

    def answered(self, item: Item, times: breaker.Times, answer: Answer) -> None:
        """What a worker does with the answer."""
        if answer == "ok":
            self.breaker.succeeded(times)
            proof = Stored("key", "etag", "md5:", "")
            self.results.record_success(item, SAME, proof, times)
            return
        kind, code = answer[:2]
        error = UploadError("upload", item.path, code, "no", SCOPES[kind], permanent=kind == REFUSED)
        self.results.failed(item, SAME, error, times.monotonic_s)

    def tick(self) -> float | None:
        """One look of the retry thread; seconds until the next."""
        self.woken = False
        return self.retry.tick(self.reader, self.time())

    def _wake(self) -> None:
        self.woken = True


class RealSimulation:
    """`Simulation` of the reference, with the real parts."""

    def __init__(self, directory: Path, server: Server, *, seed: int = 1) -> None:
        self.pipeline = Pipeline(directory)
        self.server, self.rng = server, random.Random(seed)
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.dropped: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.busy = self.openings = self.requests = 0
        self.next_tick = 0.0
        self.next_look = float("inf")
        self.pipeline.breaker.on_change(self._count_opening)

    def drop(self, when: float, path: str) -> None:
        self._at(when, self._arrive, path)

    def run(self, until: float) -> None:
        pipeline = self.pipeline
        while True:
            event = self.events[0][0] if self.events else float("inf")
            now = min(event, self.next_tick, self.next_look)
            if now > until:
                break
            pipeline.now = max(pipeline.now, now)
            while self.events and self.events[0][0] <= pipeline.now:
                _, _, act, args = heapq.heappop(self.events)
                act(*args)
            if pipeline.woken or self.next_tick <= pipeline.now:
                wait_s = pipeline.tick()
                self.next_tick = float("inf") if wait_s is None else pipeline.now + max(wait_s, 0.001)
            self._send_what_may_go()
        pipeline.now = until

    def files(self) -> dict[str, File]:
        pipeline = self.pipeline
        states = {row.path: row for row in pipeline.reader.retries()}
        files: dict[str, File] = {}
        for path, dropped in self.dropped.items():
            state = "uploaded" if path in self.done else pipeline.inbox.state_of(path) or states[path].state.value
            files[path] = File(dropped, state, self.done.get(path, 0.0))
        return files

    def counts(self) -> str:
        return f"openings {self.openings}, requests {self.requests}"

    def _count_opening(self) -> None:
        self.openings += self.pipeline.breaker.open and self.pipeline.breaker.paused_at == self.pipeline.time()

    def _at(self, when: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (when, next(self.order), act, args))

    def _arrive(self, path: str) -> None:
        self.dropped[path] = self.pipeline.now
        self.pipeline.offer(path)

    def _send_what_may_go(self) -> None:
        pipeline = self.pipeline
        while self.busy < pipeline.workers and (taken := pipeline.take()) is not None:
            self.busy += 1
            self.requests += 1
            answer = self.server(taken[0].path, pipeline.now, self.rng)
            takes_s = answer[2] if len(answer) == 3 else 0.03
            self._at(pipeline.now + takes_s * self.rng.uniform(0.8, 1.2), self._answered, *taken, answer)
        queued = pipeline.inbox.counts()[0]
        probing = pipeline.breaker.open and queued and self.busy < pipeline.workers
        wait_s = max(pipeline.breaker.next_probe_s, 0.001)
        self.next_look = pipeline.now + wait_s if probing else float("inf")

    def _answered(self, item: Item, times: breaker.Times, answer: Answer) -> None:
        self.busy -= 1
        if answer == "ok":
            self.done[item.path] = self.pipeline.now
        self.pipeline.answered(item, times, answer)


def evidence(pipeline: Pipeline, path: str) -> tuple[str, int, int, bool]:
    """(state, attempts, own failures, provisional) as the ledger has them."""
    known = pipeline.reader.known([path]).get(path)
    if known is None or known.retry is None:
        return "uploaded" if known and known.receipt else "unknown", *NO_FAILURES[:1], 0, False
    row = known.retry
    return State(row.state).value, row.attempts, row.own_failures, row.provisional
