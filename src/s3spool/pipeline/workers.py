"""The pool: exactly `workers` threads that take, open, send and judge, one file at a time each."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from s3spool.content import Bucket, Sender
from s3spool.pipeline.bell import Stall
from s3spool.pipeline.cores import Cores
from s3spool.pipeline.destination import Destination
from s3spool.pipeline.inbox import Inbox
from s3spool.pipeline.item import Item
from s3spool.pipeline.large import PartJob
from s3spool.pipeline.parts import PartItem
from s3spool.pipeline.stats import Stats
from s3spool.pipeline.upload import Job, Upload

log = structlog.get_logger()


class Workers:
    """Starts, watches and stops the pool.

    All Python work of small files runs under one lock, the gate. A hundred threads that wake for their answers
    and fight for the GIL lose half the speed to context switches; queueing on a lock costs next to nothing. The
    answer of the last file is judged and the next request prepared in one turn; the blocking part is outside.
    """

    def __init__(
        self,
        count: int,
        bucket: Bucket,
        inbox: Inbox,
        upload: Upload,
        destination: Destination,
        stats: Stats,
        cores: Cores,
        *,
        stall_s: float = 90.0,
    ) -> None:
        """`stall_s`: longer than any request may take without progress."""
        self._count = count
        self._bucket = bucket
        self._inbox = inbox
        self._upload = upload
        self._destination = destination
        self._throttle = destination.throttle
        self._throttle.widen(count)
        self._stats = stats
        self._cores = cores
        self._gate = threading.Lock()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._jobs: list[Job | PartJob | None] = [None] * count  # slot n belongs to worker n
        self.stall = Stall(stall_s)

    def start(self) -> None:
        self._threads = [self._new_thread(number) for number in range(self._count)]
        for thread in self._threads:
            thread.start()

    def replace_dead(self) -> int:
        """Start a new thread for each that has died; returns how many. Called by the supervisor."""
        replaced = 0
        for number, thread in enumerate(self._threads):
            if not thread.is_alive() and not self._closing:
                job, self._jobs[number] = self._jobs[number], None
                if job is not None:
                    job.abandon()
                self._threads[number] = self._new_thread(number)
                self._threads[number].start()
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

        threading.Thread(target=ask, name="ping", daemon=True).start()

    def hanging(self, now: float) -> list[str]:
        """The names of those that neither send nor wait for an answer, but have a file. For the supervisor alone."""
        busy = [(thread, job) for thread, job in zip(self._threads, self._jobs, strict=True) if job is not None]
        names = {thread.native_id or 0: thread.name for thread, _ in busy}
        return [names[number] for number in self.stall.look(((t.native_id or 0, job) for t, job in busy), now)]

    def jobs(self) -> list[Job | PartJob]:
        """What is being sent at this moment."""
        return [job for job in self._jobs if job is not None]

    def close(self, remaining_s: Callable[[], float]) -> bool:
        """Let each worker finish its file; False when the time was over before all had.

        The inbox must be closed by now. Workers that are still sending then die with the process: their files
        are in the folder, and are sent again.
        """
        self._closing = True
        for thread in self._threads:
            thread.join(max(0.0, remaining_s()))
        return not self.alive()

    def _new_thread(self, number: int) -> threading.Thread:
        name = f"upload-{number:03d}"
        return threading.Thread(target=self._run, args=(number,), name=name, daemon=True)

    def _run(self, number: int) -> None:
        sender = self._bucket.transport()
        try:
            self._loop(number, sender)
        finally:
            sender.close()

    def _loop(self, number: int, sender: Sender) -> None:
        job: Job | PartJob | None = None
        while True:
            following = None
            with self._gate:
                judged = job is None or job.finish(sender.answer())
                if judged:
                    self._jobs[number] = None
                    free = not self._destination.paused and number < self._throttle.limit
                    item = self._inbox.take_nowait() if free else None
                    following = item and self._begin(number, sender, item, probe=False)
            if job is not None and not judged:
                # The answer alone did not prove it: ask S3, or read the file again, while the others go on.
                job.finish_slowly()
                job = self._jobs[number] = None
                continue
            job = following or self._wait(number, sender)
            if job is None:
                if self._closing:
                    return
            elif job.request is not None:
                sender.send()
            elif not self._send_slowly(job, sender):
                job = self._jobs[number] = None

    def _send_slowly(self, job: Job | PartJob, sender: Sender) -> bool:
        """A large body needs no GIL for most of the time: any CPU may do it. False when there was nothing to send."""
        with self._cores.roaming():
            loaded = job.load(sender)
            if loaded:
                sender.send()
        return loaded

    def _wait(self, number: int, sender: Sender) -> Job | PartJob | None:
        """Nothing to do, or nothing allowed: block until there is. None when that came to nothing."""
        sender.rest()
        self._throttle.admit(number)
        probe = self._destination.admit()
        item = self._inbox.take()
        job = None
        if item is None:
            self._closing = True
        else:
            with self._gate:
                # Looked at under the gate, where failures are judged: none slips through behind the probe's back.
                if (self._destination.paused or number >= self._throttle.limit) and not probe:
                    self._inbox.put_back(item, first=True)
                else:
                    job = self._begin(number, sender, item, probe=probe)
        if job is None and probe:
            self._destination.release_probe()
        return job

    def _begin(self, number: int, sender: Sender, item: Item | PartItem, *, probe: bool) -> Job | PartJob | None:
        """The caller holds the gate."""
        job = self._jobs[number] = self._upload.begin(item, probe=probe)
        if job is not None and job.request is not None:
            sender.prepare(job.request)
        return job
