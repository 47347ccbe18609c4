"""Settings: sources, values, error messages, and equality with the documentation."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from s3spool.cli.commands import cli
from s3spool.config import loader as config_module
from s3spool.config.directories import check_directories
from s3spool.config.loader import load, require_bucket
from s3spool.config.rules import DESTINATION_KEYS
from s3spool.config.schema import LIVE, OPTIONS, Config, DestinationConfig, changed
from s3spool.config.templates import FIELDS
from s3spool.config.validators import PREFIX_FIELDS
from s3spool.errors import ConfigError
from support.processes import finished

ROOT = Path(__file__).parents[2]
MIB = 1024**2


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short one: the control socket's default path has to fit below it."""
    return tmp_path_factory.mktemp("c")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has an empty current directory and home, and no system-wide file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(config_module, "SYSTEM_FILE", tmp_path / "etc" / "s3spool.toml")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write_file(text: str) -> Path:
        path = tmp_path / "given.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def read(path: Path | None = None, *, environ: dict[str, str] | None = None, **overrides: object) -> Config:
    """Load with a bare environment; `upload__workers=4` overrides upload.workers."""
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return load(path, overrides=dotted, environ={"HOME": os.environ["HOME"], **(environ or {})})


def problem(path: Path | None = None, *, environ: dict[str, str] | None = None, **overrides: object) -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        read(path, environ=environ, **overrides)
    return str(caught.value)


# --- what is read


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    """No file, no variables and no flags give a complete configuration."""
    config = read()

    assert config.source is None
    assert config.watch.directory == tmp_path / "tmp"
    assert config.watch.include == ("*",)
    assert config.upload.part_size == 16 * MIB
    assert config.upload.max_bandwidth == 0
    assert config.after.archive_directory is None
    assert config.destination.ca_bundle is None
    assert config.destination.tags == {}
    assert config.state.directory == tmp_path / "home/.local/state/s3spool"
    assert config.state.ledger_path == config.state.directory / "ledger.sqlite3"
    assert config.service.control_socket == config.state.directory / "control.sock"


def test_values_arrive_in_their_final_types(tmp_path: Path, write: Callable[[str], Path]) -> None:
    """Paths are absolute, sizes are bytes, lists are tuples, and tables are dicts."""
    path = write(
        """
        [watch]
        directory = "~/drop"
        include = ["*.csv"]
        settle_s = 2
        [destination]
        bucket = "my-bucket"
        ca_bundle = "ca.pem"
        endpoint_url = "http://[::1]:9000/"
        [destination.tags]
        team = "data"
        [upload]
        multipart_threshold = "50MB"
        part_size = 8388608
        max_bandwidth = "50MiB/s"
        [after]
        archive_directory = "sent"
        """
    )

    config = read(path)

    assert config.source == path
    assert config.watch.directory == tmp_path / "home/drop"
    assert config.watch.include == ("*.csv",)
    assert config.watch.settle_s == 2.0
    assert config.destination.ca_bundle == tmp_path / "ca.pem"
    assert config.destination.endpoint_url == "http://[::1]:9000"
    assert config.destination.tags == {"team": "data"}
    assert config.upload.multipart_threshold == 50_000_000
    assert config.upload.part_size == 8 * MIB
    assert config.upload.max_bandwidth == 50 * MIB
    assert config.after.archive_directory == tmp_path / "sent"


def test_a_section_can_be_built_by_hand() -> None:
    """Tests of other packages build a section with its defaults without a file, and cannot change it."""
    destination = DestinationConfig(bucket="b")

    assert destination.overwrite == "allow"
    with pytest.raises(AttributeError):
        destination.bucket = "c"  # type: ignore[misc]  # the point of the test


def test_the_first_file_found_is_read(tmp_path: Path) -> None:
    """The current directory comes before the user's configuration, and that before the system's."""
    places = [tmp_path / "etc/s3spool.toml", tmp_path / "home/.config/s3spool/s3spool.toml", tmp_path / "s3spool.toml"]

    for workers, place in enumerate(places, start=1):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"[upload]\nworkers = {workers}\n")

        config = read()

        assert (config.source, config.upload.workers) == (place, workers)


def test_xdg_config_home_is_honoured(tmp_path: Path) -> None:
    """An absolute $XDG_CONFIG_HOME moves the user's file; a relative one is ignored."""
    for place in ("xdg/s3spool", "home/.config/s3spool"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "s3spool.toml").touch()

    assert read(environ={"XDG_CONFIG_HOME": str(tmp_path / "xdg")}).source == tmp_path / "xdg/s3spool/s3spool.toml"
    assert read(environ={"XDG_CONFIG_HOME": "xdg"}).source == tmp_path / "home/.config/s3spool/s3spool.toml"


