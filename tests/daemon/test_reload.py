"""SIGHUP in a running daemon: every key that can change live does, and nothing that is wrong changes anything."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from s3spool.config.schema import LIVE
from support.daemon import Daemon, Event, Make, to_toml
from support.faults import Status
from support.faulty import FaultyS3
from support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
def daemon(make: Make) -> Daemon:
    return make().start_ready()


def reload(daemon: Daemon, **sections: dict[str, object] | list[dict[str, object]]) -> dict[str, object]:
    """Change the file and say so; the event that follows."""
    before = len(daemon.events("daemon.reloaded"))
    for name, options in sections.items():
        if isinstance(options, list):
            daemon.config[name] = options
        else:
            daemon.config.setdefault(name, {}).update(options)
    daemon.config_path.write_text(to_toml(daemon.config))
    daemon.signal(signal.SIGHUP)
    eventually(lambda: len(daemon.events("daemon.reloaded")) > before, message="daemon.reloaded")
    return daemon.events("daemon.reloaded")[-1]


def test_each_live_key_takes_effect(daemon: Daemon, faulty: FaultyS3) -> None:
    """Log level, patterns, retry, bandwidth and what follows an upload, all in one reload of one process."""
    archive = daemon.home / "archive"
    archive.mkdir()
    pid = daemon.pid
    daemon.drop("before.dat")
    daemon.wait_uploaded(1)
    assert (daemon.folder / "before.dat").exists()

    told = reload(
        daemon,
        log={"level": "debug"},
        watch={"include": ["*.dat"], "exclude": [".*", "not-*"]},
        retry={"initial_s": 0.2, "max_s": 0.5, "max_attempts": 2},
        upload={"max_bandwidth": "100MiB/s"},
        after={"action": "archive", "archive_directory": str(archive)},
        rule=[{"match": ["*.other"], "prefix": "other/"}],
    )
    assert (set(told["changed"]), told["restart_needed"]) == (set(LIVE), [])  # type: ignore[call-overload]
    faulty.script(Status(code=500, error_code="InternalError"), times=None, match="^PUT failing")
    for name in ("after.dat", "not-sent.dat", "not-sent.txt", "failing.dat"):
        daemon.drop(name)

    eventually((archive / "after.dat").exists, message="the archived file")
    # It is the file's own fault as soon as another one has passed between two of its failures.
    daemon.wait_event("file.failed", path="failing.dat")

    def pass_another() -> list[Event]:
        daemon.drop(f"passes {time.monotonic_ns()}.dat")
        return daemon.events("file.parked", path="failing.dat")

    parked = eventually(pass_another)[0]
    assert parked["error"].startswith("2 attempts failed (retry.max_attempts)")
    assert daemon.events("scan.started"), "a line of level debug"
    assert daemon.pid == pid
    assert {name for name in faulty.contents() if not name.startswith("passes")} == {"before.dat", "after.dat"}


def test_a_new_pattern_lets_in_what_lies_there(daemon: Daemon, faulty: FaultyS3) -> None:
    """A reload walks the folder: files that were excluded until now need no touch."""
    daemon.drop("x.part")
    daemon.drop("seen")
    daemon.wait_uploaded(1)

    reload(daemon, watch={"exclude": [".*"]})

    daemon.wait_uploaded(2)
    assert set(faulty.contents()) == {"seen", "x.part"}


def test_what_cannot_change_stays_and_the_rest_changes(daemon: Daemon, faulty: FaultyS3) -> None:
    """One line names the keys that need a restart and those that were applied."""
    told = reload(daemon, destination={"prefix": "other/", "storage_class": "GLACIER"}, after={"action": "delete"})

    assert told["restart_needed"] == ["destination.prefix", "destination.storage_class"]
    assert told["changed"] == ["after.action"]
    assert not daemon.events("config.refused")
    file = daemon.drop("a")
    eventually(lambda: not file.exists())
    assert set(faulty.contents()) == {"a"}


def test_all_errors_of_a_broken_file_are_logged(daemon: Daemon) -> None:
    """One event per error, and nothing is applied."""
    daemon.config |= {"retry": {"initial_s": -1, "max_s": 0}, "log": {"level": "trace"}}
    daemon.config_path.write_text(to_toml(daemon.config))
    daemon.signal(signal.SIGHUP)

    eventually(lambda: len(daemon.events("config.refused")) >= 3, message="three errors")
    named = [str(event["error"]).partition(" = ")[0] for event in daemon.events("config.refused")]
    assert named == ["retry.initial_s", "retry.max_s", "log.level"]
    assert not daemon.events("daemon.reloaded")


def gone(path: Path) -> None:
    path.unlink()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\0[")


def half_written(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def another_folder_that_is_not_there(path: Path) -> None:
    path.write_text(path.read_text().replace('/spool"', '/not-there"'))


def an_archive_that_is_not_there(path: Path) -> None:
    path.write_text(path.read_text() + '[after]\naction = "archive"\narchive_directory = "/proc/not-there"\n')


SPOILS: list[Callable[[Path], None]] = [
    gone,
    a_directory,
    a_fifo,
    a_loop,
    no_text,
    half_written,
    another_folder_that_is_not_there,
    an_archive_that_is_not_there,
]


def test_a_broken_file_changes_nothing(daemon: Daemon, faulty: FaultyS3) -> None:
    """One line says what is wrong, and the daemon goes on as it was; mended, the file is read again."""
    for number, spoil in enumerate(SPOILS, 1):
        spoil(daemon.config_path)
        daemon.signal(signal.SIGHUP)

        eventually(
            lambda count=number: len(daemon.events("config.refused")) == count,  # type: ignore[misc]
            message=spoil.__name__,
        )
        assert len(daemon.events("daemon.reloaded")) == number - 1
        file = daemon.drop(spoil.__name__)
        daemon.wait_uploaded(number)
        assert file.exists()

        if daemon.config_path.is_dir():
            shutil.rmtree(daemon.config_path)
        daemon.config_path.unlink(missing_ok=True)
        assert reload(daemon)["changed"] == []
    assert len(daemon.events("config.refused")) == len(SPOILS)
    assert set(faulty.contents()) == {spoil.__name__ for spoil in SPOILS}
