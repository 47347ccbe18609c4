"""The one act that carries bytes: PUT this body, or this range of an open file, to this URL with these headers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from s3spool.errors import UploadError


class Request(NamedTuple):
    """What to PUT. `body` where it is small and in memory, else `length` bytes of `fd` from `offset`."""

    key: str
    query: str  # "" or "partNumber=1&uploadId=..."
    headers: tuple[tuple[str, str], ...]  # without authorization, which is the transport's
    body: bytes | None
    fd: int
    offset: int
    length: int
    checksum: str  # "algorithm:base64" of these bytes
    path: str  # for messages


class Answer(NamedTuple):
    """What came back. Header names are lower-case; `error` is set where no answer came at all."""

    status: int
    headers: dict[str, str]
    body: bytes
    error: UploadError | None


class Transport(Protocol):
    """One connection, owned by one worker thread: nothing here is thread-safe.

    `prepare` is quick and runs with the others waiting; `send` blocks until the answer is there and leaves the
    interpreter to the others; `answer` says what came. None of them raises for what network or server do.
    """

    def prepare(self, request: Request) -> None: ...

    def send(self) -> None: ...

    def answer(self) -> Answer: ...

    def close(self) -> None: ...
