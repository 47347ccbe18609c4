"""What the tests of S3 share: senders to the test's server, which are closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from s3spool.s3.curl_transport import CurlTransport
from s3spool.s3.store import Store
from support.stores import destination, store_of, use

StoreAt = Callable[..., Store]
TransportAt = Callable[..., CurlTransport]


@pytest.fixture
def store_at(monkeypatch: pytest.MonkeyPatch) -> StoreAt:
    """A store for a bucket of a server, with the server's credentials."""

    def make(server: Any, kind: str = "curl", *, timeout_s: float = 20.0, bandwidth: Any = None, **keys: Any) -> Store:
        use(server.environment(), monkeypatch)
        where = destination(keys.pop("bucket", "") or server.bucket, server.endpoint_url, **keys)
        return store_of(kind, where, timeout_s=timeout_s, bandwidth=bandwidth)

    return make


@pytest.fixture
def transport_at(store_at: StoreAt) -> Iterator[TransportAt]:
    made: list[CurlTransport] = []

    def make(server: Any, kind: str = "curl", **keys: Any) -> CurlTransport:
        made.append(store_at(server, kind, **keys).transport())
        return made[-1]

    yield make
    for transport in made:
        transport.close()
