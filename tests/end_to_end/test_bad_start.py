"""A start that cannot work is refused in one line that names field, value and remedy, and touches nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from s3spool.ledger import database
from support.daemon import Daemon, Make, to_toml
from support.disks import fill, mounted
from support.faulty import FaultyS3
from support.users import unprivileged

pytestmark = pytest.mark.integration

CONFIGURATION = 78
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

Prepare = Callable[[Daemon], None]


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A configuration that would work (its S3 server is never asked), for the tests to spoil."""
    environment = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "HOME": "/none"}
    made = Daemon(
        tmp_path, bucket="a-bucket", environment=environment, destination={"endpoint_url": "http://127.0.0.1:9"}
    )
    (made.folder / "waiting").write_bytes(b"not to be touched")
    return made


def start(daemon: Daemon, *prefix: str) -> subprocess.CompletedProcess[str]:
    """`s3spool run`, which is to end by itself."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "s3spool", "run", "--config", str(daemon.config_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=daemon.environment,
        cwd=daemon.home,
    )


def tree(directory: Path) -> dict[str, object]:
    """Everything below: kind, mode and content. The lock file says only who ran last."""
    found: dict[str, object] = {}
    for path in directory.rglob("*"):
        if path.name != "daemon.lock":
            mode = path.lstat().st_mode
            readable = stat.S_ISREG(mode) and os.access(path, os.R_OK)
            found[str(path)] = (oct(mode), path.read_bytes() if readable else "")
    return found


def refusal(daemon: Daemon, *prefix: str) -> str:
    """The line on stderr of a start that is refused as it should be."""
    (line,) = refusals(daemon, *prefix)
    return line


def refusals(daemon: Daemon, *prefix: str) -> list[str]:
    """The same for several mistakes."""
    if daemon.config:
        daemon.config_path.write_text(to_toml(daemon.config))
    before = tree(daemon.home)
    ended = start(daemon, *prefix)
    assert (ended.returncode, ended.stdout) == (CONFIGURATION, ""), ended
    assert tree(daemon.home) == before
    lines = ended.stderr.splitlines()
    assert all(line.startswith("s3spool: ") for line in lines)
    return [line.removeprefix("s3spool: ") for line in lines]


def test_wrong_values_are_named(daemon: Daemon) -> None:
    """All at once, in a line each; every message is in tests/config."""
    daemon.config["watch"]["directory"] = 5
    daemon.config["destination"] |= {"bucket": "s3://b", "region": "Europe, please"}
    daemon.config["upload"] = {"workers": 0, "wrokers": 1}

    assert [line.partition(";")[0] for line in refusals(daemon)] == [
        "upload.wrokers: unknown key (did you mean workers?)",
        "watch.directory = 5: must be a path, in quotes",
        'destination.bucket = "s3://b": must be the name alone, without s3://',
        'destination.region = "Europe, please": must be letters, digits and hyphens, like eu-central-1',
        "upload.workers = 0: must be between 1 and 1000",
    ]


def closed(path: Path) -> None:
    path.touch(0)


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (lambda path: path.write_bytes(b"[watch\n"), "is not TOML"),
        (lambda path: path.write_bytes(b"[watch]\ndirectory = '\xff'\n"), "line 2 is not UTF-8"),
        (lambda _: None, "cannot be read: No such file or directory"),
        (Path.mkdir, "cannot be read: Is a directory"),
        (closed, "cannot be read: Permission denied"),
    ],
    ids=["not TOML", "not UTF-8", "missing", "a directory", "closed"],
)
def test_a_file_that_cannot_be_read_is_named(prepare: Callable[[Path], object], problem: str, daemon: Daemon) -> None:
    """It is never passed over for the defaults."""
    prepare(daemon.config_path)
    daemon.config = {}

    line = refusal(daemon, *(unprivileged() if prepare is closed else ()))

    assert line.startswith(f"{daemon.config_path}: ")
    assert problem in line


# --- the folders


def state_inside_behind_a_link(daemon: Daemon) -> None:
    (daemon.home / "link").symlink_to(daemon.folder)
    daemon.config["state"]["directory"] = str(daemon.home / "link/state")


def archive_on_another_file_system(daemon: Daemon) -> None:
    if not os.access(SHARED_MEMORY, os.W_OK) or SHARED_MEMORY.stat().st_dev == daemon.home.stat().st_dev:
        pytest.skip("there is no other file system to write to")
    archive(daemon, SHARED_MEMORY / "s3spool-sent")


def archive(daemon: Daemon, directory: Path) -> None:
    daemon.config["after"] = {"action": "archive", "archive_directory": str(directory)}


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is to be made there
LEDGER = "state/ledger.sqlite3"


def ledger_from_a_newer_version(daemon: Daemon) -> None:
    connection = database.open_for_writing(daemon.home / LEDGER)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def ledger_is_no_database(daemon: Daemon) -> None:
    (daemon.home / LEDGER).write_bytes(b"these are somebody's notes\n" * 100)


def ledger_is_another_database(daemon: Daemon) -> None:
    connection = sqlite3.connect(daemon.home / LEDGER)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()


def ledger_is_a_directory(daemon: Daemon) -> None:
    (daemon.home / LEDGER).mkdir()


def ledger_is_a_fifo(daemon: Daemon) -> None:
    os.mkfifo(daemon.home / LEDGER)


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (state_inside_behind_a_link, 'state.directory = "{home}/link/state": must not be inside watch.directory: '),
        (
            archive_on_another_file_system,
            'after.archive_directory = "/dev/shm/s3spool-sent": is on another file system or mount',
        ),
        (ledger_from_a_newer_version, "{home}/state/ledger.sqlite3: written by a newer s3spool (ledger version 99"),
        (ledger_is_another_database, "{home}/state/ledger.sqlite3: is a SQLite database, but not a ledger"),
        (ledger_is_a_directory, "{home}/state/ledger.sqlite3: is no file"),
        (ledger_is_a_fifo, "{home}/state/ledger.sqlite3: is no file"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.__name__,
)
def test_a_folder_or_ledger_that_cannot_be_used_is_named(prepare: Prepare, line: str, daemon: Daemon) -> None:
    """Before the first file is looked at, and with what to do about it."""
    prepare(daemon)

    assert refusal(daemon).startswith(line.format(home=daemon.home))


def test_a_ledger_that_is_no_database_is_kept_aside(daemon: Daemon) -> None:
    """One line says so, and the daemon begins a new ledger."""
    ledger_is_no_database(daemon)

    with daemon:
        daemon.wait_ready()
        (failed,) = daemon.events("ledger.failed")
        assert "is not a usable database" in failed["error"]
        assert daemon.stop() == 0

    (kept,) = daemon.state_directory.glob("*.broken-*")
    assert kept.read_bytes() == b"these are somebody's notes\n" * 100


@pytest.mark.parametrize("known", [True, False], ids=["a ledger", "no ledger"])
def test_a_full_state_disk_is_no_reason_to_stay_away(known: bool, daemon: Daemon) -> None:
    """Exit code 1: systemd tries again until there is room, which after 78 it would not."""
    daemon.config_path.write_text(to_toml(daemon.config))
    with mounted(daemon.state_directory, "300k"):
        if known:
            database.open_for_writing(daemon.home / LEDGER).close()
        filler = fill(daemon.state_directory)

        ended = start(daemon)

        assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended
        assert f"{daemon.state_directory}/" in ended.stderr
        filler.unlink()
        daemon.start()
        daemon.wait_ready()
        daemon.kill()


def test_the_default_folder_is_made(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """`s3spool run` in an empty directory works, with ./tmp; any other folder has to be there."""
    daemon = make()
    del daemon.config["watch"]["directory"]
    daemon.folder = tmp_path / "tmp"
    daemon.start_ready()
    daemon.drop("first", b"first")
    daemon.wait_uploaded(1)
    assert daemon.stop() == 0
    assert faulty.contents() == {"first": b"first"}


@root_only
def test_an_archive_behind_another_mount_is_refused(daemon: Daemon) -> None:
    """Of the same file system, but rename(2) would fail for every single file (systemd's ReadWritePaths= does it)."""
    sent = daemon.home / "sent"
    sent.mkdir()
    archive(daemon, sent)
    mounting = ["unshare", "--mount", "sh", "-c", f"mount --bind '{sent}' '{sent}' && exec \"$@\"", "sh"]
    if subprocess.run([*mounting, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this root may not mount")

    line = refusal(daemon, *mounting)

    assert line.startswith(f'after.archive_directory = "{sent}": is on another file system or mount')


# --- permissions


def unreadable_folder(daemon: Daemon) -> None:
    daemon.folder.chmod(0)


def read_only_state(daemon: Daemon) -> None:
    daemon.state_directory.chmod(0o555)


def closed_lock(daemon: Daemon) -> None:
    (daemon.state_directory / "daemon.lock").touch(0)


def closed_ledger(daemon: Daemon) -> None:
    database.open_for_writing(daemon.home / LEDGER).close()
    (daemon.home / LEDGER).chmod(0)


def read_only_socket_directory(daemon: Daemon) -> None:
    (daemon.home / "run").mkdir(0o555)
    daemon.config["service"]["control_socket"] = str(daemon.home / "run/control.sock")


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (unreadable_folder, 'watch.directory = "{home}/spool": must be readable for the user that s3spool runs as'),
        (read_only_state, 'state.directory = "{home}/state": must be writable for the user'),
        (closed_lock, "{home}/state/daemon.lock: cannot be opened: Permission denied; it must belong to the user"),
        (closed_ledger, "{home}/state/ledger.sqlite3: cannot be opened"),
        (
            read_only_socket_directory,
            'service.control_socket = "{home}/run/control.sock": {home}/run must be writable for the user',
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.__name__,
)
def test_what_its_user_may_not_use_is_named(prepare: Prepare, line: str, daemon: Daemon) -> None:
    """As a user whom the modes of files concern."""
    prepare(daemon)

    assert refusal(daemon, *unprivileged()).startswith(line.format(home=daemon.home))


# --- two of them


def test_a_second_instance_is_refused_and_the_first_goes_on(make: Make) -> None:
    """Two writers of one ledger would send every file twice; this one may be started again later: exit code 1."""
    daemon = make().start_ready()

    second = start(daemon)

    assert (second.returncode, second.stdout, len(second.stderr.splitlines())) == (1, "", 1)
    assert second.stderr.startswith(f"s3spool: state.directory = {daemon.state_directory}: another s3spool")
    assert f"(pid {daemon.pid})" in second.stderr
    daemon.drop("after", b"after")
    daemon.wait_event("file.uploaded", path="after")
    assert daemon.stop() == 0
