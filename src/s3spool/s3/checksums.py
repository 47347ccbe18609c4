"""Checksums in the form of S3's headers."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

import awscrt.checksums

CHUNK_BYTES = 256 * 1024
COMBINE: dict[str, tuple[Callable[[int, int, int], int], int]] = {  # combines those of two parts; width in bytes
    "crc64nvme": (awscrt.checksums.combine_crc64nvme, 8),
    "crc32": (awscrt.checksums.combine_crc32, 4),
}


class Running(Protocol):
    """A checksum that is fed in chunks."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc64:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = awscrt.checksums.crc64nvme(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(8, "big")


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def running(algorithm: str) -> Running:
    """`algorithm` is crc64nvme, crc32, sha256 or md5."""
    if algorithm == "crc64nvme":
        return _Crc64()
    if algorithm == "crc32":
        return _Crc32()
    if algorithm == "md5":
        return hashlib.md5(usedforsecurity=False)
    return hashlib.new(algorithm)


def of_bytes(algorithm: str, data: bytes) -> str:
    """Return the checksum of `data` in base64."""
    if algorithm == "crc64nvme":
        return base64.b64encode(awscrt.checksums.crc64nvme(data).to_bytes(8, "big")).decode()
    checksum = running(algorithm)
    checksum.update(data)
    return base64.b64encode(checksum.digest()).decode()


def of_range(algorithm: str, fd: int, offset: int, length: int) -> str:
    """Return the checksum of a range of an open file in base64; needs the memory of one chunk. Raises OSError.

    A file that ends early gives the checksum of its rest: the server then refuses the body.
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
    if algorithm not in COMBINE:
        digests = b"".join(base64.b64decode(value) for value, _ in parts)
        return f"{of_bytes(algorithm, digests)}-{len(parts)}"
    combine, width = COMBINE[algorithm]
    total = 0
    for value, size in parts:
        total = combine(total, int.from_bytes(base64.b64decode(value), "big"), size)
    return base64.b64encode(total.to_bytes(width, "big")).decode()


def header_of(algorithm: str) -> str:
    """Return the request header for a checksum; S3 repeats all but Content-MD5 in its answer."""
    return "Content-MD5" if algorithm == "md5" else f"x-amz-checksum-{algorithm}"


def md5_hex(checksum_base64: str) -> str:
    """Return an MD5 in the form of an ETag."""
    return base64.b64decode(checksum_base64).hex()