def test_flags_win_over_variables_over_the_file(write: Callable[[str], Path]) -> None:
    """Each source replaces single keys of the one before it; a flag that is None was not given."""
    path = write("[upload]\nworkers = 2\nqueue_size = 20\ntimeout_s = 5\n")
    environ = {"S3SPOOL_UPLOAD__WORKERS": "3", "S3SPOOL_UPLOAD__QUEUE_SIZE": "30"}

    config = read(path, environ=environ, upload__workers=4, upload__timeout_s=None)

    assert (config.upload.workers, config.upload.queue_size, config.upload.timeout_s) == (4, 30, 5.0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("upload.workers", "7", 7),
        ("upload.part_size", "8388608", 8 * MIB),
        ("upload.max_bandwidth", "1 MB/s", 1_000_000),
        ("upload.max_bandwidth", "0", 0),
        ("upload.max_bandwidth", "", 0),
        ("watch.settle_s", "0.5", 0.5),
        ("watch.recursive", "false", False),
        ("watch.include", '["a,b", "c"]', ("a,b", "c")),
        ("watch.include", "*.csv, *.txt", ("*.csv", "*.txt")),
        ("watch.include", "[ab]*", ("[ab]*",)),
        ("watch.exclude", "", ()),
        ("destination.tags", '{ team = "data" }', {"team": "data"}),
        ("destination.tags", "team=data, stage=a=b", {"team": "data", "stage": "a=b"}),
        ("destination.tags", "", {}),
        ("destination.expected_bucket_owner", "012345678901", "012345678901"),
        ("log.level", "debug", "debug"),
    ],
)
def test_text_is_read_as_the_key_needs_it(name: str, text: str, value: object) -> None:
    """A variable and a flag of the same text mean the same typed value."""
    section, key = name.split(".")

    from_environment = read(environ={f"S3SPOOL_{section.upper()}__{key.upper()}": text})
    from_flag = load(overrides={name: text}, environ={})

    assert getattr(getattr(from_environment, section), key) == value
    assert getattr(getattr(from_flag, section), key) == value


def test_typed_flags_are_taken_as_they_are(tmp_path: Path) -> None:
    """A command line hands over paths and tuples as well as strings."""
    config = read(watch__directory=Path("in"), watch__include=("*.a",), after__archive_directory="")

    assert config.watch.directory == tmp_path / "in"
    assert config.watch.include == ("*.a",)
    assert config.after.archive_directory is None


def test_other_variables_are_left_alone() -> None:
    """S3SPOOL_ names without two underscores are not settings."""
    assert read(environ={"S3SPOOL_HOME": "/x", "OTHER__KEY": "1"}) == read()


def test_systemd_s_directories_are_the_defaults() -> None:
    """$STATE_DIRECTORY and $RUNTIME_DIRECTORY may be colon lists, the first counts; XDG's is next."""
    config = read(environ={"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a:/run/b"})

    assert config.state.directory == Path("/var/lib/a")
    assert config.service.control_socket == Path("/run/a/control.sock")
    assert read(environ={"XDG_STATE_HOME": "/x"}).state.directory == Path("/x/s3spool")
    assert read(environ={"STATE_DIRECTORY": "/s"}, state__directory="/mine").state.directory == Path("/mine")


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    """Some editors put one before the first line."""
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf[upload]\nworkers = 3\n")

    assert read(path).upload.workers == 3


# --- what is refused

