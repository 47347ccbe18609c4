"""Every key of s3spool.toml: its type, its default, its limits and what it means.

These annotations are the only list of keys. The loader, the sample file in packaging/ and docs/configuration.md follow.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from s3spool.config import validators as rules
from s3spool.config.rules import Rule
from s3spool.config.values import GIB, KIB, MIB, TIB, Option, doc, globs, matching, path, seconds, size, whole

_DAY_S = 86_400
_EXCLUDE = (
    # Files being written: editors, browsers, downloaders, transfer and copy programs, databases.
    ".*", "*~", "~$*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.crdownload", "*.download", "*.opdownload",
    "*.aria2", "*.!qB", "*.!ut", "*.bc!", "*.upload", "*.uploading", "*.inprogress", "*._COPYING_", "*.swp", "*.swx",
    "4913", "*.db-journal", "*.db-wal", "*.db-shm",
    # Files of an operating system.
    "Thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found/", "@eaDir/", "$RECYCLE.BIN/", "System Volume Information/",
)  # fmt: skip

#: The origin of a setting that was typed.
COMMAND_LINE = "the command line"

_Pattern = Annotated[str, msgspec.Meta(min_length=1)]
_Backend = Literal["auto", "inotify", "poll"]
_Addressing = Literal["auto", "path", "virtual"]
_Encryption = Literal["", "AES256", "aws:kms"]
_Acl = Literal[
    "", "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read",
    "bucket-owner-full-control",
]  # fmt: skip
_LockMode = Literal["", "GOVERNANCE", "COMPLIANCE"]
_Checksum = Literal["auto", "crc64nvme", "crc32", "sha256", "md5"]
_CHECKSUM = (
    "checksum that S3 verifies: crc64nvme, crc32, sha256, md5; auto: crc64nvme if the server accepts it, else md5"
)
_CONTENT_TYPE = "Content-Type; auto: by the name; empty for none"
_METADATA = "metadata of every object; s3spool adds mtime"
_LEDGER = "postgresql://USER@HOST/DATABASE that several daemons share; empty: SQLite in `directory`"
_ReceiptKind = Literal["", "xattr", "file"]
_Action = Literal["keep", "delete", "archive"]
_Level = Literal["debug", "info", "warning", "error"]
_Format = Literal["auto", "console", "json", "journal"]


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    directory: Annotated[Path, path("folder to watch; s3spool creates only ./tmp if it is missing", "./tmp")]
    recursive: Annotated[bool, doc("true: take files in subdirectories too")] = True
    include: Annotated[tuple[_Pattern, ...], globs("patterns of files to take, on the relative path", 1)] = ("*",)
    exclude: Annotated[tuple[_Pattern, ...], globs("patterns of files to leave, on the relative path")] = _EXCLUDE
    settle_s: Annotated[float, seconds("seconds without a change before a file counts as complete", 0, _DAY_S)] = 1.0
    rescan_s: Annotated[float, seconds("seconds between two comparisons of folder and ledger", 1, _DAY_S)] = 300
    max_size: Annotated[int, size("a larger file is parked, not sent; empty for no limit", 1, 5 * TIB)] = 0
    backend: Annotated[_Backend, doc("source of events: inotify, poll (network folders), or auto to choose")] = "auto"


class DestinationConfig(msgspec.Struct, frozen=True, kw_only=True):
    bucket: Annotated[str, doc("name of the bucket, or ARN of an access point", rules.bucket)] = ""
    prefix: Annotated[str, doc("start of every key; may hold {hostname} and the mtime: %Y/%m/%d/", rules.prefix)] = ""
    endpoint_url: Annotated[str, doc("URL of an S3-compatible store; empty for AWS", rules.endpoint_url)] = ""
    region: Annotated[str, matching("region of the bucket; empty: that of environment or profile", rules.REGION)] = ""
    profile: Annotated[str, doc("profile in AWS's shared files")] = ""
    addressing_style: Annotated[_Addressing, doc("place of the bucket in the URL: path, virtual (host), auto")] = "auto"
    ca_bundle: Annotated[Path | None, path("PEM file of certificates to trust instead of the system's")] = None
    storage_class: Annotated[str, matching("like STANDARD_IA; empty for the bucket's default", rules.HEADER)] = ""
    sse: Annotated[_Encryption, doc("server-side encryption: AES256 or aws:kms; empty for the bucket's default")] = ""
    kms_key_id: Annotated[str, matching('KMS key that encrypts, for sse = "aws:kms"', rules.HEADER)] = ""
    acl: Annotated[_Acl, doc("canned ACL like bucket-owner-full-control")] = ""
    expected_bucket_owner: Annotated[str, matching("account that must own the bucket, 12 digits", rules.ACCOUNT)] = ""
    overwrite: Annotated[Literal["allow", "never"], doc("replace an object of the same key: allow or never")] = "allow"
    checksum: Annotated[_Checksum, doc(_CHECKSUM)] = "auto"
    tags: Annotated[dict[str, str], doc('tags of every object, at most 10, like { team = "data" }', rules.tags)] = {}
    metadata: Annotated[dict[str, str], doc(_METADATA, rules.metadata)] = {}
    content_type: Annotated[str, doc(_CONTENT_TYPE, rules.content_type)] = "auto"
    cache_control: Annotated[str, doc("Cache-Control header, like max-age=3600", rules.header)] = ""
    content_disposition: Annotated[str, doc("Content-Disposition header, like attachment", rules.header)] = ""
    content_encoding: Annotated[str, matching("Content-Encoding header, like gzip", rules.CODINGS)] = ""
    content_language: Annotated[str, matching("Content-Language header, like de", rules.LANGUAGES)] = ""
    object_lock_mode: Annotated[_LockMode, doc("GOVERNANCE or COMPLIANCE; empty for no lock")] = ""
    object_lock_days: Annotated[int, whole("days that an object stays locked", 0, 36_500)] = 0
    legal_hold: Annotated[bool, doc("true: put each object under legal hold")] = False
    requester_pays: Annotated[bool, doc("true: pay for requests to another account's bucket")] = False
    use_accelerate_endpoint: Annotated[bool, doc("true: S3 Transfer Acceleration")] = False
    use_dualstack_endpoint: Annotated[bool, doc("true: AWS over IPv6 and IPv4")] = False
    use_fips_endpoint: Annotated[bool, doc("true: AWS's FIPS endpoint")] = False

    @property
    def ledger_name(self) -> str:
        """The ledger's name of the destination: a receipt counts for its own destination only."""
        return f"{self.endpoint_url or 'aws'}|{self.bucket}|{self.prefix}"


