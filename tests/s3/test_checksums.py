"""Checksums: known values, read in pieces, put together of parts."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3spool.ledger.rows import Part
from s3spool.s3.checksums import CHUNK_BYTES, header_of, md5_hex, of_bytes, of_range, running
from s3spool.s3.multipart import _whole
from support.objects import content_of

ALGORITHMS = ["crc64nvme", "crc32", "sha256", "md5"]

# "123456789" is the check value of the CRC catalogues (CRC-64/NVME, CRC-32/ISO-HDLC); SHA-256 and MD5 of "" and
# "abc" stand in FIPS 180-2 and RFC 1321.
KNOWN = [
    ("crc64nvme", b"123456789", "ae8b14860a799888"),
    ("crc64nvme", b"", "0000000000000000"),
    ("crc64nvme", bytes(4096), "6482d367eb22b64e"),
    ("crc32", b"123456789", "cbf43926"),
    ("crc32", b"", "00000000"),
    ("sha256", b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    ("md5", b"", "d41d8cd98f00b204e9800998ecf8427e"),
    ("md5", b"abc", "900150983cd24fb0d6963f7d28e17f72"),
]


@pytest.mark.parametrize(("algorithm", "data", "digest"), KNOWN)
def test_known_values(algorithm: str, data: bytes, digest: str, tmp_path: Path) -> None:
    """At once, in chunks and from a file: what the standards say, big-endian, in base64."""
    expected = base64.b64encode(bytes.fromhex(digest)).decode()
    fed = running(algorithm)
    for byte in data:
        fed.update(bytes([byte]))
    path = tmp_path / "f"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)

    assert of_bytes(algorithm, data) == expected
    assert base64.b64encode(fed.digest()).decode() == expected
    assert of_range(algorithm, fd, 0, len(data)) == expected
    os.close(fd)


SIZE = 2 * CHUNK_BYTES + 3
RANGES = [
    (0, SIZE),
    (0, 0),
    (0, 1),
    (SIZE - 1, 1),
    (0, CHUNK_BYTES),
    (1, CHUNK_BYTES),
    (CHUNK_BYTES - 1, CHUNK_BYTES + 2),
    (7, 2 * CHUNK_BYTES),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ranges_are_read_in_pieces(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece is larger than a chunk, a short read is read on, and the file's own position stays where it is."""
    data = content_of(SIZE)
    path = tmp_path / "f"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    pread = os.pread
    sizes: list[int] = []

    def short(number: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(number, min(size, 100_000), offset)

    monkeypatch.setattr(os, "pread", short)

    for offset, length in RANGES:
        assert of_range(algorithm, fd, offset, length) == of_bytes(algorithm, data[offset : offset + length])
    assert max(sizes) == CHUNK_BYTES
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    os.close(fd)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_file_that_ends_early_has_the_checksum_of_the_rest(algorithm: str, tmp_path: Path) -> None:
    """It does not hang, and is not the checksum of what was announced: the server will refuse it."""
    path = tmp_path / "f"
    path.write_bytes(b"short")
    fd = os.open(path, os.O_RDONLY)

    assert of_range(algorithm, fd, 0, 10) == of_bytes(algorithm, b"short")
    assert of_range(algorithm, fd, 99, 10) == of_bytes(algorithm, b"")
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        of_range(algorithm, fd, 0, 10)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=6), st.sampled_from(["crc64nvme", "crc32"]))
def test_checksums_of_parts_make_that_of_the_whole(pieces: list[bytes], algorithm: str) -> None:
    """Wherever the file is cut: so the whole is known without reading it again."""
    parts = [Part("u", n, len(piece), "", of_bytes(algorithm, piece)) for n, piece in enumerate(pieces, 1)]

    assert _whole(algorithm, parts) == of_bytes(algorithm, b"".join(pieces))


def test_digests_do_not_combine() -> None:
    """Of SHA-256 S3 shows the digest of the parts' digests and their number; of MD5 there is nothing to know."""
    digests = [hashlib.sha256(body).digest() for body in (b"abc", b"de")]
    parts = [Part("u", n, 1, "", base64.b64encode(digest).decode()) for n, digest in enumerate(digests, 1)]

    assert _whole("sha256", parts) == base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode() + "-2"
    assert _whole("md5", [Part("u", 1, 3, "", of_bytes("md5", b"abc"))]) == ""


def test_names_and_forms() -> None:
    """Headers as S3 spells them; an MD5 as an ETag shows it; CRC32 is zlib's."""
    assert [header_of(algorithm) for algorithm in ALGORITHMS] == [
        "x-amz-checksum-crc64nvme",
        "x-amz-checksum-crc32",
        "x-amz-checksum-sha256",
        "Content-MD5",
    ]
    assert md5_hex(of_bytes("md5", b"abc")) == "900150983cd24fb0d6963f7d28e17f72"
    assert of_bytes("crc32", b"abc") == base64.b64encode(zlib.crc32(b"abc").to_bytes(4, "big")).decode()
    with pytest.raises(ValueError, match="unsupported hash type"):
        running("crc65")
