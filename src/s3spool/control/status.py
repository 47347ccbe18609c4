"""The answer to `status`: one type for the running daemon, the stopped daemon, the socket and the JSON."""

from __future__ import annotations

import msgspec


class Destination(msgspec.Struct, kw_only=True):
    bucket: str = ""
    prefix: str = ""
    endpoint: str = ""
    state: str | None = None  #: "open", "slowed" or "paused"; None without a daemon
    since: str | None = None
    reason: str | None = None
    by_hand: bool = False  #: paused by `s3spool pause`


class Watch(msgspec.Struct, kw_only=True):
    directory: str = ""
    backend: str = ""
    overflows: int = 0
    files_missed: int = 0
    too_deep: list[str] = []


class Files(msgspec.Struct, kw_only=True):
    """How many files are in each state, as `list` shows them; then two counters since the start.

    In a shared ledger the first three count files of this daemon, the next three files of all daemons.
    """

    settling: int = 0
    queued: int = 0
    uploading: int = 0
    waiting: int = 0
    parked: int = 0
    unsent: int = 0  #: the five above together
    uploaded: int = 0
    vanished: int = 0
    excluded: int = 0

    def __post_init__(self) -> None:
        self.unsent = self.settling + self.queued + self.uploading + self.waiting + self.parked


class Bytes(msgspec.Struct, kw_only=True):
    uploaded: int = 0  #: of all receipts
    in_flight: int = 0
    unsent: int = 0  #: of the files whose size is known


class Rate(msgspec.Struct, kw_only=True):
    files_per_s: float = 0.0
    bytes_per_s: float = 0.0


class LargeFile(msgspec.Struct, kw_only=True):
    path: str
    bytes: int
    bytes_uploaded: int
    bytes_per_s: float = 0.0
    left_s: float | None = None  #: None while the rate is not known


class Node(msgspec.Struct, kw_only=True):
    """A living daemon that shares the ledger, as it said with its last renewal of the lease."""

    name: str
    host: str
    version: str
    started: str
    lease_left_s: float
    in_flight: int
    files_per_minute: float
    this: bool = False  #: the daemon that answers


class Status(msgspec.Struct, kw_only=True):
    """Defaults are the answer where no daemon runs and no ledger is there."""

    version: str = ""
    pid: int | None = None
    started: str | None = None
    state: str = "stopped"
    destination: Destination = msgspec.field(default_factory=Destination)
    watch: Watch = msgspec.field(default_factory=Watch)
    files: Files = msgspec.field(default_factory=Files)
    bytes: Bytes = msgspec.field(default_factory=Bytes)
    rate: Rate = msgspec.field(default_factory=Rate)
    large_files: list[LargeFile] = []
    hanging: list[str] = []
    nodes: list[Node] = []  #: of this destination, where a ledger is shared
    oldest_unsent_s: float = 0.0
    last_error: str | None = None