SIZE_RANGE = "must be between 5MiB and 5GiB"
WRONG = [
    ("[upload]\nworkers = 0", "upload.workers = 0: must be between 1 and 1000"),
    ("[upload]\nworkers = 1001", "upload.workers = 1001: must be between 1 and 1000"),
    ("[upload]\nworkers = true", "upload.workers = true: must be a whole number between 1 and 1000"),
    ("[upload]\nworkers = 1.0", "upload.workers = 1.0: must be a whole number"),
    ('[upload]\nworkers = "4"', 'upload.workers = "4": must be a whole number'),
    ("[upload]\nwrokers = 1", "upload.wrokers: unknown key (did you mean workers?)"),
    ("[upload]\nmax_s = 1", "upload.max_s: unknown key (did you mean retry.max_s?)"),
    ("[log]\nqqq = 1", "log.qqq: unknown key (known: level, format)"),
    ('[log]\n"a\\nb" = 1', "log.'a\\nb': unknown key"),
    ("[uplaod]", "uplaod: unknown section (did you mean upload?)"),
    ('bucket = "b"', "bucket: unknown section (did you mean destination.bucket?)"),
    ("source = 1", "source: unknown section"),
    ("qqq = 1", "qqq: unknown section (known: watch, destination, "),
    ("watch = 3", "watch = 3: must be a table: a line [watch]"),
    ("[upload]\nqueue_size = 0", "upload.queue_size = 0: must be between"),
    ('[upload]\npart_size = "4MiB"', f'upload.part_size = "4MiB": {SIZE_RANGE}'),
    ('[upload]\npart_size = "6GiB"', f'upload.part_size = "6GiB": {SIZE_RANGE}'),
    ('[upload]\npart_size = ""', 'upload.part_size = "": must be a size like 16MiB'),
    ('[upload]\npart_size = "16iB"', "must be a size like"),
    ('[upload]\npart_size = "16MiB/s"', "must be a size like"),
    ("[upload]\npart_size = 16.5", "upload.part_size = 16.5: must be a size like"),
    ("[upload]\nmultipart_threshold = 1024", f"upload.multipart_threshold = 1024: {SIZE_RANGE}"),
    ("[upload]\nmultipart_threshold = true", "upload.multipart_threshold = true: must be a size"),
    ("[upload]\nmax_bandwidth = -1", "upload.max_bandwidth = -1: must be between 1KiB and 1TiB"),
    ("[upload]\nmax_bandwidth = false", "upload.max_bandwidth = false: must be a size like 50MiB/s, or empty"),
    ("[upload]\ntimeout_s = 0", "upload.timeout_s = 0: must be between 1 and 3600 (seconds)"),
    ("[watch]\nsettle_s = -0.5", "watch.settle_s = -0.5: must be between 0 and 86400"),
    ("[watch]\nsettle_s = nan", "watch.settle_s = nan: must be between"),
    ("[watch]\nsettle_s = inf", "watch.settle_s = inf: must be between"),
    ("[watch]\nsettle_s = true", "watch.settle_s = true: must be a number of seconds"),
    ("[watch]\nrescan_s = 0", "watch.rescan_s = 0: must be"),
    ('[watch]\nrecursive = "yes"', 'watch.recursive = "yes": must be true or false'),
    ("[watch]\nrecursive = 1", "watch.recursive = 1: must be true or false"),
    ('[watch]\ndirectory = ""', 'watch.directory = "": must name a directory'),
    ("[watch]\ndirectory = 1", "watch.directory = 1: must be a path"),
    ('[watch]\ndirectory = "a\\u0000b"', "must be a path"),
    ('[watch]\ndirectory = "~nobody-of-that-name/x"', "this home directory is not known"),
    ('[watch]\ninclude = "*"', 'watch.include = "*": must be a list of patterns'),
    ("[watch]\ninclude = [1]", "must be a list of patterns"),
    ('[watch]\ninclude = [""]', "must be a list of patterns"),
    ("[watch]\ninclude = []", "must hold at least one pattern"),
    ('[watch]\nbackend = "fsevents"', 'watch.backend = "fsevents": must be one of auto, inotify, poll'),
    ("[destination]\nbucket = 1", "destination.bucket = 1: must be a string, in quotes"),
    ('[destination]\nbucket = "ab"', 'destination.bucket = "ab": must be 3 to 63 lower-case'),
    ('[destination]\nbucket = "My_Bucket"', "must be 3 to 63 lower-case"),
    ('[destination]\nbucket = "a..b"', "must be 3 to 63 lower-case"),
    ('[destination]\nbucket = "-abc"', "must be 3 to 63 lower-case"),
    ('[destination]\nbucket = "10.0.0.1"', "must not look like an IP address"),
    ('[destination]\nbucket = "s3://b/p"', "must be the name alone, without s3://"),
    ('[destination]\nbucket = "arn:aws:s3:::my-bucket"', "must be the ARN of an access point"),
    ('[destination]\nprefix = "/logs/"', 'destination.prefix = "/logs/": must not start with "/"'),
    ('[destination]\nprefix = "a//b/"', "must not hold empty"),
    ('[destination]\nprefix = "a/../b"', "must not hold empty"),
    ('[destination]\nprefix = "%Y/%q/"', "%q is not one of %Y, %m"),
    ('[destination]\nprefix = "100%"', "% is not one of"),
    ('[destination]\nprefix = "%{hostname}Y"', "%h is not one of"),
    ('[destination]\nprefix = "{host}/"', "may hold {hostname} and no other braces"),
    ('[destination]\nprefix = "a\\tb"', "must not hold control characters"),
    (f'[destination]\nprefix = "{"x" * 513}"', "must not be longer than 512 bytes"),
    ('[destination]\nendpoint_url = "s3.example.org:9000"', "must be http:// or https://"),
    ('[destination]\nendpoint_url = "ftp://h"', "must be http:// or https://"),
    ('[destination]\nendpoint_url = "https://"', "must be http:// or https://"),
    ('[destination]\nendpoint_url = "https://h:99999"', "must be http:// or https://"),
    ('[destination]\nendpoint_url = "https://h:0"', "must be http:// or https://"),
    ('[destination]\nendpoint_url = "https://[h"', "must be http:// or https://"),
    ('[destination]\nendpoint_url = "https://h/bucket"', "must not have a path"),
    ('[destination]\nendpoint_url = "https://h?x=1"', "must not have a path"),
    ('[destination]\nendpoint_url = "https://h#x"', "must not have a path"),
    ('[destination]\nendpoint_url = "https://key:secret@h"', '"***@h": must not hold credentials'),
    ('[destination]\nregion = "eu central"', "must be letters, digits and hyphens"),
    ('[destination]\naddressing_style = "host"', "must be one of auto, path, virtual"),
    ('[destination]\nsse = "aes256"', 'destination.sse = "aes256": must be one of AES256, aws:kms, or empty'),
    ('[destination]\nkms_key_id = "k"', 'destination.kms_key_id = "k": needs destination.sse = "aws:kms"'),
    ('[destination]\nacl = "public"', "must be one of private, public-read"),
    ('[destination]\nexpected_bucket_owner = "12"', "must be the 12 digits of an AWS account"),
    ("[destination]\nexpected_bucket_owner = 123456789012", "must be a string, in quotes"),
    ('[destination]\noverwrite = "always"', "must be one of allow, never"),
    ('[destination]\nchecksum = "sha1"', "must be one of auto, crc64nvme, crc32, sha256, md5"),
    ('[destination]\ntags = "a"', "must be a table of strings"),
    ("[destination.tags]\na = 1", "the value of 'a' must be a string"),
    ("[destination.tags]\n" + "\n".join(f'k{i} = ""' for i in range(11)), "must not be more than 10 tags"),
    (f'[destination.tags]\n{"k" * 129} = ""', "a key has 1 to 128 characters"),
    ('[destination.tags]\n"" = "x"', "a key has 1 to 128 characters"),
    (f'[destination.tags]\nk = "{"v" * 257}"', "a value up to 256"),
    ('[destination.tags]\nk = "a;b"', "tag 'k': may hold letters, digits"),
    ('[destination.tags]\n"aws:k" = ""', "names that start with aws: are reserved"),
    ('[destination.metadata]\nMTime = "1"', "'mtime' is s3spool's own"),
    ('[destination.metadata]\n"a b" = "1"', "'a b' cannot be a header's name"),
    ('[destination.metadata]\na = "é"', "the value of 'a' must be printable ASCII"),
    ('[destination.metadata]\na = " b"', "the value of 'a' must be printable ASCII"),
    ('[destination.metadata]\na = "1"\nA = "2"', "names that differ in case only"),
    (f'[destination.metadata]\na = "{"x" * 2016}"', "must not be longer than 2016 bytes together"),
    ('[destination]\ncontent_type = "png"', 'destination.content_type = "png": must be a type like "image/png"'),
    ('[destination]\ncontent_type = "text/html;"', "must be a type like"),
    ('[destination]\ncontent_type = "é/é"', "must be a type like"),
    ('[destination]\ncache_control = " no-store"', "must be ASCII without spaces at its ends"),
    ('[destination]\ncontent_disposition = "attachment; filename=é"', "must be ASCII"),
    ('[destination]\ncontent_disposition = "a\\nb"', "must not hold control characters"),
    ('[destination]\ncontent_encoding = "gzip, aws-chunked"', "must be a name like gzip"),
    ('[destination]\ncontent_language = "de_DE"', "must be a language like en"),
    ('[destination.metadata]\na = "{pth}"', "the value of 'a': may hold {mtime}, {size}, {hostname}, {path}"),
    ('[destination.metadata]\na = "{"', "a single brace must be doubled"),
    ('[destination.metadata]\na = "{path!r}"', "the value of 'a': may hold"),
    ('[destination.metadata]\na = "{xattr:security.x}"', "the value of 'a': may hold"),
    ('[destination]\nobject_lock_mode = "worm"', "must be one of GOVERNANCE, COMPLIANCE, or empty"),
    ('[destination]\nobject_lock_mode = "GOVERNANCE"', "needs object_lock_days of at least 1"),
    ("[destination]\nobject_lock_days = 3", "destination.object_lock_days = 3: needs object_lock_mode"),
    (
        '[destination]\nuse_fips_endpoint = true\nendpoint_url = "http://h"',
        "destination.use_fips_endpoint = true: is for AWS",
    ),
    (
        "[destination]\nuse_accelerate_endpoint = true\nuse_fips_endpoint = true",
        "destination.use_accelerate_endpoint = true: AWS accelerates no FIPS endpoint",
    ),
    ('[destination]\nuse_accelerate_endpoint = true\nbucket = "a.b"', "needs a bucket name without dots"),
    ('[destination]\nuse_accelerate_endpoint = true\naddressing_style = "path"', "needs a bucket name"),
    ('[after]\naction = "move"', 'after.action = "move": must be one of keep, delete, archive'),
    ('[after]\naction = "archive"', 'after.archive_directory = "": must name a directory for after.action'),
    (
        '[after]\narchive_directory = "./tmp/done"',
        'after.archive_directory = "./tmp/done": must not be inside watch.directory',
    ),
    ('[state]\ndirectory = "tmp"', 'state.directory = "tmp": must not be inside watch.directory'),
    ("[state]\nreceipt_days = -1", "state.receipt_days = -1: must be between 0"),
    ("[state]\nabort_stale_multipart_days = 0", "must be between 1"),
    ('[state]\nledger = "mysql://h/d"', "state.ledger: must be postgresql://USER@HOST/DATABASE, or empty"),
    ('[state]\nledger = "postgresql://u:hush@h/d"', "state.ledger: must not hold a password; it comes from PGPASSFILE"),
    ('[state]\nledger = "postgresql://h/d?password=hush"', "state.ledger: must not hold a password"),
    ('[state]\nnode = "a b"', 'state.node = "a b": must be letters, digits'),
    ("[state]\nlease_s = 0.5", "state.lease_s = 0.5: must be between 1"),
    ("[retry]\ninitial_s = 0", "retry.initial_s = 0: must be between 0.1"),
    ("[retry]\ninitial_s = 10\nmax_s = 5", "retry.max_s = 5: must not be less than retry.initial_s, 10"),
    ("[retry]\ninitial_s = 301", "retry.max_s = 300: must not be less than retry.initial_s, 301"),
    ("[retry]\nmax_attempts = -1", "retry.max_attempts = -1: must be between 0"),
    ("[service]\ndrain_s = -1", "service.drain_s = -1: must be between 0"),
    ('[service]\nhttp_listen = ":9464"', 'service.http_listen = ":9464": must be HOST:PORT'),
    ('[service]\nhttp_listen = "localhost"', "must be HOST:PORT"),
    ('[service]\nhttp_listen = "::1:9464"', "must be HOST:PORT"),
    ('[service]\nhttp_listen = "h:65536"', "must be HOST:PORT"),
    (f'[service]\ncontrol_socket = "/{"s" * 107}"', "is 108 bytes long, a socket's path may have 107"),
    ('[log]\nlevel = "trace"', 'log.level = "trace": must be one of debug, info, warning, error'),
    ('[log]\nformat = "xml"', "must be one of auto, console, json, journal"),
    ("[log]\nlevel = [1]", "log.level = [1]: must be one of"),
    ("[log]\nlevel = 2024-01-01", "log.level = 2024-01-01: must be one of"),
]


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_wrong_value_is_one_line_that_says_what_to_do(text: str, line: str, write: Callable[[str], Path]) -> None:
    """The dotted key, the value as it was written, and what it must be instead."""
    refusal = problem(write(text))

    assert line in refusal
    assert "\n" not in refusal
    assert len(refusal) < 3000


