"""The item: the name of a file on its way from discovery to upload."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from s3spool.ledger.rows import NO_FAILURES, Failures, Identity, Receipt


class Lane(StrEnum):
    """Which queue of the inbox an item waits in."""

    ARRIVED = "arrived"  #: hinted by the watcher
    FOUND = "found"  #: found by a scan
    RETRY = "retry"  #: failed before
    BODY = "body"  #: above 128 KiB, deferred while nine tenths of the workers send such bodies
    LARGE = "large"  #: above the multipart threshold, deferred until the large files before it are taken
    SLOW = "slow"  #: in a slow directory, from any source


class Item(NamedTuple):
    """A file to send, by name, without content: ten thousand items take a few MiB."""

    path: str  # relative to the spool folder, surrogate-escaped, "/"-separated
    lane: Lane = Lane.ARRIVED  # where it came from
    failures: Failures = NO_FAILURES
    seen: Identity | None = None  # its identity one settle time ago
    success_before: float = 0.0  # Unix seconds: `CircuitBreaker.last_success_at` as this attempt began
    receipt: Receipt | None = None  # of an earlier upload: the checksum decides whether it has changed
    retried_immediately: bool = False  # the uncounted second try has been used, see UploadError
    body: bool = False  # deferred: waits in Lane.BODY
    large: bool = False  # deferred: waits in Lane.LARGE

    @property
    def tried(self) -> bool:
        """Whether it has failed before."""
        return self.failures.error_code != ""