class UploadConfig(msgspec.Struct, frozen=True, kw_only=True):
    workers: Annotated[int, whole("number of files and parts sent at the same time", 1, 1000)] = 100
    queue_size: Annotated[int, whole("most names in memory; the rest waits in the folder", 1, 1_000_000)] = 10_000
    multipart_threshold: Annotated[int, size("a larger file is sent in parts", 5 * MIB, 5 * GIB)] = 16 * MIB
    part_size: Annotated[int, size("size of a part; raised if 10,000 parts are too few", 5 * MIB, 5 * GIB)] = 16 * MIB
    max_bandwidth: Annotated[
        int, size("bytes per second of all workers together, like 50MiB/s; empty for no limit", KIB, TIB, suffix="/s")
    ] = 0
    timeout_s: Annotated[float, seconds("seconds without progress before a request fails", 1, 3600)] = 30


class AfterConfig(msgspec.Struct, frozen=True, kw_only=True):
    action: Annotated[_Action, doc("action on a file that S3 has confirmed: keep, delete or archive")] = "keep"
    archive_directory: Annotated[Path | None, path('for action = "archive": a directory outside watch.directory')] = (
        None
    )
    receipt: Annotated[
        _ReceiptKind, doc("receipt beside the kept or archived file: xattr (user.s3spool.*) or file (archive only)")
    ] = ""
    exec: Annotated[
        str, doc("command that gets uploaded, parked and paused events as JSON lines on stdin", rules.command)
    ] = ""


class RetryConfig(msgspec.Struct, frozen=True, kw_only=True):
    initial_s: Annotated[float, seconds("longest wait in seconds before attempt 2; then it doubles", 0.1, _DAY_S)] = 1
    max_s: Annotated[float, seconds("longest wait in seconds between two attempts", 0.1, _DAY_S)] = 300
    max_attempts: Annotated[
        int, whole("failures of its own (others pass) that park a file; 0: never", 0, 1_000_000)
    ] = 0


