"""Every key of s3spool.toml: its type, its default, its limits and what it means.

The annotations below are the only list of keys. Reading, `options()`, the sample file in packaging/ and the
tables of docs/configuration.md all follow it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

from s3spool.config import validators as rules
from s3spool.config.values import (
    GIB,
    KIB,
    MIB,
    TIB,
    Choice,
    Globs,
    Kind,
    Pairs,
    Place,
    Seconds,
    Size,
    Switch,
    Text,
    Whole,
)

Backend = Literal["auto", "inotify", "poll"]
AddressingStyle = Literal["auto", "path", "virtual"]
Encryption = Literal["", "AES256", "aws:kms"]
CannedAcl = Literal[
    "",
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
]
Overwrite = Literal["allow", "never"]
Checksum = Literal["auto", "crc64nvme", "crc32", "sha256", "md5"]
Action = Literal["keep", "delete", "archive"]
Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json", "journal"]

_DAY_S = 86_400
_EXCLUDE = (
    # Being written: editors, browsers, downloaders, transfer and copy programs, databases.
    ".*",
    "*~",
    "~$*",
    "*.part",
    "*.partial",
    "*.filepart",
    "*.tmp",
    "*.crdownload",
    "*.download",
    "*.opdownload",
    "*.aria2",
    "*.!qB",
    "*.!ut",
    "*.bc!",
    "*.upload",
    "*.uploading",
    "*.inprogress",
    "*._COPYING_",
    "*.swp",
    "*.swx",
    "4913",
    "*.db-journal",
    "*.db-wal",
    "*.db-shm",
    # A system's own.
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "lost+found/",
    "@eaDir/",
    "$RECYCLE.BIN/",
    "System Volume Information/",
)


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    directory: Annotated[Path, Place("the folder to watch; only ./tmp is made where it is missing", "./tmp")]
    recursive: Annotated[bool, Switch("whether files in subdirectories are taken too")] = True
    include: Annotated[tuple[str, ...], Globs("patterns on the relative path: files to take", 1)] = ("*",)
    exclude: Annotated[tuple[str, ...], Globs("patterns on the relative path: files to leave", 0)] = _EXCLUDE
    settle_s: Annotated[float, Seconds("a file is complete when unchanged for so long", 0, _DAY_S)] = 1.0
    rescan_s: Annotated[float, Seconds("how often the whole folder is compared with the ledger", 1, _DAY_S)] = 300
    max_size: Annotated[
        int, Size("a larger file is parked, not sent; empty for no limit", 1, 5 * TIB, optional=True)
    ] = 0
    backend: Annotated[
        Backend,
        Choice("where events come from: inotify, poll (network folders), or auto to choose", get_args(Backend)),
    ] = "auto"


class DestinationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bucket: Annotated[str, Text("the bucket's name, or an access point's ARN", rules.bucket)] = ""
    prefix: Annotated[
        str,
        Text(
            "what every key starts with; may hold {hostname} and the file's mtime as in logs/%Y/%m/%d/",
            rules.prefix,
        ),
    ] = ""
    endpoint_url: Annotated[str, Text("where an S3-compatible store listens; empty for AWS", rules.endpoint_url)] = ""
    region: Annotated[str, Text("the bucket's region; empty: from the environment or the profile", rules.region)] = ""
    profile: Annotated[str, Text("a profile of AWS's shared files", str)] = ""
    addressing_style: Annotated[
        AddressingStyle,
        Choice("where the bucket stands in the URL: path, virtual (host), or auto", get_args(AddressingStyle)),
    ] = "auto"
    ca_bundle: Annotated[Path | None, Place("a PEM file of certificates to trust instead of the system's")] = None
    storage_class: Annotated[str, Text("like STANDARD_IA; empty for the bucket's own", rules.name)] = ""
    sse: Annotated[
        Encryption,
        Choice("server-side encryption: AES256 or aws:kms; empty for the bucket's own", get_args(Encryption)),
    ] = ""
    kms_key_id: Annotated[str, Text('the KMS key to encrypt with, for sse = "aws:kms"', rules.name)] = ""
    acl: Annotated[CannedAcl, Choice("a canned ACL like bucket-owner-full-control", get_args(CannedAcl))] = ""
    expected_bucket_owner: Annotated[str, Text("the account that must own the bucket, 12 digits", rules.account)] = ""
    overwrite: Annotated[
        Overwrite,
        Choice("whether an object of the same key may be replaced: allow or never", get_args(Overwrite)),
    ] = "allow"
    checksum: Annotated[
        Checksum,
        Choice(
            "what S3 checks: crc64nvme, crc32, sha256, md5; auto: crc64nvme where it is accepted, else md5",
            get_args(Checksum),
        ),
    ] = "auto"
    tags: Annotated[dict[str, str], Pairs('tags of every object, at most 10, like { team = "data" }', rules.tags)] = {}
    metadata: Annotated[
        dict[str, str],
        Pairs("metadata of every object; the file's mtime is always added as mtime", rules.metadata),
    ] = {}


class UploadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    workers: Annotated[int, Whole("how many files and parts are sent at the same time", 1, 1000)] = 100
    queue_size: Annotated[int, Whole("how many names wait in memory, the rest in the folder", 1, 1_000_000)] = 10_000
    multipart_threshold: Annotated[int, Size("files above this size are sent in parts", 5 * MIB, 5 * GIB)] = 16 * MIB
    part_size: Annotated[int, Size("the size of a part; raised where 10,000 are too few", 5 * MIB, 5 * GIB)] = 16 * MIB
    max_bandwidth: Annotated[
        int,
        Size(
            "bytes a second for all workers together, like 50MiB/s; empty for no limit",
            KIB,
            TIB,
            per_second=True,
            optional=True,
        ),
    ] = 0
    timeout_s: Annotated[float, Seconds("how long a request may make no progress", 1, 3600)] = 30


class AfterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: Annotated[
        Action, Choice("what becomes of a file S3 has confirmed: keep, delete or archive", get_args(Action))
    ] = "keep"
    archive_directory: Annotated[
        Path | None, Place('where action = "archive" moves files to, outside of watch.directory')
    ] = None


class RetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    initial_s: Annotated[float, Seconds("the longest wait before the second attempt; then it doubles", 0.1, _DAY_S)] = 1
    max_s: Annotated[float, Seconds("the longest wait between two attempts", 0.1, _DAY_S)] = 300
    max_attempts: Annotated[
        int, Whole("a file is parked after so many failures that are its own (others pass); 0: never", 0, 1_000_000)
    ] = 0


class StateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    directory: Annotated[
        Path, Place("where the ledger is kept; default $STATE_DIRECTORY, else $XDG_STATE_HOME/s3spool")
    ]
    receipt_days: Annotated[int, Whole("how long a file that left the folder is remembered", 0, 36_500)] = 30
    abort_stale_multipart_days: Annotated[
        int, Whole("multipart uploads of ours without progress for so long are aborted", 1, 3650)
    ] = 7

    @property
    def ledger_path(self) -> Path:
        return self.directory / "ledger.sqlite3"


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    drain_s: Annotated[float, Seconds("how long uploads may finish when the daemon stops", 0, _DAY_S)] = 30
    control_socket: Annotated[
        Path,
        Place("where the other commands reach the daemon; default in $RUNTIME_DIRECTORY, else state.directory"),
    ]
    control_group: Annotated[
        str,
        Text("whose members may give orders, beside root and the daemon's user; empty: nobody else", rules.group),
    ] = ""
    http_listen: Annotated[
        str,
        Text(
            "an address like 127.0.0.1:9464 for metrics, health and a page; has no effect yet, and a warning says so",
            rules.listen_address,
        ),
    ] = ""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Annotated[Level, Choice("the least that is logged: debug, info, warning, error", get_args(Level))] = "info"
    format: Annotated[
        Format,
        Choice("console, json, journal; auto: what suits the place stderr leads to", get_args(Format)),
    ] = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    watch: WatchConfig
    destination: DestinationConfig
    upload: UploadConfig
    after: AfterConfig
    retry: RetryConfig
    state: StateConfig
    service: ServiceConfig
    log: LogConfig
    source: Path | None = None  #: the file it was read from


#: Keys that are read and checked, but change nothing yet, and why.
_WITHOUT_EFFECT = {"service.http_listen": "this version serves no metrics, health or page"}


class Option(NamedTuple):
    """One key, for documentation and command lines."""

    name: str  #: dotted
    default: str  #: a TOML literal
    doc: str
    environment: str


#: The keys that a reload (SIGHUP) applies; the others wait for a restart.
LIVE = frozenset(
    {
        "log.level",
        "watch.include",
        "watch.exclude",
        "retry.initial_s",
        "retry.max_s",
        "retry.max_attempts",
        "upload.max_bandwidth",
        "after.action",
        "after.archive_directory",
    }
)


ENVIRONMENT_PREFIX = "S3SPOOL_"

SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: field.type for field in msgspec.structs.fields(Config) if field.name != "source"
}
FIELDS = {
    f"{section}.{field.name}": field for section, cls in SECTIONS.items() for field in msgspec.structs.fields(cls)
}
KINDS: dict[str, Kind] = {name: field.type.__metadata__[0] for name, field in FIELDS.items()}


def options() -> list[Option]:
    """Every key, in the order of the sections."""
    return [
        Option(name, KINDS[name].literal(_default(field)), KINDS[name].doc, _variable(name))
        for name, field in FIELDS.items()
    ]


def changed(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The dotted names that differ: those a reload applies, and those it has to refuse."""
    live: list[str] = []
    refused: list[str] = []
    for name in FIELDS:
        section, key = name.split(".")
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key):
            (live if name in LIVE else refused).append(name)
    return live, refused


def without_effect(config: Config) -> dict[str, str]:
    """The dotted names of what is set in vain, and why; never to be passed over in silence."""
    defaults = {name: field.default for name, field in FIELDS.items()}
    names = [name.split(".") for name in _WITHOUT_EFFECT]
    return {
        f"{section}.{key}": _WITHOUT_EFFECT[f"{section}.{key}"]
        for section, key in names
        if getattr(getattr(config, section), key) != defaults[f"{section}.{key}"]
    }


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper().replace(".", "__")


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
