"""`s3spool check`: would the daemon work here? It changes nothing on this machine."""

from __future__ import annotations

import logging
import os
import resource
import shlex
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import structlog
from msgspec.structs import replace

from s3spool.check.http_port import http_port
from s3spool.check.result import CheckResult, error, ok, warning
from s3spool.check.shared_ledger import shared_ledger
from s3spool.config import loader as configuration
from s3spool.config.directories import same_mount, sandbox
from s3spool.config.loader import Config
from s3spool.daemon.limits import open_files_needed
from s3spool.errors import ConfigError, LedgerError, UploadError
from s3spool.ledger.database import holder, open_for_reading
from s3spool.ledger.files import become_owner
from s3spool.logs.text import shown

MIB = 1024 * 1024
LEAST_FREE_BYTES = 16 * MIB  # the ledger's journal alone may grow to this
LITTLE_FREE_BYTES = 256 * MIB
ANSWER_S = 10.0  # a person waits
WATCHES = Path("/proc/sys/fs/inotify/max_user_watches")


def run(config: Config) -> Iterator[CheckResult]:
    """From near to far: problems of this machine come before those of the network."""
    if not structlog.is_configured():
        # The results say what the components would log.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield ok("configuration", str(config.source or "no file; environment, command line and defaults"))
    if became := become_owner(config.state.directory):
        yield ok("user", became)
    elif os.geteuid() == 0:
        yield ok("user", "root, who may do everything; for a service of another user check as that one")
    for subject, look in _SUBJECTS.items():
        try:
            yield from look(config)
        except Exception as exc:  # noqa: BLE001 - the other subjects are checked all the same
            yield error(subject, f"the check itself failed ({type(exc).__name__}: {exc}); please report it")


def _folder(config: Config) -> Iterator[CheckResult]:
    folder = config.watch.directory
    there = _directory("folder", folder, writable=config.actions != {"keep"}, made=folder == Path("tmp").absolute())
    if there.level == "error" or not folder.is_dir():
        yield there
        return
    yield ok("folder", f"{there.text}; {config.after_upload()}")
    from s3spool.folder.mounts import remote_file_system  # noqa: PLC0415 - after what may fail in one line

    kind = remote_file_system(Path(os.path.realpath(folder)))
    directories, unreadable, deep = _directories(config, folder)
    if deep:
        one = "1 directory is" if len(deep) == 1 else f"{len(deep)} directories are"
        yield warning("folder", f"{one} too deep for any key, so nothing below is sent: {shown(deep[0])}")
    if unreadable:
        yield warning(
            "folder", f"{len(unreadable)} directories cannot be read, so their files stay: {unreadable[0]} ..."
        )
    if kind or config.watch.backend == "poll":
        reason = f"inotify does not see the changes of other hosts on {kind}" if kind else 'watch.backend = "poll"'
        say = warning if kind and config.watch.backend != "poll" else ok
        yield say("watch", f"{reason}: files are found by a scan every {config.watch.rescan_s:g} s")
        return
    try:
        limit = int(WATCHES.read_text())
    except (OSError, ValueError):
        yield warning("watch", f"{WATCHES} cannot be read: without inotify the folder is scanned")
        return
    text = f"{directories} of {limit} inotify watches (fs.inotify.max_user_watches)"
    if directories > 0.8 * limit:
        yield warning("watch", f"{text}; raise it with sysctl, else the folder is scanned instead of watched")
    else:
        yield ok("watch", text)


