"""Checksums of what is read, in the form S3 takes and repeats them."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

import awscrt.checksums

CHUNK_BYTES = 256 * 1024
COMBINE: dict[str, tuple[Callable[[int, int, int], int], int]] = {  # how those of parts make one, and its bytes
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
    """Base64 of the checksum of `data`."""
    if algorithm == "crc64nvme":
        return base64.b64encode(awscrt.checksums.crc64nvme(data).to_bytes(8, "big")).decode()
    checksum = running(algorithm)
    checksum.update(data)
    return base64.b64encode(checksum.digest()).decode()


def of_range(algorithm: str, fd: int, offset: int, length: int) -> str:
    """Base64 of the checksum of a range of an open file; memory stays at one chunk.

    A file that ends early gives the checksum of what there was: the server then refuses what is sent.
    Raises OSError.
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
    """As S3 shows it for an object put together of parts, given as (base64, bytes).

    The checksum of the whole where those of the parts can be combined, else the checksum of their checksums.
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
    """The request header that carries it; S3 repeats all but Content-MD5 in its answer."""
    return "Content-MD5" if algorithm == "md5" else f"x-amz-checksum-{algorithm}"


def md5_hex(checksum_base64: str) -> str:
    """The form in which an ETag shows an MD5."""
    return base64.b64decode(checksum_base64).hex()
