"""What travels through the pipeline."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from s3spool.ledger.rows import NO_FAILURES, Failures, Identity, Receipt


class Lane(Enum):
    """Which queue of the inbox an item waits in."""

    ARRIVED = "arrived"  #: hinted by the watcher
    FOUND = "found"  #: found by a scan
    RETRY = "retry"  #: failed before
    BODY = "body"  #: found to be above 128 KiB, and put aside while nine tenths of the workers send such bodies
    LARGE = "large"  #: found to be large, and put aside until the large files before it are taken
    SLOW = "slow"  #: in a slow directory, wherever it came from


class Item(NamedTuple):
    """A name to be sent. Holds no content: ten thousand of these are a few MiB."""

    path: str  # relative to the spool folder, surrogate-escaped, "/"-separated
    lane: Lane = Lane.ARRIVED  # where it came from
    failures: Failures = NO_FAILURES
    seen: Identity | None = None  # as it looked one settle time ago
    success_before: float = 0.0  # Unix seconds: `CircuitBreaker.last_success_at` as this attempt began
    receipt: Receipt | None = None  # sent before, and the checksum decides whether it has changed
    retried_immediately: bool = False  # sent once more, uncounted, because the cause of its failure was removed
    body: bool = False  # put aside: waits in the lane for bodies
    large: bool = False  # put aside: waits in the lane for large files, whatever lane it came from

    @property
    def tried(self) -> bool:
        """Whether it has failed before."""
        return self.failures.error_code != ""