def _directories(config: Config, folder: Path) -> tuple[int, list[str], list[str]]:
    """How many directories there are to watch, which cannot be read, and which leave no room for a key."""
    from s3spool.folder.filters import FileFilter  # noqa: PLC0415 - start-up time
    from s3spool.folder.rules import FileRules  # noqa: PLC0415 - the same
    from s3spool.s3.keys import too_deep  # noqa: PLC0415 - the same

    names = FileFilter(config.watch.include, config.watch.exclude)
    prefixes = FileRules(config).prefixes
    unreadable: list[str] = []
    deep: list[str] = []
    pending = [""]
    count = 0
    while pending:
        directory = pending.pop()
        count += 1
        try:
            with os.scandir(folder / directory) as entries:
                if not config.watch.recursive:
                    continue
                below = [f"{directory}{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            unreadable.append(directory)
            continue
        for path in filter(names.enters_directory, below):
            (deep if too_deep(path, prefixes) else pending).append(f"{path}/")
    return count, unreadable, deep


def _key(config: Config) -> Iterator[CheckResult]:
    """The key of a file of the folder, or of an example."""
    from s3spool.folder.filters import FileFilter  # noqa: PLC0415 - start-up time
    from s3spool.folder.rules import FileRules  # noqa: PLC0415 - the same
    from s3spool.s3.keys import Prefix, key_of  # noqa: PLC0415 - the same

    bucket, rules = config.destination.bucket, FileRules(config)
    if not bucket:
        return
    names = FileFilter(config.watch.include, config.watch.exclude)
    name, mtime_s = "example.txt", time.time()
    with suppress(OSError), os.scandir(config.watch.directory) as entries:
        for entry in entries:
            if names.accepts_file(entry.name) and entry.is_file(follow_symlinks=False):
                name, mtime_s = entry.name, entry.stat().st_mtime
                break
    prefix = rules.destination(name).prefix
    try:
        text = f"{shown(name)} goes to {shown(f's3://{bucket}/{key_of(name, Prefix(prefix).of(mtime_s))}')}"
    except UploadError as exc:
        yield error("key", f"{shown(name)}: {exc.cause}")
        return
    if prefix and not prefix.endswith("/"):
        yield warning(
            "key", f'{text}: {rules.name(name) or "destination"}.prefix does not end in /; is "{prefix}/" meant?'
        )
    else:
        yield ok("key", text)


def _archive(config: Config) -> Iterator[CheckResult]:
    archive = config.after.archive_directory
    if "archive" not in config.actions or archive is None:
        return
    result = _directory("archive", archive, writable=True, made=True)
    folder = config.watch.directory
    if result.level != "error" and folder.is_dir() and not same_mount(archive, folder):
        place = f"after.archive_directory = {archive}"
        hint = "choose one on the same (for a service: one ReadWritePaths= above both)"
        result = error("archive", f"{place}: on another file system or mount than watch.directory; {hint}")
    yield result


def _open_files(config: Config) -> Iterator[CheckResult]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(config.upload.workers)
    if hard != resource.RLIM_INFINITY and hard < needed:
        hint = "raise it (ulimit -Hn, LimitNOFILE=) or lower upload.workers"
        yield error("open files", f"{config.upload.workers} workers need {needed}, the limit is {hard}; {hint}")
    else:
        yield ok(
            "open files", f"{needed} needed at most, {'no limit' if hard == resource.RLIM_INFINITY else hard} allowed"
        )


def _state(config: Config) -> Iterator[CheckResult]:
    directory = config.state.directory
    result = _directory("state", directory, writable=True, made=True)
    if result.level != "error":
        result = _room(directory, result.text)
    yield result
    if result.level == "error" or not directory.is_dir():
        return
    yield from (shared_ledger if config.state.ledger else _ledger)(config)
    sockets = config.service.control_socket.parent
    if sockets != directory:
        yield _directory("control socket", sockets, writable=True, made=False)


def _room(directory: Path, text: str) -> CheckResult:
    space = os.statvfs(_existing(directory))
    free = space.f_bavail * space.f_frsize
    text = f"{text}, {free // MIB} MiB free"
    if free < LEAST_FREE_BYTES:
        return error(
            "state", f"{text}, at least {LEAST_FREE_BYTES // MIB} are needed: make room, or set state.directory"
        )
    if free < LITTLE_FREE_BYTES:
        return warning("state", f"{text}, which is little: nothing is removed locally while receipts cannot be written")
    return ok("state", text)


def _ledger(config: Config) -> Iterator[CheckResult]:
    path = config.state.ledger_path
    pid = holder(config.state.directory)
    used = f", in use by the daemon (pid {pid})" if pid else ""
    try:
        if os.path.lexists(path):
            with closing(open_for_reading(path)) as ledger:
                (version,) = ledger.execute("PRAGMA user_version").fetchone()
            yield ok("ledger", f"{path}, version {version}{used}")
        else:
            _try_sqlite(config.state.directory)
            yield ok("ledger", f"{path}: none yet; SQLite works there")
    except LedgerError as exc:
        yield error("ledger", str(exc))
    except (OSError, sqlite3.Error) as exc:
        yield error("ledger", f"{path}: SQLite does not work there ({exc}); set state.directory to a local disk")


def _try_sqlite(directory: Path) -> None:
    """Network file systems and small containers fail at the first lock or shared mapping only."""
    with (
        tempfile.TemporaryDirectory(prefix=".check-", dir=directory) as place,
        closing(sqlite3.connect(Path(place) / "check.sqlite3", isolation_level=None)) as database,
    ):
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE written (n INTEGER)")
        database.execute("INSERT INTO written VALUES (1)")


def _bucket(config: Config) -> Iterator[CheckResult]:
    bundle = config.destination.ca_bundle
    try:
        configuration.require_bucket(config)
        if bundle and not os.access(bundle, os.R_OK):
            raise ConfigError("destination.ca_bundle", str(bundle), "does not exist or is not readable")
        from s3spool.check import preflight  # noqa: PLC0415 - the same
        from s3spool.daemon.components import store_of  # noqa: PLC0415 - boto3 and pycurl are heavy
        from s3spool.s3.plain_http import DANGER, beyond_loopback  # noqa: PLC0415 - the same

        quick = replace(config.upload, timeout_s=min(ANSWER_S, config.upload.timeout_s))
        store = store_of(replace(config, upload=quick))
    except ConfigError as exc:
        yield error("destination", str(exc))
        return
    if beyond_loopback(store.endpoint.url):
        yield warning("endpoint", f"{store.endpoint.url}: {DANGER}")
    yield from preflight.examine(store, config.destination.prefix)


def _rules(config: Config) -> Iterator[CheckResult]:
    from s3spool.check.rules import check_rules  # noqa: PLC0415 - start-up time

    yield from check_rules(config)


_SUBJECTS: dict[str, Callable[[Config], Iterator[CheckResult]]] = {
    "folder": _folder,
    "rules": _rules,
    "archive": _archive,
    "open files": _open_files,
    "state": _state,
    "key": _key,
    "http": http_port,
    "destination": _bucket,
}
_FIELD = {
    "folder": "watch.directory",
    "archive": "after.archive_directory",
    "state": "state.directory",
    "control socket": "service.control_socket",
}


def _directory(subject: str, path: Path, *, writable: bool, made: bool) -> CheckResult:
    """Whether the daemon could use it; `made`: whether it makes a missing one."""
    field = f"{_FIELD[subject]} = {path}"
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        parent = _existing(path)
        if made and parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            return ok(subject, f"{path}: is not there yet, s3spool run makes it")
        hint = f"make it with: mkdir -p {shlex.quote(str(path))}"
        return error(subject, f"{field}: does not exist{' and cannot be made' if made else ''}; {hint}")
    except OSError as exc:
        return error(subject, f"{field}: cannot be reached: {exc.strerror}{sandbox(path)}")
    if not is_directory:
        return error(subject, f"{field}: is not a directory")
    access = os.X_OK | (os.W_OK if subject != "folder" or writable else 0) | (os.R_OK if subject == "folder" else 0)
    if not os.access(path, access):
        wanted = "readable and writable" if subject == "folder" and writable else "writable" if writable else "readable"
        return error(subject, f"{field}: must be {wanted} for the user that s3spool runs as{sandbox(path)}")
    return ok(subject, str(path))


def _existing(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))
