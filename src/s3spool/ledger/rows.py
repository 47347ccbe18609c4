"""The rows of the ledger as other packages see them."""

from __future__ import annotations

import os
from enum import Enum
from typing import NamedTuple

_MAX_INTEGER = 2**63 - 1  # SQLite stores no larger one


class Identity(NamedTuple):
    """One state of one file. Equal identities mean equal bytes; docs/architecture.md names the exceptions."""

    dev: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        inode, mtime_ns = status.st_ino, status.st_mtime_ns
        if inode > _MAX_INTEGER or not -_MAX_INTEGER <= mtime_ns <= _MAX_INTEGER:
            # Some file systems use all 64 bits of an inode number, and any user may date a file to the year 2400.
            inode = inode if inode <= _MAX_INTEGER else inode - 2**64
            mtime_ns = max(-_MAX_INTEGER, min(mtime_ns, _MAX_INTEGER))
        return cls(status.st_dev, inode, status.st_size, mtime_ns, status.st_ctime_ns)

    def may_hold_the_same(self, other: Identity) -> bool:
        """True where only ctime differs (chmod, rename, a new hard link) or dev (disks are numbered anew at boot)."""
        return self != other and self[1:4] == other[1:4]


NO_IDENTITY = Identity(0, 0, 0, 0, 0)  #: of a file that could not be looked at: equal to that of no file


class State(Enum):
    """States of a row in the retry list."""

    WAITING = "waiting"  #: due at next_attempt
    PARKED = "parked"  #: not tried again until it changes or `s3spool retry` releases it


class Receipt(NamedTuple):
    """S3 has confirmed this content."""

    path: str
    identity: Identity
    destination: int
    key: str
    etag: str
    checksum: str
    version_id: str
    read_at: float
    uploaded_at: float
    after: str


class Failures(NamedTuple):
    """The failures of one file: the evidence for the rules of `CircuitBreaker`."""

    attempts: int = 0  # failures after which it backed off or was parked
    first_error_at: float = 0.0  # Unix seconds; 0: none yet
    last_error_at: float = 0.0  # Unix seconds
    error_code: str = ""  # of the last one
    own: int = 0  # consecutive failures with this error that were proven to be the file's own


NO_FAILURES = Failures()


class Retry(NamedTuple):
    """A file that could not be sent, and when it is tried again."""

    path: str
    identity: Identity
    attempts: int
    first_error_at: float
    last_error_at: float
    error_code: str
    error: str
    hint: str
    next_attempt: float
    state: State
    own_failures: int = 0  # Failures.own
    provisional: bool = False  # parked without proof: tried once more when another file succeeds

    @property
    def failures(self) -> Failures:
        return Failures(self.attempts, self.first_error_at, self.last_error_at, self.error_code, self.own_failures)


class Multipart(NamedTuple):
    """An upload in parts that S3 knows by `upload_id`."""

    path: str
    identity: Identity
    destination: int
    bucket: str
    key: str
    upload_id: str
    part_size: int
    algorithm: str
    started_at: float


class Part(NamedTuple):
    """One part that S3 has confirmed."""

    upload_id: str
    number: int
    size: int
    etag: str
    checksum: str


class Pause(NamedTuple):
    """Uploads are paused by hand."""

    since: float  # Unix seconds
    reason: str  # a person's words; may be empty

    @property
    def words(self) -> str:
        return f"by hand: {self.reason}" if self.reason else "by hand"


class NodeLoad(NamedTuple):
    """What a node reports with each renewal of its lease."""

    in_flight: int = 0  # files that workers have
    files_per_minute: float = 0.0  # uploaded since the report before
    marker: str = ""  # content of its marker file in the folder; empty: it could not write one


NO_LOAD = NodeLoad()


class Node(NamedTuple):
    """A daemon that shares the ledger, and whose lease lasts."""

    owner: int  # its number among the owners of claims
    destination: str  # the ledger's name of its destination
    name: str
    host: str
    version: str
    started_at: float  # Unix seconds, by the database's clock
    lease_left_s: float
    load: NodeLoad


def to_text(path: str) -> str:
    """A path as the ledger keeps it: itself, or `//` and its bytes as Latin-1 where it is not UTF-8.

    SQLite's text and JSON hold no lone surrogates; a relative path never starts with a slash, so the mark is free.
    """
    if path.isascii():
        return path
    try:
        path.encode()
    except UnicodeEncodeError:
        return "//" + os.fsencode(path).decode("latin-1")
    return path


def from_text(text: str) -> str:
    """The reverse of `to_text`."""
    return os.fsdecode(text[2:].encode("latin-1")) if text.startswith("//") else text


def storable(text: str) -> str:
    """An error may quote a name that is not UTF-8, which JSON cannot hold; PostgreSQL stores no NUL."""
    text = text.replace("\0", "\\x00")
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
