"""One PUT: its request, its answer, and the range of a file that it sends."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from s3spool.errors import UploadError


class Request(NamedTuple):
    """What to PUT: `body` if it is in memory, else `length` bytes of `fd` from `offset`."""

    key: str
    query: str  # "" or "partNumber=1&uploadId=..."
    headers: tuple[tuple[str, str], ...]  # without the authorization, which the transport adds
    body: bytes | None
    fd: int
    offset: int
    length: int
    checksum: str  # "algorithm:base64" of these bytes
    path: str  # for messages


class Answer(NamedTuple):
    """What S3 answered. Header names are in lower case; `error` is set if no answer arrived."""

    status: int
    headers: dict[str, str]
    body: bytes
    error: UploadError | None


# The bandwidth limit: called with a number of bytes, it blocks, and returns how many may be sent now (None: all).
Bandwidth = Callable[[int], int | None]


def wait_for_all(bandwidth: Bandwidth, length: int) -> None:
    """Wait until a whole body of `length` bytes may be sent."""
    while length > 0:
        length -= bandwidth(length) or length


class FileRange:
    """The range of one request, read piece by piece under the bandwidth limit. Not thread-safe."""

    def __init__(self, request: Request, bandwidth: Bandwidth | None) -> None:
        self._request = request
        self._bandwidth = bandwidth
        self._position = 0
        self.error = ""  #: why the range could not be read to its end

    def read(self, size: int) -> bytes:
        """Raises OSError also where the file is too short: server and client would wait for the rest."""
        request = self._request
        wanted = min(size, request.length - self._position)
        if wanted <= 0:
            return b""
        if self._bandwidth is not None:
            wanted = self._bandwidth(wanted) or wanted
        try:
            data = os.pread(request.fd, wanted, request.offset + self._position)
        except OSError as exc:
            self.error = f"the file could not be read on: {exc.strerror or exc}"
            raise
        if not data:
            ended, end = request.offset + self._position, request.offset + request.length
            self.error = f"the file ended at byte {ended} of {end} while it was sent"
            raise OSError(self.error)
        self._position += len(data)
        return data

    def seek(self, offset: int) -> None:
        """Move to an earlier byte: a body is sent again where a kept connection was dead."""
        self._position = offset

    def tell(self) -> int:
        return self._position


def parsed_headers(lines: list[bytes]) -> dict[str, str]:
    """Return the headers of the last of the answers that these lines hold, names in lower case."""
    headers: dict[str, str] = {}
    for line in lines:
        name, value = _parsed_line(line)
        if name:
            headers[name] = value
        elif value:
            headers.clear()  # the lines before are those of an interim answer (100, a proxy's)
    return headers


@lru_cache(maxsize=128)  # most lines are those of the answer before
def _parsed_line(line: bytes) -> tuple[str, str]:
    """Name and value of a header; no name for a status line, neither for any other line without a colon."""
    text = line.decode("latin-1")
    if text.startswith("HTTP/"):
        return "", text
    name, colon, value = text.partition(":")
    return (name.lower(), value.strip()) if colon else ("", "")