class StateConfig(msgspec.Struct, frozen=True, kw_only=True):
    directory: Annotated[Path, path("directory of the ledger; default $STATE_DIRECTORY, else $XDG_STATE_HOME/s3spool")]
    receipt_days: Annotated[int, whole("days that the ledger remembers a file that left the folder", 0, 36_500)] = 30
    abort_stale_multipart_days: Annotated[
        int, whole("days without progress before s3spool aborts a multipart upload of its own", 1, 3650)
    ] = 7
    ledger: Annotated[str, doc(_LEDGER, rules.ledger_url)] = ""
    node: Annotated[str, matching("name of this daemon in a shared ledger; empty: the host's", rules.HEADER)] = ""
    lease_s: Annotated[float, seconds("seconds after which other nodes take over the files of a dead one", 1, 600)] = 15

    @property
    def node_name(self) -> str:
        return self.node or os.uname().nodename

    @property
    def ledger_path(self) -> Path:
        return self.directory / "ledger.sqlite3"


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    drain_s: Annotated[float, seconds("seconds that uploads may take to finish when the daemon stops", 0, _DAY_S)] = 30
    control_socket: Annotated[Path, path("socket for commands; default in $RUNTIME_DIRECTORY, else state.directory")]
    control_group: Annotated[
        str, matching("group that may give orders, besides root and the daemon's user; empty: no group", rules.GROUP)
    ] = ""
    http_listen: Annotated[
        str, doc("HOST:PORT of metrics, health and a page; needs the extra http; empty: none", rules.listen_address)
    ] = ""
    http_token: Annotated[
        str, doc("password of the HTTP server, required beyond loopback: 16 characters or more", rules.token)
    ] = ""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    level: Annotated[_Level, doc("lowest level that is logged: debug, info, warning, error")] = "info"
    format: Annotated[_Format, doc("console, json, journal; auto: the one that suits stderr")] = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    watch: WatchConfig
    destination: DestinationConfig
    upload: UploadConfig
    after: AfterConfig
    retry: RetryConfig
    state: StateConfig
    service: ServiceConfig
    log: LogConfig
    rules: tuple[Rule, ...] = ()  #: [[rule]], in the order of the file
    source: Path | None = None  #: the file it was read from
    origins: dict[str, str] = {}  #: the file, variable or "the command line" that has set a key, by its dotted name

    def origin(self, name: str) -> str:
        """Where a key was set: "in ./s3spool.toml", "on the command line", "by default"."""
        origin = self.origins.get(name)
        return f"{'on' if origin == COMMAND_LINE else 'in'} {origin}" if origin else "by default"

    def after_upload(self) -> str:
        """`uploaded files are DELETED here: after.action = "delete" in ./s3spool.toml`."""
        action = self.after.action
        outcomes = {"delete": "are DELETED here", "archive": f"are moved to {self.after.archive_directory}"}
        setting = f'after.action = "{action}" {self.origin("after.action")}'
        by_rule = [f"; {rule.after} by rule {number}" for number, rule in enumerate(self.rules, 1) if rule.after]
        return f"uploaded files {outcomes.get(action, 'stay here')}: {setting}{''.join(by_rule)}"

    @property
    def actions(self) -> set[str]:
        """What becomes of uploaded files, by [after] and by rules."""
        return {self.after.action, *(rule.after for rule in self.rules if rule.after)}


#: The keys that a reload (SIGHUP) applies; the others need a restart.
LIVE = frozenset({
    "log.level", "watch.include", "watch.exclude", "retry.initial_s", "retry.max_s", "retry.max_attempts",
    "upload.max_bandwidth", "after.action", "after.archive_directory", "rule",
})  # fmt: skip

SECTIONS: dict[str, type[msgspec.Struct]] = {
    field.name: field.type
    for field in msgspec.structs.fields(Config)
    if field.name not in {"source", "rules", "origins"}
}
OPTIONS = {
    (name := f"{section}.{field.name}"): Option(name, field)
    for section, cls in SECTIONS.items()
    for field in msgspec.structs.fields(cls)
}


def value_of(config: Config, name: str) -> object:
    """The value of a key by its dotted name."""
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def changed(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The names of the keys that differ: those that a reload applies, and those that need a restart."""
    names = [name for name in OPTIONS if value_of(old, name) != value_of(new, name)]
    names += ["rule"] if old.rules != new.rules else []
    return [name for name in names if name in LIVE], [name for name in names if name not in LIVE]
