"""A Store for a server of the tests, files to send, and one way to send them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from s3spool.config.schema import DestinationConfig
from s3spool.ledger.rows import Identity
from s3spool.s3.content import Content
from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.multi_client import MultiClient
from s3spool.s3.store import Store
from s3spool.s3.transport import Answer, Request


def destination(bucket: str, endpoint_url: str, **keys: Any) -> DestinationConfig:
    return DestinationConfig(bucket=bucket, endpoint_url=endpoint_url, **keys)


def use(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make boto3's chain find these credentials and nothing else."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        if name != "AWS_ENDPOINT_URL_S3":
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


def store_of(kind: str, where: DestinationConfig, *, timeout_s: float = 20.0, bandwidth: Any = None) -> Store:
    """`kind` is curl, or carried (its transports do not send by themselves but by their carrier)."""
    return (_CarriedStore if kind == "carried" else Store)(where, timeout_s=timeout_s, bandwidth=bandwidth)


class _CarriedStore(Store):
    def transport(self) -> CurlTransport:
        return cast("CurlTransport", _Carried(super().transport(), self.multiplexer()))


class _Carried:
    """One transport on a carrier of its own: whatever is true of a transport that sends must be true of it."""

    def __init__(self, transport: CurlTransport, multiplexer: MultiClient) -> None:
        self._transport = transport
        self._multiplexer = multiplexer
        self.prepare = transport.prepare
        self.answer = transport.answer
        self.release_buffers = transport.release_buffers

    @property
    def position(self) -> int:
        return self._transport.position

    def send(self) -> None:
        over: deque[CurlTransport] = deque()
        pending = deque([self._transport])
        while not over:
            self._multiplexer.poll(pending, over, wait=True)
        assert list(over) == [self._transport]

    def close(self) -> None:
        self._transport.close()
        self._multiplexer.close()


def put_request(key: str, body: bytes = b"body", headers: tuple[tuple[str, str], ...] = (), query: str = "") -> Request:
    """A body in memory."""
    return Request(key, query, headers, body, -1, 0, len(body), "", key)


def range_request(key: str, fd: int, offset: int, length: int, query: str = "") -> Request:
    """A range of an open file."""
    return Request(key, query, (), None, fd, offset, length, "", key)


def put(transport: CurlTransport, request: Request) -> Answer:
    transport.prepare(request)
    transport.send()
    answer: Answer = transport.answer()
    return answer


@contextmanager
def content(path: Path, body: bytes, *, in_memory: bool) -> Iterator[Content]:
    """The file with that body as the pipeline opens it."""
    path.write_bytes(body)
    fd = os.open(path, os.O_RDONLY)
    try:
        identity = Identity.of(os.fstat(fd))
        yield Content(path.name, identity, body if in_memory else None, -1 if in_memory else fd)
    finally:
        os.close(fd)
