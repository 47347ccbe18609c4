"""What the upload workers hand to S3 and get back: a file's content, and its proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from s3spool.ledger.rows import Identity


class Content(NamedTuple):
    """An opened file: the whole body of a small file, the descriptor of a large one."""

    path: str
    identity: Identity
    body: bytes | None
    fd: int  # -1 where `body` holds it all
    attributes: Mapping[str, str] = {}  # what the object's metadata takes from the file

    @property
    def size(self) -> int:
        return self.identity.size

    @property
    def mtime_s(self) -> float:
        return self.identity.mtime_ns / 1e9


class Stored(NamedTuple):
    """A confirmed object. `checksum` is "algorithm:base64" of what was read, or ""."""

    key: str
    etag: str
    checksum: str
    version_id: str


class NeedsVerificationError(Exception):
    """The response alone proves nothing: call `verify` again with `may_verify`, where blocking is allowed."""
