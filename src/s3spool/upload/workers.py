"""The pool: exactly `workers` threads that take, open, send and judge, one file at a time each."""

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
from s3spool.s3.content import Bucket, Sender
from s3spool.upload.cpu_affinity import CpuAffinity
from s3spool.upload.large import PartJob
from s3spool.upload.leader_followers import LeaderFollowers
from s3spool.upload.small import Job, SmallUploads
from s3spool.upload.stats import Stats

CLOSE_S = 0.05  # closing all connections takes less
HANGS_S = 3.0  # libcurl uses the CPU each second: a worker that does not is inside a file system
log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Seat:
    """What one worker has: a file in hands, and a sender for each way of sending it."""

    number: int
    job: Job | PartJob | None = None
    alone: Sender | None = None  # blocks until the answer is there
    rider: Sender | None = None  # on the wheel, with the others'

    def cool(self) -> None:
        """Close the connections; new ones are made when they are needed."""
        senders, self.alone, self.rider = (self.alone, self.rider), None, None
        for sender in filter(None, senders):
            sender.close()


class Workers:
    """Starts, watches and stops the pool.

    All Python work of small files runs under one lock, the gate, and most of it in one thread, the driver of the
    wheel: a hundred threads that wake for their answers and fight for the GIL lose most of the speed to context
    switches. Larger bodies block a thread each, and need the GIL for moments only.
    """

    def __init__(
        self,
        count: int,
        bucket: Bucket,
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
        """`limited`: whether the bandwidth is; `hang_timeout_s`: longer than any request may take without progress."""
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
        self._seats = [Seat(number) for number in range(count)]
        carrier = bucket.carrier()
        self._wheel = LeaderFollowers(carrier, self._gate, count, self._arrived) if carrier else None
        self._limited = limited
        self._ending: threading.Thread | None = None
        self.heartbeat = Heartbeat()  # of the workers that hold the gate
        self.hang_detector = HangDetector(hang_timeout_s)
        self._slow = slow or SlowDirectories()
        self._slow_hang_detector = HangDetector(HANGS_S)
        self.closed_idle = 0  #: how often a worker has closed its connections, because nothing came

    def start(self) -> None:
        """Raises S3SpoolError where the system has no thread left to give."""
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
        """Start a new thread for each that has died; returns how many. Called by the supervisor, again and again."""
        replaced = 0
        for number, thread in enumerate(self._threads):
            if not thread.is_alive() and not self._closing:
                slot, self._seats[number] = self._seats[number], Seat(number)
                if slot.job is not None:
                    slot.job.abandon()
                new = self._new_thread(number)
                try:
                    new.start()
                except RuntimeError:  # there is none to be had at the moment
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
        """Names of workers that have a file, but neither send it nor wait for a response. For the supervisor."""
        members = self._wheel.members() if self._wheel else set()
        busy: list[tuple[threading.Thread, object]] = [
            (thread, slot.job)
            for thread, slot in zip(self._threads, self._seats, strict=True)
            if (job := slot.job) is not None and slot.number not in members and not self._slow.holds(job.item.path)
        ]
        leader = self._wheel.leader if self._wheel else None
        if leader is not None:
            busy.append((self._threads[leader], self._wheel))
        names = {thread.native_id or 0: thread.name for thread, _ in busy}
        return [names[number] for number in self.hang_detector.find(((t.native_id or 0, job) for t, job in busy), now)]

    def hanging_files(self, now: float) -> list[str]:
        """The paths of those files of slow directories over which a worker hangs. For the supervisor alone."""
        if not self._slow.any:
            return []
        members = self._wheel.members() if self._wheel else set()
        jobs = {
            thread.native_id or 0: job
            for thread, slot in zip(self._threads, self._seats, strict=True)
            if (job := slot.job) is not None and slot.number not in members and self._slow.holds(job.item.path)
        }
        return sorted({jobs[number].item.path for number in self._slow_hang_detector.find(jobs.items(), now)})

    def only_hanging(self, now: float) -> bool:
        """Whether all workers that have not ended hang over files of slow directories. For the supervisor alone."""
        hanging = set(self.hanging_files(now))
        slots = [slot for thread, slot in zip(self._threads, self._seats, strict=True) if thread.is_alive()]
        return bool(slots) and all((job := slot.job) is not None and job.item.path in hanging for slot in slots)

    def jobs(self) -> list[Job | PartJob]:
        """What is being sent at this moment."""
        return [job for slot in self._seats if (job := slot.job) is not None]

    def close(self, remaining_s: Callable[[], float]) -> bool:
        """Let each worker finish its file; False when the time was over before all had.

        The inbox must be closed by now. Workers that are still sending then die with the process: their files
        are in the folder, and are sent again.
        """
        self._closing = True
        for thread in self._threads:
            thread.join(max(0.0, remaining_s()))
        if self.alive():
            return False
        if self._wheel is None:
            return True
        if self._ending is None:
            # libcurl waits for names that are still looked up, even where it has given up: that may take minutes.
            self._ending = threading.Thread(target=self._wheel.close, name="upload-end", daemon=True)
            self._ending.start()
        self._ending.join(max(CLOSE_S, remaining_s()))
        return not self._ending.is_alive()

    def _new_thread(self, number: int) -> threading.Thread:
        name = f"upload-{number:03d}"
        return threading.Thread(target=self._run, args=(number,), name=name, daemon=True)

    def _run(self, number: int) -> None:
        slot = self._seats[number]
        try:
            self._loop(slot)
        finally:
            slot.cool()

    def _loop(self, slot: Seat) -> None:
        while True:
            job, rides = slot.job, False
            if job is None:
                rides = self._wait(slot)
                if self._closing and slot.job is None:
                    return
            elif job.answer is not None:
                # The answer alone did not prove it: ask S3, or read the file again, while the others go on.
                job.finish_slowly()
                slot.job = None
            else:
                rides = self._send_alone(slot, job)
            job = None
            if rides and self._wheel and not self._wheel.join(slot.number):
                job, slot.job = slot.job, None
                if job is not None:
                    job.abandon()

    def _wait(self, slot: Seat) -> bool:
        """Nothing to do, or nothing allowed: block until there is, or the inbox is closed. True if it rides."""
        if slot.alone is not None:
            slot.alone.rest()
        if slot.number >= self._limiter.limit:
            slot.cool()  # connections or descriptors are scarce: the workers that may send need them
        self._limiter.admit(slot.number)
        item = self._inbox.take(partial(self._cool, slot) if slot.alone or slot.rider else None)
        rides = False
        if item is None:
            self._closing = True
        else:
            with self._gate:
                # Failures are judged under the gate: after a slow-down nothing more goes out.
                held = slot.number >= self._limiter.limit and not self._breaker.open
                if not (held and self._inbox.put_back(item, first=True)):
                    rides = self._begin(slot, item)
                    self._board(slot, rides)
        return rides

    def _cool(self, slot: Seat) -> None:
        slot.cool()
        self.closed_idle += 1  # two at once may count as one: it matters only that it changes

    def _send_alone(self, slot: Seat, job: Job | PartJob) -> bool:
        """Block until the answer is there, and judge it. True if the worker's next file rides."""
        sender = slot.alone = slot.alone or self._bucket.transport()
        if job.request is not None:
            sender.send()
        else:
            # A large body needs no GIL for most of the time: any CPU may do it.
            with self._cpu_affinity.roaming():
                loaded = job.load(sender)
                if loaded:
                    sender.send()
            if not loaded:
                slot.job = None
                return False
        with self._gate:
            rides = self._arrived(slot.number, sender)
            self._board(slot, rides)
        return rides

    # The callers of these hold the gate.

    def _arrived(self, number: int, sender: Sender) -> bool:
        """Judge the answer, and prepare this worker's next file in the same turn. True if that one rides."""
        self.heartbeat.beat()
        slot = self._seats[number]
        if slot.job is None or not slot.job.finish(sender.answer()):
            return False
        slot.job = None
        if self._breaker.open or number >= self._limiter.limit:
            return False
        item = self._inbox.take_nowait()
        return item is not None and self._begin(slot, item)

    def _begin(self, slot: Seat, item: Item | PartItem) -> bool:
        """Open the file; what is small is prepared. True if it is to ride."""
        self.heartbeat.beat()
        job = slot.job = self._upload.begin(item)
        if job is None or job.request is None:
            return False
        if self._wheel is None or self._limited():
            slot.alone = slot.alone or self._bucket.transport()
            slot.alone.prepare(job.request)
            return False
        slot.rider = slot.rider or self._bucket.transport()
        slot.rider.prepare(job.request)
        return True

    def _board(self, slot: Seat, rides: bool) -> None:
        if rides and self._wheel and slot.rider:
            self._wheel.submit(slot.number, slot.rider)
