"""The one act that carries bytes: PUT this body, or this range of an open file, to this URL with these headers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

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
    """One connection of one worker: nothing here is thread-safe. Who drives a carrier has those on it meanwhile.

    `prepare` is quick and runs with the others waiting; `send` blocks until the answer is there and leaves the
    interpreter to the others; `answer` says what came. None of them raises for what network or server do.

    One `send` is one attempt: redirects are not followed, errors not retried (but for a kept connection that turns
    out to be dead), and the file is never replaced by less than was announced: one that ends early is an error of
    the operation "read". An answer is handed on as it came, whatever its status: a 200 proves nothing by itself,
    because a portal may have said it, or a server that died in the middle of its headers.
    """

    @property
    def position(self) -> int:
        """Bytes of a large body that were read from the file to be sent. Any thread may ask."""

    def prepare(self, request: Request) -> None: ...

    def send(self) -> None: ...

    def answer(self) -> Answer: ...

    def release_buffers(self) -> None:
        """Nothing is to be sent for the moment: give back the memory that a large body took."""

    def close(self) -> None: ...


class Multiplexer(Protocol):
    """Sends many prepared transports in one thread; another thread may call `poll` the next time.

    `poll` sends all of `pending`, advances every request, and appends the transports whose `answer` is ready to
    `done`; `wait`: it blocks until there is something to do. Other threads may append to `pending`, and call `wake`
    then. `reset` and `close` cancel all requests; their transports may be used again.
    """

    def poll(self, pending: deque[Any], done: deque[Any], *, wait: bool) -> None: ...

    def wake(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


# The bandwidth limit: called before bytes are sent, it blocks and returns how many of them may be sent (None: all).
Bandwidth = Callable[[int], int | None]


def wait_for_all(bandwidth: Bandwidth, length: int) -> None:
    """For a body that goes out in one piece."""
    while length > 0:
        length -= bandwidth(length) or length


def shrunk(request: Request, position: int) -> str:
    """Why a body could not be sent to its end: for messages."""
    return f"the file ended at byte {request.offset + position} of {request.offset + request.length} while it was sent"


def unreadable(exc: OSError) -> str:
    """The same, where the file system said no."""
    return f"the file could not be read on: {exc.strerror or exc}"


def parsed_headers(lines: list[bytes]) -> dict[str, str]:
    """The header lines of an answer, names in lower case."""
    headers: dict[str, str] = {}
    for line in b"".join(lines).decode("latin-1").split("\n"):
        if line.startswith("HTTP/"):
            headers.clear()  # an interim answer (100, a proxy's) came before the real one
            continue
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    return headers
