"""Bytes that change on the wire: noticed by the server's checksum, sent again, never an object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from s3spool.demo.seaweed import Seaweed
from support.daemon import Daemon
from support.objects import content_of, objects
from support.proxy import Proxy

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


PART = 5 * 1024 * 1024


@pytest.fixture
def wire(seaweed: Seaweed) -> Iterator[Proxy]:
    with Proxy(seaweed.port) as wire:
        wire.flips = 3
        yield wire


@pytest.mark.parametrize("size", [2 * 1024 * 1024, 4 * PART + 1], ids=["one request", "parts"])
def test_a_wrong_byte_never_becomes_an_object(
    tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str, wire: Proxy, size: int
) -> None:
    """The server refuses what does not match the checksum; it comes again, and arrives as it is."""
    content = content_of(size)
    upload = {"multipart_threshold": PART, "part_size": PART, "workers": 4}
    endpoint = {"endpoint_url": wire.endpoint_url}
    with Daemon(tmp_path, seaweed, bucket=bucket, upload=upload, destination=endpoint) as daemon:
        daemon.wait_ready()
        daemon.drop("big", content)
        daemon.wait_uploaded(1, timeout_s=60)

        assert wire.flips == 0
        assert [event["error_code"] for event in daemon.events("file.failed")].count("BadDigest") >= 1
    assert objects(s3, bucket) == {"big": content}
