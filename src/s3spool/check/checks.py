"""`s3spool check`: would the daemon work here? It changes nothing on this machine."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import structlog
from msgspec.structs import replace

from s3spool.check.result import CheckResult, error, ok, warning
from s3spool.check.rules import check_rules
from s3spool.check.shared_ledger import check_shared_ledger
from s3spool.check.walk import walk
from s3spool.config import loader as configuration
from s3spool.config.directories import nearest, wrong_paths
from s3spool.config.schema import Config, value_of
from s3spool.daemon.components import store_of
from s3spool.daemon.limits import open_files_needed
from s3spool.errors import ConfigError, LedgerError, UploadError
from s3spool.folder.mounts import remote_file_system
from s3spool.folder.rules import FileRules
from s3spool.ledger.database import holder, open_for_reading
from s3spool.ledger.files import become_owner
from s3spool.logs.text import shown
from s3spool.s3.keys import Prefix, key_of
from s3spool.s3.plain_http import DANGER, beyond_loopback

MIB = 1024 * 1024
LEAST_FREE_BYTES = 16 * MIB  # the ledger's journal alone may grow to this
LITTLE_FREE_BYTES = 256 * MIB
ANSWER_S = 10.0  # a person waits
MOST_ENTRIES = 1000  # of the folder, for an example
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
    there = _path(config, "folder")
    if there.level == "error" or not folder.is_dir():
        yield there
        return
    yield ok("folder", f"{there.text}; {config.after_upload()}")

    kind = remote_file_system(Path(os.path.realpath(folder)))
    directories, unreadable, deep = _directories(config)
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


def _directories(config: Config) -> tuple[int, list[str], list[str]]:
    """How many directories there are to watch, which cannot be read, and which leave no room for a key."""
    by_kind: dict[str, list[str]] = {"unreadable": [], "too deep": []}
    count = 0
    for kind, path, _ in walk(config):
        count += kind in {"directory", "unreadable"}
        by_kind.get(kind, []).append(path)
    return count, by_kind["unreadable"], by_kind["too deep"]


def _key(config: Config) -> Iterator[CheckResult]:
    """The key of a file of the folder, or of an example."""
    bucket, rules = config.destination.bucket, FileRules(config)
    if not bucket:
        return
    some = islice(walk(config), MOST_ENTRIES)
    name = next((found.path for found in some if found.kind == "file"), "example.txt")
    mtime_s = time.time()
    with suppress(OSError):
        mtime_s = (config.watch.directory / name).lstat().st_mtime
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
    if config.after.archive_directory and "archive" in config.actions:
        yield _path(config, "archive")


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
    directory, sockets = config.state.directory, config.service.control_socket.parent
    result = _path(config, "state")
    if result.level != "error":
        result = _room(directory, result.text)
    yield result
    if result.level == "error" or not directory.is_dir():
        return
    yield from _ledger(config)
    socket = _path(config, "control socket")
    if socket.level == "error" or sockets != directory:
        yield socket if socket.level == "error" else ok("control socket", str(sockets))


def _room(directory: Path, text: str) -> CheckResult:
    space = os.statvfs(nearest(directory))
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
    if config.state.ledger:
        yield from check_shared_ledger(config)
        return
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


def _http(config: Config) -> Iterator[CheckResult]:
    address = config.service.http_listen
    if not address:
        return
    try:
        from s3spool.http.server import listener  # noqa: PLC0415 - an extra

        listener(address).close()
    except ImportError as exc:
        yield error("http", f"service.http_listen needs the extra http ({exc}): pip install 's3spool[http]'")
    except ConfigError as exc:
        pid = holder(config.state.directory)
        # Most likely the daemon itself listens there.
        yield ok("http", f"{address}, in use while the daemon runs (pid {pid})") if pid else error("http", str(exc))
    else:
        token = "with service.http_token" if config.service.http_token else "for every user of this machine"
        yield ok("http", f"http://{address}/ {token}")


def _bucket(config: Config) -> Iterator[CheckResult]:
    try:
        configuration.require_bucket(config)
        if wrong := _wrong(config, "destination.ca_bundle"):
            raise wrong
        from s3spool.check import preflight  # noqa: PLC0415 - the same

        quick = replace(config.upload, timeout_s=min(ANSWER_S, config.upload.timeout_s))
        store = store_of(replace(config, upload=quick))
    except ConfigError as exc:
        yield error("destination", str(exc))
        return
    if beyond_loopback(store.endpoint.url):
        yield warning("endpoint", f"{store.endpoint.url}: {DANGER}")
    yield from preflight.examine(store, config.destination.prefix)


_SUBJECTS: dict[str, Callable[[Config], Iterator[CheckResult]]] = {
    "folder": _folder,
    "rules": check_rules,
    "archive": _archive,
    "open files": _open_files,
    "state": _state,
    "key": _key,
    "http": _http,
    "destination": _bucket,
}
_FIELD = {
    "folder": "watch.directory",
    "archive": "after.archive_directory",
    "state": "state.directory",
    "control socket": "service.control_socket",
}


def _path(config: Config, subject: str) -> CheckResult:
    """Whether the daemon could use it."""
    if wrong := _wrong(config, _FIELD[subject]):
        return error(subject, str(wrong))
    path = Path(str(value_of(config, _FIELD[subject])))
    return ok(subject, str(path) if path.exists() else f"{path}: is not there yet, s3spool run makes it")


def _wrong(config: Config, field: str) -> ConfigError | None:
    return next((wrong for wrong in wrong_paths(config) if wrong.field == field), None)
