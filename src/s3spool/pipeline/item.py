"""What travels through the pipeline."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from s3spool.ledger.rows import Identity, Receipt


class Lane(Enum):
    """Which queue of the inbox an item waits in."""

    NEW = "new"  #: hinted by the watcher or found by a scan
    RETRY = "retry"  #: failed before and due again
    LARGE = "large"  #: found to be large, and put aside until the large files before it are taken


class Item(NamedTuple):
    """A name to be sent. Holds no content: ten thousand of these are a few MiB."""

    path: str  # relative to the spool folder, surrogate-escaped, "/"-separated
    lane: Lane = Lane.NEW
    attempts: int = 0  # failures so far
    first_error_at: float = 0.0  # Unix seconds; 0: none yet
    seen: Identity | None = None  # as it looked one settle time ago
    blamed_at: float = 0.0  # Unix seconds: when its failure paused the destination
    blamed_for: str = ""  # the code of the error that was last held against it, in the retry list or by a pause
    last_error_at: float = 0.0  # Unix seconds: when that was
    taken_at: float = 0.0  # Unix seconds: `Destination.taken_at` as this attempt began, if it is not the first
    receipt: Receipt | None = None  # sent before, and the checksum decides whether it has changed
    again: bool = False  # was sent once more, uncounted, because what had been wrong was mended
    large: bool = False  # put aside: waits in the lane for large files, whatever lane it came from
