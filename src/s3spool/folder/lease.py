"""The lease test: whether anybody has a file open for writing."""

from __future__ import annotations

import errno
import fcntl
from enum import Enum


class Lease(Enum):
    """What the lease test says of other openers (fcntl(2), F_SETLEASE)."""

    FREE = "free"  #: no writer has it open
    BUSY = "busy"  #: a writer has it open
    UNKNOWN = "unknown"  #: the test is not allowed or not supported here


def take_lease(fd: int) -> Lease:
    """Test by taking a read lease. FREE holds the lease: a writer's open(2) blocks until `release_lease`."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as exc:
        return Lease.BUSY if exc.errno == errno.EAGAIN else Lease.UNKNOWN
    return Lease.FREE


def release_lease(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
