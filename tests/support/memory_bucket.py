"""A bucket in memory in the place of a Store: real reads of real files, answers as scripted."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from s3spool.errors import UploadError
from s3spool.s3.content import Content, NeedsVerificationError, Stored
from s3spool.s3.keys import key_of
from support.memory_parts import MemoryParts, PartPut

CHUNK = 1024 * 1024


class Put(NamedTuple):
    """A prepared request."""

    content: Content
    checksum: str


class Answer(NamedTuple):
    """What came of it."""

    error: UploadError | None
    proven: bool


class MemoryBucket:
    """Thread-safe. Set `before_put` to do something, or to block, while a file is being sent."""

    bucket = "memory"
    asks_first = False
    attributes = staticmethod(lambda _: ())

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.refusals: dict[str, list[UploadError]] = {}  # path -> for its next attempts, in order
        self.down: UploadError | None = None  # the answer to everything
        self.must_ask = False  # whether an answer alone proves nothing
        self.excepthooks: set[str] = set()  # sending these once kills the worker
        self.before_put: Callable[[str], object] = lambda _: None
        self.open_senders = 0
        self.lock = threading.Lock()
        self.parts = MemoryParts(self)

    def before_next_put(self, act: Callable[[], object]) -> None:
        """Once, while the next file is being sent."""

        def once(_: str) -> None:
            self.before_put = lambda _: None
            act()

        self.before_put = once

    def transport(self) -> MemorySender:
        with self.lock:
            self.open_senders += 1
        return MemorySender(self)

    def multiplexer(self) -> MemoryCarrier:
        return MemoryCarrier()

    def request(self, content: Content) -> Put:
        return Put(content, self.digest(content))

    def digest(self, content: Content, algorithm: str = "md5") -> str:
        return "md5:" + base64.b64encode(hashlib.md5(body_of(content)).digest()).decode()  # noqa: S324 - a checksum

    def existing(self, content: Content, request: Put) -> Stored | None:
        return None

    def verify(self, content: Content, request: Put, answer: Answer, *, may_verify: bool) -> Stored:
        if answer.error is not None:
            raise answer.error
        if not answer.proven and not may_verify:
            raise NeedsVerificationError
        return Stored(key_of(content.path, "in/"), '"etag"', request.checksum, "v1")

    def put(self, request: Put | PartPut) -> Answer:
        path = request.content.path
        self.before_put(path)
        body = body_of(request.content) if isinstance(request, Put) else b""
        with self.lock:
            self.puts.append(path)
            if path in self.excepthooks:
                self.excepthooks.remove(path)
                raise RuntimeError(f"a worker dies over {path}")
            script = self.refusals.get(path)
            error = script.pop(0) if script else self.down
            if error is None and isinstance(request, PartPut):
                error = self.parts.put(request)
            elif error is None:
                self.objects[path] = body
            return Answer(error, not self.must_ask)


class MemorySender:
    """A worker's connection."""

    position = 0

    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket
        self.prepared: Put | PartPut | None = None
        self.answered: Answer | None = None
        self.death: Exception | None = None

    def prepare(self, request: Put | PartPut) -> None:
        self.prepared = request
        self.death = None

    def send(self) -> None:
        assert self.prepared is not None
        self.answered = self.bucket.put(self.prepared)

    def release_buffers(self) -> None:
        """There is nothing to give back."""

    def answer(self) -> Answer | None:
        if self.death is not None:
            raise self.death
        return self.answered

    def close(self) -> None:
        with self.bucket.lock:
            self.bucket.open_senders -= 1


class MemoryCarrier:
    """As s3/curl_carrier.py; each request has a thread for its network."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._woken = False
        self._arrived: list[MemorySender] = []
        self.closed = False

    def poll(self, pending: deque[MemorySender], over: deque[MemorySender], *, wait: bool) -> None:
        while pending:
            threading.Thread(target=self._send, args=(pending.popleft(), self._arrived), daemon=True).start()
        with self._changed:
            while wait and not (over or self._arrived or self._woken):
                self._changed.wait()
            self._woken = False
            over.extend(self._arrived)
            self._arrived.clear()

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def reset(self) -> None:
        self._arrived = []

    def close(self) -> None:
        self.closed = True

    def _send(self, sender: MemorySender, arrived: list[MemorySender]) -> None:
        try:
            sender.send()
        except Exception as exc:  # noqa: BLE001 - the worker dies of it, once it asks
            sender.death = exc
        with self._changed:
            arrived.append(sender)
            self._changed.notify()


def body_of(content: Content) -> bytes:
    if content.body is not None:
        return content.body
    body = bytearray()
    while chunk := os.pread(content.fd, CHUNK, len(body)):
        body += chunk
    return bytes(body)
