"""The contract between the upload workers and S3: a file's content, its proof, senders and buckets."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from s3spool.ledger.rows import Identity, Multipart, Part


class Content(NamedTuple):
    """An opened file: the whole body of a small file, the descriptor of a large one."""

    path: str
    identity: Identity
    body: bytes | None
    fd: int  # -1 where `body` holds it all
    attributes: Mapping[str, str] = {}  # what the object's metadata takes from the file

    @property
    def size(self) -> int:
        return self.identity.size

    @property
    def mtime_s(self) -> float:
        return self.identity.mtime_ns / 1e9


class Stored(NamedTuple):
    """A confirmed object. `checksum` is "algorithm:base64" of what was read, or ""."""

    key: str
    etag: str
    checksum: str
    version_id: str


class NeedsVerificationError(Exception):
    """The response alone proves nothing: call `verify` again with `may_verify`, where blocking is allowed."""


class Sender(Protocol):
    """One connection of one worker. Not thread-safe. Requests and answers are opaque here (see s3/transport.py).

    `prepare` is quick; it raises OSError where it has to read the file. `send` blocks without the GIL until `answer`
    is ready, and raises nothing. One `send` is one attempt: redirects are not followed, and errors not retried, except
    for a kept connection that turns out to be dead. A file that is shorter than announced is an error of the operation
    "read". An answer is returned as it arrived: a 200 alone proves nothing.
    """

    @property
    def position(self) -> int:
        """Bytes of a large body that were read from the file to be sent. Any thread may ask."""

    def prepare(self, request: Any) -> None: ...

    def send(self) -> None: ...

    def answer(self) -> Any: ...

    def release_buffers(self) -> None:
        """Free the memory that a large body needed; the sender stays usable."""

    def close(self) -> None: ...


class Multiplexer(Protocol):
    """Sends many prepared senders in one thread at a time; any thread may append to `pending`, and then call `wake`.

    `poll` sends all of `pending`, advances every request, and appends each sender whose `answer` is ready to `done`;
    with `wait` it blocks until there is something to do. `reset` and `close` cancel all requests; the senders stay
    usable.
    """

    def poll(self, pending: deque[Any], done: deque[Any], *, wait: bool) -> None: ...

    def wake(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class PartBucket(Protocol):
    """Uploads in parts (see s3/multipart.py). Thread-safe. All methods raise UploadError, those with `content` OSError.

    `create`, `listed`, `complete` and `abort` send requests and block.
    """

    def check_size(self, path: str, size: int) -> None: ...

    def part_size(self, size: int, wanted: int) -> int: ...

    def create(
        self, path: str, identity: Identity, destination: int, part_size: int, attributes: Mapping[str, str] = {}
    ) -> Multipart: ...

    def listed(self, upload: Multipart) -> Mapping[int, Mapping[str, Any]] | None: ...

    def matches(
        self, upload: Multipart, content: Content, number: int, there: Mapping[str, Any], ours: Part | None
    ) -> Part | None: ...

    def part_request(self, upload: Multipart, content: Content, number: int) -> Any: ...

    def verify_part(self, upload: Multipart, request: Any, answer: Any, number: int) -> Part: ...

    def complete(self, upload: Multipart, content: Content, parts: Sequence[Part]) -> Stored: ...

    def abort(self, upload: Multipart) -> None: ...


class Bucket(Protocol):
    """One bucket (see s3/store.py). Thread-safe."""

    @property
    def bucket(self) -> str: ...

    def transport(self) -> Sender: ...

    def multiplexer(self) -> Multiplexer: ...

    def attributes(self, path: str) -> Collection[str]:
        """What `Content.attributes` has to hold for this file."""

    def request(self, content: Content) -> Any:
        """Read the content once, for its checksum. Raises UploadError, OSError."""

    def digest(self, content: Content, algorithm: str = "") -> str:
        """Raises OSError."""

    @property
    def asks_first(self) -> bool:
        """Whether `existing` must be called before a request is sent."""

    def existing(self, content: Content, request: Any) -> Stored | None:
        """Return the object at this key if it has our content, None if there is none; block.

        Raises UploadError, also for an object with another content; OSError.
        """

    def verify(self, content: Content, request: Any, answer: Any, *, may_verify: bool) -> Stored:
        """Return the proof. Raises UploadError, OSError; NeedsVerificationError only without `may_verify`."""
