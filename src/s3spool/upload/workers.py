"""The pool: exactly `workers` threads, each of which takes, opens and sends one file at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from s3spool.errors import S3SpoolError
from s3spool.failure.breaker import CircuitBreaker
from s3spool.folder.slow_directories import SlowDirectories
from s3spool.heartbeat import HangDetector, Heartbeat
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.parts import PartItem
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.store import Store
from s3spool.upload.cpu_affinity import CpuAffinity
from s3spool.upload.large import PartJob
from s3spool.upload.leader_followers import LeaderFollowers
from s3spool.upload.small import Job, SmallUploads
from s3spool.upload.stats import Stats

CLOSE_S = 0.05  # enough to close all connections
HANGS_S = 3.0  # a worker that waits for S3 uses the CPU each second: libcurl checks its clock
log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Slot:
    """The state of one worker: its file, and a sender for each way of sending."""

    number: int
    job: Job | PartJob | None = None
    blocking: CurlTransport | None = None  # blocks until the response arrives
    multiplexed: CurlTransport | None = None  # submitted to the leader

    def close_connections(self) -> None:
        """Close the connections; new ones are made when they are needed."""
        senders, self.blocking, self.multiplexed = (self.blocking, self.multiplexed), None, None
        for sender in filter(None, senders):
            sender.close()


class Workers:
    """Starts, watches and stops the pool.

    All Python work for small files runs under one lock, the gate, and most of it in one thread, the leader: a hundred
    threads that wake for each response lose most of the speed to context switches. Larger bodies block a thread each,
    and rarely need the GIL.
    """

    def __init__(
        self,
        count: int,
        bucket: Store,
        inbox: Inbox,
        upload: SmallUploads,
        breaker: CircuitBreaker,
        stats: Stats,
        cpu_affinity: CpuAffinity,
        *,
        limited: Callable[[], bool] = lambda: False,
        hang_timeout_s: float = 90.0,
        slow: SlowDirectories | None = None,
    ) -> None:
        """`limited`: whether the bandwidth is limited; `hang_timeout_s`: more than a request lasts without progress."""
        self._count = count
        self._bucket = bucket
        self._inbox = inbox
        self._upload = upload
        self._breaker = breaker
        self._limiter = breaker.limiter
        self._limiter.widen(count)
        self._stats = stats
        self._cpu_affinity = cpu_affinity
        self._gate = threading.Lock()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._slots = [Slot(number) for number in range(count)]
        self._leader_followers = LeaderFollowers(
            bucket.multiplexer(), self._gate, count, self._on_response, self._begin_next
        )
        self._limited = limited
        self._ending: threading.Thread | None = None
        self.heartbeat = Heartbeat()  # of the workers that hold the gate
        self.hang_timeout_s = hang_timeout_s
        self._hang_detector = HangDetector()
        self._slow = slow or SlowDirectories()
        self.closed_idle = 0  #: how often an idle worker has closed its connections

    def start(self) -> None:
        """Raises S3SpoolError where the system has no thread left."""
        for number in range(self._count):
            thread = self._new_thread(number)
            try:
                thread.start()
            except RuntimeError as exc:
                raise S3SpoolError(
                    f"upload.workers = {self._count}: no thread is left to give after {number};"
                    " lower it, or raise TasksMax= in the unit (ulimit -u)"
                ) from exc
            self._threads.append(thread)

    def replace_dead(self) -> int:
        """Start a new thread for each that has died; returns how many. Called by the supervisor at each tick."""
        replaced = 0
        for number, thread in enumerate(self._threads):
            if not thread.is_alive() and not self._closing:
                slot, self._slots[number] = self._slots[number], Slot(number)
                if slot.job is not None:
                    slot.job.abandon()
                new = self._new_thread(number)
                try:
                    new.start()
                except RuntimeError:  # no thread left: the next tick tries again
                    continue
                self._threads[number] = new
                self._stats.workers_replaced += 1
                log.error("worker.replaced", worker=thread.name)
                replaced += 1
        return replaced

    def alive(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def look_at_gate(self) -> None:
        """Refresh the heartbeat while no worker holds the gate; a worker that hangs in it blocks all others."""
        if not self._gate.locked():
            self.heartbeat.beat()

    def hanging(self, now: float) -> list[str]:
        """The names of workers that hold a file and hang. Only the supervisor calls it."""
        stuck = self._stuck(now, self.hang_timeout_s)
        return [name for name, path in stuck if path is None or not self._slow.holds(path)]

    def hanging_files(self, now: float) -> list[str]:
        """The paths of slow files in which a worker hangs. Only the supervisor calls it."""
        paths = {path for _, path in self._stuck(now, HANGS_S) if path is not None} if self._slow.any else ()
        return sorted(path for path in paths if self._slow.holds(path))

    def only_hanging(self, now: float) -> bool:
        """Whether every live worker hangs in a slow file. Only the supervisor calls it."""
        hanging = set(self.hanging_files(now))
        slots = [slot for thread, slot in zip(self._threads, self._slots, strict=True) if thread.is_alive()]
        return bool(slots) and all((job := slot.job) is not None and job.item.path in hanging for slot in slots)

    def jobs(self) -> list[Job | PartJob]:
        """The files and parts that are being sent."""
        return [job for slot in self._slots if (job := slot.job) is not None]

    def close(self, remaining_s: Callable[[], float]) -> bool:
        """Let each worker finish its file; False after the timeout. The inbox must be closed.

        The process ends with the workers that still send: their files are in the folder, and are sent again.
        """
        self._closing = True
        for thread in self._threads:
            thread.join(max(0.0, remaining_s()))
        if self.alive():
            return False
        if self._ending is None:
            # On close, libcurl waits for unfinished name lookups, which may take minutes.
            self._ending = threading.Thread(target=self._leader_followers.close, name="upload-end", daemon=True)
            self._ending.start()
        self._ending.join(max(CLOSE_S, remaining_s()))
        return not self._ending.is_alive()

    def _stuck(self, now: float, for_s: float) -> list[tuple[str, str | None]]:
        """The name and file of each worker that has used no CPU for so long; the leader has no file of its own."""
        members, leader = self._leader_followers.members(), self._leader_followers.leader
        busy: dict[int, tuple[object, str, str | None]] = {}
        for thread, slot in zip(self._threads, self._slots, strict=True):
            job = slot.job
            if slot.number == leader:
                busy[thread.native_id or 0] = self._leader_followers, thread.name, None
            elif job is not None and slot.number not in members:
                busy[thread.native_id or 0] = job, thread.name, job.item.path
        jobs = [(number, job) for number, (job, _, _) in busy.items()]
        return [busy[number][1:] for number in self._hang_detector.find(jobs, now, for_s)]

    def _new_thread(self, number: int) -> threading.Thread:
        name = f"upload-{number:03d}"
        return threading.Thread(target=self._run, args=(number,), name=name, daemon=True)

    def _run(self, number: int) -> None:
        slot = self._slots[number]
        try:
            self._loop(slot)
        finally:
            slot.close_connections()

    def _loop(self, slot: Slot) -> None:
        while True:
            job, multiplexed = slot.job, False
            if job is None:
                multiplexed = self._wait(slot)
                if self._closing and slot.job is None:
                    return
            elif job.response is not None:
                # The response alone proves nothing: ask S3, or read the file again, outside the gate.
                job.finish_blocking()
                slot.job = None
            else:
                multiplexed = self._send_blocking(slot, job)
            job = None
            if multiplexed and not self._leader_followers.join(slot.number):
                job, slot.job = slot.job, None
                if job is not None:
                    job.abandon()

    def _wait(self, slot: Slot) -> bool:
        """Block until there is an item, and begin it. True if its request is multiplexed."""
        if slot.blocking is not None:
            slot.blocking.release_buffers()
        if slot.number >= self._limiter.limit:
            slot.close_connections()  # connections or descriptors are scarce: active workers need them
        self._limiter.admit(slot.number)
        item = self._inbox.take(partial(self._close_idle, slot) if slot.blocking or slot.multiplexed else None)
        multiplexed = False
        if item is None:
            self._closing = True
        else:
            with self._gate:
                self.heartbeat.beat()
                # Responses are handled under the gate: after a slow-down response no further request is sent.
                held = slot.number >= self._limiter.limit and not self._breaker.open
                if not (held and self._inbox.put_back(item, first=True)):
                    multiplexed = self._begin(slot, item)
                    self._submit(slot, multiplexed)
        return multiplexed

    def _close_idle(self, slot: Slot) -> None:
        slot.close_connections()
        self.closed_idle += 1  # no lock: the supervisor only needs to see a change

    def _send_blocking(self, slot: Slot, job: Job | PartJob) -> bool:
        """Send, block and handle the response. True if the request of the next file is multiplexed."""
        sender = slot.blocking = slot.blocking or self._bucket.transport()
        if job.request is not None:
            sender.send()
        else:
            # A large body rarely needs the GIL: any CPU may send it.
            with self._cpu_affinity.roaming():
                loaded = job.load(sender)
                if loaded:
                    sender.send()
            if not loaded:
                slot.job = None
                return False
        with self._gate:
            multiplexed = self._on_response(slot.number, sender) and self._begin_next(slot.number)
            self._submit(slot, multiplexed)
        return multiplexed

    # The callers of these hold the gate.

    def _on_response(self, number: int, sender: CurlTransport) -> bool:
        """Handle the response. True if the worker has nothing else to do with this file."""
        self.heartbeat.beat()
        slot = self._slots[number]
        if slot.job is None or not slot.job.finish(sender.answer()):
            return False
        slot.job = None
        return True

    def _begin_next(self, number: int) -> bool:
        """Prepare the worker's next file. True if its request is multiplexed."""
        if self._breaker.open or number >= self._limiter.limit:
            return False
        item = self._inbox.take_nowait()
        return item is not None and self._begin(self._slots[number], item)

    def _begin(self, slot: Slot, item: Item | PartItem) -> bool:
        """Open the file, and prepare the request of a small one. True if it is multiplexed."""
        job = slot.job = self._upload.begin(item)
        if job is None or job.request is None:
            return False
        if self._limited():
            slot.blocking = slot.blocking or self._bucket.transport()
            slot.blocking.prepare(job.request)
            return False
        slot.multiplexed = slot.multiplexed or self._bucket.transport()
        slot.multiplexed.prepare(job.request)
        return True

    def _submit(self, slot: Slot, multiplexed: bool) -> None:
        if multiplexed and slot.multiplexed:
            self._leader_followers.submit(slot.number, slot.multiplexed)
