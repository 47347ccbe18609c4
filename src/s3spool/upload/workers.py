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
from s3spool.heartbeat import Stall
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from s3spool.queue.parts import PartItem
from s3spool.s3.content import Bucket, Sender
from s3spool.upload.cpu_affinity import Cores
from s3spool.upload.large import PartJob
from s3spool.upload.leader_followers import Wheel
from s3spool.upload.small import Job, Upload
from s3spool.upload.stats import Stats

CLOSE_S = 0.05  # closing all connections takes less
HANGS_S = 3.0  # libcurl, too, uses the CPU each second: a worker that does not is inside a file system
PING_S = 1.0  # nobody holds the gate for longer who is well
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
        upload: Upload,
        breaker: CircuitBreaker,
        stats: Stats,
        cores: Cores,
        *,
        limited: Callable[[], bool] = lambda: False,
        stall_s: float = 90.0,
        slow: SlowDirectories | None = None,
    ) -> None:
        """`limited`: whether the bandwidth is; `stall_s`: longer than any request may take without progress."""
        self._count = count
        self._bucket = bucket
        self._inbox = inbox
        self._upload = upload
        self._breaker = breaker
        self._limiter = breaker.limiter
        self._limiter.widen(count)
        self._stats = stats
        self._cores = cores
        self._gate = threading.Lock()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._seats = [Seat(number) for number in range(count)]
        carrier = bucket.carrier()
        self._wheel = Wheel(carrier, self._gate, count, self._arrived) if carrier else None
        self._limited = limited
        self._ending: threading.Thread | None = None
        self.stall = Stall(stall_s)
        self._slow = slow or SlowDirectories()
        self._slow_stall = Stall(HANGS_S)
        self.cooled = 0  #: how often a worker has closed its connections, because nothing came

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
                seat, self._seats[number] = self._seats[number], Seat(number)
                if seat.job is not None:
                    seat.job.abandon()
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

    def ping(self, answer: Callable[[], None]) -> None:
        """Call back once the gate can be had: whoever hangs in it holds all workers up."""

        def ask() -> None:
            with self._gate:
                answer()

        try:
            threading.Thread(target=ask, name="ping", daemon=True).start()
        except RuntimeError:  # there is no thread to be had: that must not end those that there are
            if self._gate.acquire(timeout=PING_S):
                self._gate.release()
                answer()

    def hanging(self, now: float) -> list[str]:
        """The names of those that neither send nor wait for an answer, but have a file. For the supervisor alone."""
        riders = self._wheel.riders() if self._wheel else set()
        hands: list[tuple[threading.Thread, object]] = [
            (thread, seat.job)
            for thread, seat in zip(self._threads, self._seats, strict=True)
            if (job := seat.job) is not None and seat.number not in riders and not self._slow.holds(job.item.path)
        ]
        driver = self._wheel.driver if self._wheel else None
        if driver is not None:
            hands.append((self._threads[driver], self._wheel))
        names = {thread.native_id or 0: thread.name for thread, _ in hands}
        return [names[number] for number in self.stall.look(((t.native_id or 0, what) for t, what in hands), now)]

    def hanging_files(self, now: float) -> list[str]:
        """The paths of those files of slow directories over which a worker hangs. For the supervisor alone."""
        if not self._slow.any:
            return []
        riders = self._wheel.riders() if self._wheel else set()
        jobs = {
            thread.native_id or 0: job
            for thread, seat in zip(self._threads, self._seats, strict=True)
            if (job := seat.job) is not None and seat.number not in riders and self._slow.holds(job.item.path)
        }
        return sorted({jobs[number].item.path for number in self._slow_stall.look(jobs.items(), now)})

    def only_hanging(self, now: float) -> bool:
        """Whether all workers that have not ended hang over files of slow directories. For the supervisor alone."""
        hanging = set(self.hanging_files(now))
        seats = [seat for thread, seat in zip(self._threads, self._seats, strict=True) if thread.is_alive()]
        return bool(seats) and all((job := seat.job) is not None and job.item.path in hanging for seat in seats)

    def jobs(self) -> list[Job | PartJob]:
        """What is being sent at this moment."""
        return [job for seat in self._seats if (job := seat.job) is not None]

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
        seat = self._seats[number]
        try:
            self._loop(seat)
        finally:
            seat.cool()

    def _loop(self, seat: Seat) -> None:
        while True:
            job, rides = seat.job, False
            if job is None:
                rides = self._wait(seat)
                if self._closing and seat.job is None:
                    return
            elif job.answer is not None:
                # The answer alone did not prove it: ask S3, or read the file again, while the others go on.
                job.finish_slowly()
                seat.job = None
            else:
                rides = self._send_alone(seat, job)
            job = None
            if rides and self._wheel and not self._wheel.ride(seat.number):
                job, seat.job = seat.job, None
                if job is not None:
                    job.abandon()

    def _wait(self, seat: Seat) -> bool:
        """Nothing to do, or nothing allowed: block until there is, or the inbox is closed. True if it rides."""
        if seat.alone is not None:
            seat.alone.rest()
        if seat.number >= self._limiter.limit:
            seat.cool()  # connections or descriptors are scarce: the workers that may send need them
        self._limiter.admit(seat.number)
        item = self._inbox.take(partial(self._cool, seat) if seat.alone or seat.rider else None)
        rides = False
        if item is None:
            self._closing = True
        else:
            with self._gate:
                # Failures are judged under the gate: after a slow-down nothing more goes out.
                held = seat.number >= self._limiter.limit and not self._breaker.open
                if not (held and self._inbox.put_back(item, first=True)):
                    rides = self._begin(seat, item)
                    self._board(seat, rides)
        return rides

    def _cool(self, seat: Seat) -> None:
        seat.cool()
        self.cooled += 1  # two at once may count as one: it matters only that it changes

    def _send_alone(self, seat: Seat, job: Job | PartJob) -> bool:
        """Block until the answer is there, and judge it. True if the worker's next file rides."""
        sender = seat.alone = seat.alone or self._bucket.transport()
        if job.request is not None:
            sender.send()
        else:
            # A large body needs no GIL for most of the time: any CPU may do it.
            with self._cores.roaming():
                loaded = job.load(sender)
                if loaded:
                    sender.send()
            if not loaded:
                seat.job = None
                return False
        with self._gate:
            rides = self._arrived(seat.number, sender)
            self._board(seat, rides)
        return rides

    # The callers of these hold the gate.

    def _arrived(self, number: int, sender: Sender) -> bool:
        """Judge the answer, and prepare this worker's next file in the same turn. True if that one rides."""
        seat = self._seats[number]
        if seat.job is None or not seat.job.finish(sender.answer()):
            return False
        seat.job = None
        if self._breaker.open or number >= self._limiter.limit:
            return False
        item = self._inbox.take_nowait()
        return item is not None and self._begin(seat, item)

    def _begin(self, seat: Seat, item: Item | PartItem) -> bool:
        """Open the file; what is small is prepared. True if it is to ride."""
        job = seat.job = self._upload.begin(item)
        if job is None or job.request is None:
            return False
        if self._wheel is None or self._limited():
            seat.alone = seat.alone or self._bucket.transport()
            seat.alone.prepare(job.request)
            return False
        seat.rider = seat.rider or self._bucket.transport()
        seat.rider.prepare(job.request)
        return True

    def _board(self, seat: Seat, rides: bool) -> None:
        if rides and self._wheel and seat.rider:
            self._wheel.board(seat.number, seat.rider)
