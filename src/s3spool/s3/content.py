"""What the pipeline and S3 hand each other: the content of one file, and the proof that it arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from s3spool.ledger.rows import Identity, Multipart, Part


class Content(NamedTuple):
    """What was opened, and is to be sent: the whole body for a small file, an open descriptor for a large one."""

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
    """S3 has it, and what it said. `checksum` is "algorithm:base64" of what was read."""

    key: str
    etag: str
    checksum: str
    version_id: str


class NeedsVerificationError(Exception):
    """The response alone proves nothing: call `verify` again with `may_verify`, where blocking is allowed."""


class Sender(Protocol):
    """One connection of one worker (see s3/transport.py). Requests and answers are opaque here."""

    @property
    def position(self) -> int:
        """Bytes of a large body that were read from the file to be sent. Any thread may ask."""

    def prepare(self, request: Any) -> None: ...

    def send(self) -> None: ...

    def answer(self) -> Any: ...

    def release_buffers(self) -> None: ...

    def close(self) -> None: ...


class Multiplexer(Protocol):
    """Sends many prepared senders in one thread (see s3/transport.py)."""

    def poll(self, pending: deque[Any], done: deque[Any], *, wait: bool) -> None: ...

    def wake(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class PartBucket(Protocol):
    """Uploads in parts as the pipeline sees them (see s3/multipart.py). Thread-safe; blocks except `verify_part`.

    Everything raises UploadError; what reads the file raises OSError as well.
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
    """S3 as the pipeline sees it (see s3/store.py). Thread-safe."""

    @property
    def bucket(self) -> str: ...

    def transport(self) -> Sender: ...

    def multiplexer(self) -> Multiplexer | None:
        """None where each request takes a thread of its own."""

    def attributes(self, path: str) -> Collection[str]:
        """What `Content.attributes` has to hold for this file."""

    def request(self, content: Content) -> Any:
        """Raises UploadError and OSError. Reads the content once, for its checksum."""

    def digest(self, content: Content, algorithm: str = "") -> str:
        """Raises OSError."""

    @property
    def asks_first(self) -> bool:
        """Whether `existing` has to be asked before a request is sent."""

    def existing(self, content: Content, request: Any) -> Stored | None:
        """What is at this key already, with our content; None: nothing. Raises UploadError, OSError; blocks."""

    def verify(self, content: Content, request: Any, answer: Any, *, may_verify: bool) -> Stored:
        """Raises UploadError, MustAskError, OSError."""