@pytest.mark.parametrize(
    ("bucket", "prefix"),
    [
        ("abc", ""),
        ("my.bucket-1", "logs/"),
        ("x" * 63, "logs/%Y/%m/%d/{hostname}-"),
        ("arn:aws:s3:eu-west-1:123456789012:accesspoint/my-ap", "100%%/"),
        ("arn:aws-cn:s3:cn-north-1:123456789012:accesspoint:my-ap", "%H%M%S.%j"),
        ("arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01/accesspoint/my-ap", "é/"),
        ("name--use1-az4--x-s3", "a b/"),
    ],
)
def test_good_destinations_are_accepted(bucket: str, prefix: str) -> None:
    """Names, access points and prefixes that S3 takes are taken."""
    config = read(destination__bucket=bucket, destination__prefix=prefix)

    assert (config.destination.bucket, config.destination.prefix) == (bucket, prefix)


def test_limits_themselves_are_accepted() -> None:
    """A value that is exactly at S3's or our limit is still right."""
    tags = {"k" * 128: "v" * 256, **{f"k{i}": "ü+-=._:/@ " for i in range(9)}}
    metadata = {"a": "x" * 2015}

    config = read(
        destination__tags=tags,
        destination__metadata=metadata,
        upload__part_size="5MiB",
        upload__multipart_threshold="5GiB",
        service__control_socket="/" + "s" * 106,
        service__http_listen="[::1]:65535",
    )

    assert config.destination.tags == tags
    assert config.destination.metadata == metadata


