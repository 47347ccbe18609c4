"""Checksums in the form of S3's headers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import awscrt.checksums

CHUNK_BYTES = 256 * 1024


class _Crc(NamedTuple):
    compute: Callable[[bytes, int], int]
    combine: Callable[[int, int, int], int]  # of two parts, with the length of the second
    width: int  # bytes


CRCS = {
    "crc64nvme": _Crc(awscrt.checksums.crc64nvme, awscrt.checksums.combine_crc64nvme, 8),
    "crc32": _Crc(zlib.crc32, awscrt.checksums.combine_crc32, 4),
}


class Running(Protocol):
    """A checksum that is fed in chunks."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _RunningCrc:
    def __init__(self, crc: _Crc) -> None:
        self._crc = crc
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._crc.compute(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._crc.width, "big")


def running(algorithm: str) -> Running:
    """`algorithm` is crc64nvme, crc32, sha256 or md5."""
    if algorithm in CRCS:
        return _RunningCrc(CRCS[algorithm])
    if algorithm == "md5":
        return hashlib.md5(usedforsecurity=False)
    return hashlib.new(algorithm)


def of_bytes(algorithm: str, data: bytes) -> str:
    """Return the checksum of `data` in base64."""
    if algorithm == "crc64nvme":
        return binascii.b2a_base64(awscrt.checksums.crc64nvme(data).to_bytes(8, "big"), newline=False).decode()
    checksum = running(algorithm)
    checksum.update(data)
    return base64.b64encode(checksum.digest()).decode()


def of_range(algorithm: str, fd: int, offset: int, length: int) -> str:
    """Return the checksum of a range of an open file in base64; needs the memory of one chunk. Raises OSError.

    If the file ends early, the checksum covers the bytes before its end: the server then refuses the body.
    """
    checksum = running(algorithm)
    end = offset + length
    while offset < end:
        data = os.pread(fd, min(CHUNK_BYTES, end - offset), offset)
        if not data:
            break
        checksum.update(data)
        offset += len(data)
    return base64.b64encode(checksum.digest()).decode()


def of_parts(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """Return the checksum that S3 shows for an object of parts, each given as (base64, bytes).

    CRCs combine to that of the whole object; else it is the checksum of the parts' checksums.
    """
    crc = CRCS.get(algorithm)
    if crc is None:
        digests = b"".join(base64.b64decode(value) for value, _ in parts)
        return f"{of_bytes(algorithm, digests)}-{len(parts)}"
    total = 0
    for value, size in parts:
        total = crc.combine(total, int.from_bytes(base64.b64decode(value), "big"), size)
    return base64.b64encode(total.to_bytes(crc.width, "big")).decode()


def header_of(algorithm: str) -> str:
    """Return the request header for a checksum; S3 repeats all but Content-MD5 in its answer."""
    return "Content-MD5" if algorithm == "md5" else f"x-amz-checksum-{algorithm}"


def md5_hex(checksum_base64: str) -> str:
    """Return an MD5 in the form of an ETag."""
    return base64.b64decode(checksum_base64).hex()
