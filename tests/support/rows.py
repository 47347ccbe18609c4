"""Rows of the ledger with every field filled in, to vary one of."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

from s3spool.ledger.rows import Identity, Multipart, Part, Receipt, Retry, State

SOME = Identity(dev=64768, inode=1234, size=5, mtime_ns=1_700_000_000_000_000_001, ctime_ns=1_700_000_000_000_000_002)


def a_receipt(path: str = "a.txt", **fields: Any) -> Receipt:
    row = Receipt(
        path=path,
        identity=SOME,
        destination=1,
        key=f"in/{quote(os.fsencode(path))}",
        etag='"5d41402abc4b2a76b9719d911017c592"',
        checksum="crc64nvme:M3eFcAZSQlc=",
        version_id="v1",
        read_at=1_700_000_010.5,
        uploaded_at=1_700_000_011.25,
        after="keep",
    )
    return row._replace(**fields)


def a_retry(path: str = "a.txt", **fields: Any) -> Retry:
    row = Retry(
        path=path,
        identity=SOME,
        attempts=2,
        first_error_at=1_700_000_000.5,
        last_error_at=1_700_000_005.25,
        error_code="SlowDown",
        error="reduce your request rate",
        hint="wait",
        next_attempt=1_700_000_009.75,
        state=State.WAITING,
    )
    return row._replace(**fields)


def a_multipart(path: str = "a.txt", **fields: Any) -> Multipart:
    row = Multipart(
        path=path,
        identity=SOME,
        destination=1,
        bucket="bucket",
        key=f"in/{quote(os.fsencode(path))}",
        upload_id=f"upload of {quote(os.fsencode(path))}",
        part_size=16 * 1024**2,
        algorithm="crc64nvme",
        started_at=1_700_000_000.5,
    )
    return row._replace(**fields)


def a_part(upload_id: str, number: int = 1) -> Part:
    return Part(upload_id, number, 16 * 1024**2, f'"etag {number}"', "crc64nvme:AAAAAAAAAAA=")