@pytest.mark.parametrize(
    ("variable", "text", "line"),
    [
        ("S3SPOOL_UPLOAD__WORKERS", "0", "upload.workers = 0: must be between 1 and 1000 [S3SPOOL_UPLOAD__WORKERS]"),
        ("S3SPOOL_UPLOAD__WORKERS", "many", 'upload.workers = "many": must be a whole number'),
        ("S3SPOOL_UPLOAD__WORKERS", "1\nx=2", 'upload.workers = "1\\nx=2": must be a whole number'),
        (
            "S3SPOOL_UPLOAD__WROKERS",
            "1",
            "upload.wrokers: unknown key (did you mean workers?) [S3SPOOL_UPLOAD__WROKERS]",
        ),
        ("S3SPOOL_UPLAOD__WORKERS", "1", "uplaod: unknown section (did you mean upload?) [S3SPOOL_UPLAOD__WORKERS]"),
        ("S3SPOOL_WATCH__INCLUDE", '["*.csv"', "must be a list of patterns"),
        ("S3SPOOL_DESTINATION__TAGS", "team", 'destination.tags = "team": must be a table of strings'),
        ("S3SPOOL_DESTINATION__TAGS", "{ team", "must be a table of strings"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, line: str) -> None:
    """The message names the variable, so a reader knows that the value did not come from the file."""
    refusal = problem(environ={variable: text})

    assert line in refusal
    assert "\n" not in refusal


def test_all_errors_are_reported_at_once(write: Callable[[str], Path]) -> None:
    """Unknown keys, wrong values and keys that do not fit together, from every source, one line each."""
    path = write(
        """
        qqq = 1
        [upload]
        workers = 0
        wrokers = 1
        [destination]
        bucket = "My_Bucket"
        kms_key_id = "k"
        [watch]
        include = []
        settle_s = "x"
        [retry]
        initial_s = 10
        """
    )
    environ = {"S3SPOOL_LOG__LEVEL": "trace", "S3SPOOL_LOG__COLOUR": "1"}

    lines = problem(path, environ=environ, retry__max_s="5").splitlines()

    assert [line.partition(":")[0] for line in lines] == [
        "qqq",
        "upload.wrokers",
        "log.colour",
        "watch.include = []",
        'watch.settle_s = "x"',
        'destination.bucket = "My_Bucket"',
        "upload.workers = 0",
        'log.level = "trace"',
        'destination.kms_key_id = "k"',
        "retry.max_s = 5",
    ]
    assert lines[7].endswith(" [S3SPOOL_LOG__LEVEL]")


def test_a_command_prints_a_line_per_error_and_ends_with_78(write: Callable[[str], Path]) -> None:
    """Also where a value holds a line feed."""
    path = write('[upload]\nworkers = 0\n[destination]\nprefix = "a\\nb"')

    done = CliRunner().invoke(cli, ["check", "--config", str(path)])

    assert done.exit_code == ConfigError.exit_code
    assert done.stderr == (
        's3spool: destination.prefix = "a\\nb": must not hold control characters\n'
        "s3spool: upload.workers = 0: must be between 1 and 1000\n"
    )


def test_keys_are_not_compared_with_a_wrong_one(write: Callable[[str], Path]) -> None:
    """Once the first key is right, the second may be right as well."""
    assert problem(write("[retry]\ninitial_s = 100000\nmax_s = 5")).startswith("retry.initial_s = 100000: ")
    assert "\n" not in problem(write('[watch]\ndirectory = 1\n[state]\ndirectory = "tmp"'))
    assert "\n" not in problem(state__directory="", after__archive_directory="in", watch__directory="in")


def test_all_unusable_directories_are_reported_at_once(tmp_path: Path) -> None:
    """One run shows all of them, and nothing was created."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    config = read(
        watch__directory="loop",
        state__directory="file",
        after__archive_directory="file/sent",
        after__action="archive",
        service__control_socket="run/control.sock",
        destination__ca_bundle="ca.pem",
    )

    with pytest.raises(ConfigError) as caught:
        check_directories(config)

    assert {error.field for error in caught.value.errors} == {
        "watch.directory",
        "state.directory",
        "after.archive_directory",
        "service.control_socket",
        "destination.ca_bundle",
    }
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", tmp_path / "loop"]


def test_an_unknown_flag_is_refused() -> None:
    """Overrides have to name a key."""
    assert problem(upload__threads=1).startswith("upload.threads: unknown key")
    assert problem(nonsense=1).startswith("nonsense: unknown section")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[upload]\nworkers == 1", "is not TOML: Invalid value (at line 2, column 10)"),
        (b"[upload]\nworkers =", "(at the end, line 2)"),
        (b"a = " + b"1" * 5000, "is not TOML"),
        (b"a = " + b"[" * 5000, "nests too deeply"),
        (b"[log]\n\nlevel = '\xff'", "line 3 is not UTF-8"),
    ],
    ids=["syntax", "end", "digits", "nested", "latin-1"],
)
def test_a_file_that_is_not_toml_is_refused_with_its_line(content: bytes, line: str, tmp_path: Path) -> None:
    """The message has the file and the line."""
    path = tmp_path / "bad.toml"
    path.write_bytes(content)

    refusal = problem(path)

    assert refusal.startswith(f"{path}: ")
    assert line in refusal
    assert "\n" not in refusal


def test_a_named_file_must_be_readable(tmp_path: Path) -> None:
    """A missing --config is an error, never silently the defaults."""
    assert problem(tmp_path / "no.toml") == f"{tmp_path}/no.toml: cannot be read: No such file or directory"
    assert problem(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_directories_are_compared_behind_symbolic_links(tmp_path: Path) -> None:
    """A link does not hide that the archive or the ledger lies in the watched folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    assert "archive_directory" in problem(watch__directory="link", after__archive_directory="real/done")
    assert "state.directory" in problem(watch__directory="real", state__directory="link")
    assert read(watch__directory="real", state__directory="real2").state.directory == tmp_path / "real2"


def test_odd_paths_are_no_crash(tmp_path: Path) -> None:
    """Link loops and over-long names can be typing errors as well."""
    (tmp_path / "loop").symlink_to("loop")

    assert read(watch__directory="loop", after__archive_directory="x" * 300).watch.directory.name == "loop"


def test_a_long_state_directory_names_the_socket() -> None:
    """The socket's default is below the state directory, whose path can be too long for it."""
    refusal = problem(state__directory="/" + "s" * 100)

    assert refusal.startswith('service.control_socket = "/sss')
    assert "is 114 bytes long" in refusal


def test_without_a_home_the_state_directory_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user without a home; only then the key is needed."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)

    with pytest.raises(ConfigError, match=r"^state\.directory = \"\": there is no home directory"):
        load(environ={})
    assert load(environ={"STATE_DIRECTORY": "/s"}).state.directory == Path("/s")


def test_a_vanished_current_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths need a current directory; full paths do not."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert problem() == 'watch.directory = "./tmp": the current directory is gone; write the path in full'
    assert read(watch__directory="/srv/drop").watch.directory == Path("/srv/drop")


# --- any text


VALUES = st.one_of(
    st.sampled_from(["nan", "-inf", "1979-05-27", "{ a = 1 }", "[[]]", "1e999", '"~x"', '"\\u0000"', "{}"]),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.booleans().map(lambda value: str(value).lower()),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")).map(
        lambda text: msgspec.json.encode(text).decode()
    ),
    st.sampled_from([option.default for option in OPTIONS.values()]),
)
NAMES = st.sampled_from([option.name for option in OPTIONS.values()])
DOCUMENTS = st.one_of(
    st.text(),
    st.dictionaries(NAMES, VALUES).map(
        lambda settings: "\n".join(f"{name} = {value}" for name, value in settings.items())
    ),
)


def refusals(path: Path | None, environ: dict[str, str]) -> list[str]:
    """The lines of all errors."""
    try:
        read(path, environ=environ)
    except ConfigError as refusal:
        return [str(error) for error in refusal.errors]
    return []


@given(DOCUMENTS)
@example("watch.directory = 'tmp'\nstate.directory = '/'")
def test_any_text_is_a_configuration_or_a_refusal(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """No file, however odd, gets past the checks as a traceback or as several lines."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    assert not any("\n" in line for line in refusals(path, {}))


@given(NAMES, st.one_of(VALUES, st.binary().map(lambda value: os.fsdecode(value.replace(b"\0", b"")))))
def test_any_variable_is_read_or_refused(name: str, text: str) -> None:
    """No variable, however odd, gets past the checks as a traceback or as several lines."""
    variable = f"S3SPOOL_{name.upper().replace('.', '__')}"

    assert not any("\n" in line for line in refusals(None, {variable: text}))


# --- the bucket and the directories


def test_an_empty_bucket_is_refused_only_where_one_is_needed() -> None:
    """The message names every way to give one, and the demo."""
    config = read()

    with pytest.raises(ConfigError, match=r"^destination\.bucket = \"\": put the bucket's name.*s3spool demo"):
        require_bucket(config)
    require_bucket(read(destination__bucket="abc"))


def test_the_default_folder_and_the_state_directory_are_made(tmp_path: Path) -> None:
    """A first `s3spool run` in an empty directory works; the ledger is nobody else's to read."""
    config = read()

    check_directories(config)
    check_directories(config)

    assert (tmp_path / "tmp").is_dir()
    assert config.state.directory.stat().st_mode & 0o777 == 0o700


def test_another_missing_folder_is_an_error_with_the_command_to_make_it(tmp_path: Path) -> None:
    """A typing error must not create a new and empty watched folder."""
    config = read(watch__directory="my drop")

    with pytest.raises(ConfigError, match=r"does not exist; make it with: mkdir -p '.*/my drop'$"):
        check_directories(config)
    assert not (tmp_path / "my drop").exists()


def test_the_archive_is_made_when_it_is_used(tmp_path: Path) -> None:
    """With another action the archive directory is not touched."""
    (tmp_path / "tmp").mkdir()

    check_directories(read(after__archive_directory="sent/old"))
    assert not (tmp_path / "sent").exists()

    check_directories(read(after__archive_directory="sent/old", after__action="archive"))
    assert (tmp_path / "sent/old").is_dir()


@pytest.mark.parametrize("name", ["watch.directory", "state.directory", "after.archive_directory"])
def test_a_file_in_a_directory_s_place_is_refused(name: str, tmp_path: Path) -> None:
    """The message names the key whose path is taken by a file, and nothing was made before that was found."""
    (tmp_path / "file").touch()
    paths = {"state.directory": "s", "after.archive_directory": "a", name: "file"}

    config = load(overrides={**paths, "after.action": "archive"}, environ={})

    with pytest.raises(ConfigError) as caught:
        check_directories(config)
    assert str(caught.value) == f'{name} = "{tmp_path}/file": is not a directory'
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_cannot_be_made_is_refused_before_anything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest directory there is decides: it may be a file, or not ours to write in (root always may)."""
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed" or not mode & os.W_OK)

    for place, line in (
        ("file/state", f"cannot be made: {tmp_path}/file is not a directory"),
        ("closed/a/b", f"does not exist and cannot be made: {tmp_path}/closed is not writable for the user"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_directories(read(state__directory=place))
        assert str(caught.value).startswith(f'state.directory = "{tmp_path}/{place}": {line}')
    assert not (tmp_path / "tmp").exists()


def test_the_socket_s_directory_must_be_there(tmp_path: Path) -> None:
    """Otherwise the daemon would fail at its start, after it had touched everything else."""
    with pytest.raises(ConfigError) as caught:
        check_directories(read(service__control_socket="run/control.sock"))

    assert str(caught.value) == (
        f'service.control_socket = "{tmp_path}/run/control.sock": {tmp_path}/run does not exist; '
        f"make it with: mkdir -p {tmp_path}/run"
    )


def test_the_archive_may_not_hold_what_the_daemon_lives_on() -> None:
    """A name like "drop/x", archived relative to a directory above, would land in the watched folder again."""
    assert "must not hold watch.directory" in problem(watch__directory="in/drop", after__archive_directory="in")
    assert "must not hold state.directory" in problem(state__directory="old/s", after__archive_directory="old")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("watch.directory", 'must be writable, for after.action = "archive", for the user'),
        ("state.directory", "must be writable for the user"),
        ("after.archive_directory", "must be writable for the user"),
    ],
)
def test_a_read_only_directory_is_refused(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon says at its start, not at the first file, that it may not write (root always may)."""
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed or not mode & os.W_OK)
    paths = {"state.directory": "s", "after.archive_directory": "a", name: "closed", "after.action": "archive"}

    with pytest.raises(ConfigError) as caught:
        check_directories(load(overrides=paths, environ={}))

    assert str(caught.value).startswith(f'{name} = "{closed}": {line}')


def test_a_folder_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    """A link loop is neither missing nor a directory, and has its own reason."""
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(ConfigError, match="cannot be reached: Too many levels of symbolic links"):
        check_directories(read(watch__directory="loop"))


def test_a_missing_ca_bundle_is_refused() -> None:
    """Otherwise every upload would fail with a TLS error that names no file."""
    with pytest.raises(ConfigError, match=r"^destination\.ca_bundle = .*does not exist or is not readable"):
        check_directories(read(destination__ca_bundle="ca.pem"))


# --- reload


def test_a_reload_tells_live_keys_from_the_others() -> None:
    """Keys that change at once and keys that need a restart, by dotted names in order."""
    old = read()
    new = read(log__level="debug", watch__include="*.csv", retry__max_s=9, upload__workers=3, destination__tags="a=b")

    assert changed(old, new) == (["watch.include", "retry.max_s", "log.level"], ["destination.tags", "upload.workers"])
    assert changed(old, old) == ([], [])


def test_live_keys_exist() -> None:
    """A key that is renamed in the schema must be renamed in LIVE as well."""
    assert {option.name for option in OPTIONS.values()} | {"rule"} >= LIVE


# --- documentation


def test_the_sample_file_has_every_key_at_its_default() -> None:
    """packaging/s3spool.toml lists the keys in order, each below its explanation."""
    text = (ROOT / "packaging/s3spool.toml").read_text(encoding="utf-8")

    found = []
    section = ""
    for match in re.finditer(r"^\[(\w+)\]$|^# (.+)\n#(\w+) = (.+)$", text, re.MULTILINE):
        section = match[1] or section
        if match[3]:
            found.append((f"{section}.{match[3]}", match[4], match[2]))

    assert found == [(option.name, option.default, option.doc) for option in OPTIONS.values()]


def test_the_sample_file_changes_nothing_until_it_is_edited(tmp_path: Path) -> None:
    """As installed it is valid and means the defaults, and so it does with every key uncommented."""
    text = (ROOT / "packaging/s3spool.toml").read_text(encoding="utf-8")
    uncommented = tmp_path / "all.toml"
    uncommented.write_text(re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE))

    assert changed(read(), read(ROOT / "packaging/s3spool.toml")) == ([], [])
    assert changed(read(), read(uncommented)) == ([], [])
    assert sum(map(len, tomllib.loads(uncommented.read_text()).values())) == len(OPTIONS)


def test_the_manual_has_every_key() -> None:
    """The tables of docs/configuration.md, its live keys and its prefix fields are those of the code."""
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")

    rows = re.findall(r"^`(\w+)` \| `(.+?)` \| (.+)$", text, re.MULTILINE)

    assert rows == [(o.name.split(".")[1], o.default, o.doc) for o in OPTIONS.values()]
    assert re.findall(r"^- `(\w+\.\w+)`$", text, re.MULTILINE) == [o.name for o in OPTIONS.values() if o.name in LIVE]
    assert "\n- all of `[[rule]]`, for files not yet taken\n" in text
    assert set(re.findall(r"`%([A-Za-z])`", text)) == set(PREFIX_FIELDS)
    assert set(re.findall(r"`\{(\w+)\}`", text)) == {*FIELDS, "hostname"}
    sentence = re.search(r"A rule may set (.+?), and `after`", text, re.DOTALL)
    assert sentence is not None
    named = re.findall(r"`([\w*]+)`", sentence[1])
    assert {name for name in DESTINATION_KEYS if any(fnmatch(name, one) for one in named)} == {*DESTINATION_KEYS}
    assert all(any(fnmatch(name, one) for name in DESTINATION_KEYS) for one in named)


def test_the_manual_s_examples_work(write: Callable[[str], Path]) -> None:
    """A copied example is a valid configuration, and the first one has six lines and a bucket."""
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)

    loaded = [read(write(example)) for example in examples]

    assert len(loaded) == 2
    assert loaded[0].destination.bucket
    assert len(examples[0].splitlines()) == 6


def test_reading_settings_imports_little() -> None:
    """Every command pays for this module, `--help` included."""
    program = "import sys, s3spool.config.loader; print(*{'asyncio', 'boto3', 'click', 'difflib'} & {*sys.modules})"

    done = finished(sys.executable, "-c", program, check=True)

    assert done.stdout == "\n"


def test_the_sample_file_s_rule_works(write: Callable[[str], Path]) -> None:
    """Uncommented it is a rule."""
    text = (ROOT / "packaging/s3spool.toml").read_text(encoding="utf-8")
    (rule,) = read(write("".join(re.findall(r"^#   (.+\n)", text, re.MULTILINE)))).rules

    assert rule.match == ("*.html", "reports/**")
    assert (rule.destination, rule.after) == ({"cache_control": "max-age=60"}, "delete")
