"""The commands as people and scripts use them: beside a running daemon, and without one."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s3spool import __version__
from s3spool.cli import wait as waiting
from s3spool.cli.output import print_rows
from s3spool.config import loader as configuration
from s3spool.config.finding import as_the_unit_has_it
from s3spool.control import views
from s3spool.control.client import ControlClient
from s3spool.control.names import path_in
from s3spool.control.peer import Peer
from s3spool.control.protocol import NoDaemonError
from s3spool.control.status import Bytes, Destination, Files, Rate, Status
from s3spool.demo.seaweed import Seaweed
from s3spool.errors import S3SpoolError
from s3spool.ledger.database import DirectoryLock
from s3spool.ledger.queries import Known
from s3spool.ledger.rows import Identity, State
from s3spool.ledger.store import Ledger
from s3spool.logs.text import printable
from s3spool.upload.stats import Stats
from support.daemon import Daemon, Make
from support.faults import HoldUntil
from support.faults import Status as Answer
from support.faulty import FaultyS3
from support.processes import finished
from support.rows import a_receipt, a_retry
from support.waiting import eventually

pytestmark = pytest.mark.integration

WAIT_S = 30.0
PATIENT = {"initial_s": 3600, "max_s": 3600}  # what waits still waits when it is looked at
NOT_UTF8 = os.fsdecode(b"caf\xe9")
#: The contract; a script may rely on each of these, and on there being no others.
STATUS = {
    "version": None,
    "pid": None,
    "started": None,
    "state": None,
    "destination": {"bucket", "prefix", "endpoint", "state", "since", "reason", "by_hand"},
    "watch": {"directory", "backend", "overflows", "files_missed", "too_deep"},
    "files": {"settling", "queued", "uploading", "waiting", "parked", "unsent", "uploaded", "vanished", "excluded"},
    "bytes": {"uploaded", "in_flight", "unsent"},
    "rate": {"files_per_s", "bytes_per_s"},
    "large_files": None,
    "hanging": None,
    "nodes": None,
    "oldest_unsent_s": None,
    "last_error": None,
}


@pytest.fixture
def faulty(faulty: FaultyS3) -> FaultyS3:
    faulty.script(Answer(code=400, error_code="EntityTooLarge"), times=None, match="^PUT parked")
    faulty.script(Answer(code=409, error_code="OperationAborted"), times=None, match="^PUT waiting")
    return faulty


@pytest.fixture
def make(make: Make, tmp_path: Path) -> Make:
    """Daemons that may or may not be started."""

    def daemon(name: str = "one", **sections: Any) -> Daemon:
        return make(tmp_path / name, **{"retry": PATIENT, **sections})

    return daemon


def told(daemon: Daemon, *command: str) -> str:
    """What it prints when all is well; nothing on stderr."""
    done = daemon.cli(*command, timeout_s=WAIT_S)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(daemon: Daemon, *command: str, code: int = 1) -> str:
    """The one line on stderr; nothing on stdout."""
    done = daemon.cli(*command, timeout_s=WAIT_S)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removesuffix("\n")


def status_of(daemon: Daemon) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(told(daemon, "status", "--json"))
    assert list(answer) == list(STATUS)
    for name, keys in STATUS.items():
        assert keys is None or set(answer[name]) == keys
    return answer


def rows_of(daemon: Daemon, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told(daemon, "list", "--json", *options).splitlines()]


def why(daemon: Daemon, file: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(told(daemon, "why", "--json", file))
    return answer


def fill(daemon: Daemon, count: int = 0) -> None:
    """A ledger as an earlier run may have left it: one parked, one waiting, `count` sent. Nothing is in the folder."""
    ledger = Ledger(
        daemon.state_directory / "ledger.sqlite3", destination=f"aws|{daemon.config['destination']['bucket']}|"
    )
    ledger.start()
    ledger.record_retry(a_retry("parked", state=State.PARKED))
    ledger.record_retry(a_retry("waiting"))
    for number in range(count):
        ledger.record_receipt(a_receipt(f"sent-{number:06}", destination=ledger.destination))
    assert ledger.close(WAIT_S)
    daemon.config_path.write_text(f"""
[watch]
directory = "{daemon.folder}"
[destination]
bucket = "{daemon.config["destination"]["bucket"]}"
[state]
directory = "{daemon.state_directory}"
[service]
control_socket = "{daemon.socket_path}"
""")


# --- beside a running daemon


def test_each_state_is_told(make: Make, faulty: FaultyS3) -> None:
    """Status counts it, list shows it, why explains it; large files say how far they are."""
    daemon = make(upload={"workers": 1, "timeout_s": 300})
    hold = HoldUntil()
    faulty.script(hold, times=None, match="^PUT uploading")
    with daemon:
        for name in ("parked", "waiting"):
            daemon.drop(name)
        daemon.drop("uploaded", b"content")
        for event in ("file.parked", "file.failed", "file.uploaded"):
            daemon.wait_event(event, timeout_s=WAIT_S)
        daemon.drop("uploading")
        eventually(lambda: faulty.in_flight == 1, timeout_s=WAIT_S)
        daemon.drop("queued")
        eventually(lambda: status_of(daemon)["files"]["queued"] == 1, timeout_s=WAIT_S)

        status = status_of(daemon)
        assert status["version"] == __version__
        assert status["pid"] == daemon.pid
        assert status["state"] == "running"
        assert status["destination"]["bucket"] == faulty.bucket
        assert status["destination"]["state"] == "open"
        assert status["watch"]["directory"] == str(daemon.folder)
        assert status["files"] == {
            name: name in {"queued", "uploading", "waiting", "parked", "uploaded"} for name in status["files"]
        } | {"unsent": 4}
        assert status["bytes"] == {"uploaded": 7, "in_flight": 7, "unsent": 28}
        assert status["oldest_unsent_s"] > 0
        assert "OperationAborted" in status["last_error"] or "EntityTooLarge" in status["last_error"]
        text = told(daemon, "status")
        assert text.startswith(f"state          running (pid {daemon.pid}) since 20")
        assert "1 queued, 1 uploading, 1 waiting, 1 parked, 1 uploaded" in text

        for state in ("queued", "uploading", "waiting", "parked", "uploaded"):
            (row,) = rows_of(daemon, "--state", state)
            assert (row["path"], row["state"], row["bytes"]) == (state, state, 7)
            assert state == "uploaded" or row["age_s"] > 0
            assert re.fullmatch(rf"{state} .* {state}\b.*\n", told(daemon, "list", "--state", state))
            assert why(daemon, state)["state"] == state
            assert told(daemon, "why", state).startswith(f"{state}: {state}\n")
        assert sorted(row["path"] for row in rows_of(daemon)) == ["parked", "queued", "uploading", "waiting"]
        assert sorted(row["path"] for row in rows_of(daemon, "--all")) == [
            "parked", "queued", "uploaded", "uploading", "waiting"
        ]  # fmt: skip
        assert len(rows_of(daemon, "--all", "--limit", "2")) == 2
        assert why(daemon, "waiting")["error_code"] == "OperationAborted"
        assert "next try at" in why(daemon, "waiting")["why"]
        assert told(daemon, "why", "parked").endswith("hint: the store takes no object of this size\n")
        assert why(daemon, "uploaded")["key"] == "uploaded"
        hold.release()


def test_what_is_not_sent_is_explained(make: Make) -> None:
    """Just written, left out, not there, not a file; and what changed after it was sent."""
    daemon = make(watch={"settle_s": 3600, "recursive": False})
    (daemon.folder / "link").symlink_to("settling")
    (daemon.folder / "sub").mkdir()
    with daemon:
        daemon.wait_event("scan.finished", timeout_s=WAIT_S)
        for name in ("settling", "x.tmp", "sub/file"):
            daemon.drop(name)
        eventually(lambda: status_of(daemon)["files"]["settling"] == 1, timeout_s=WAIT_S)

        assert why(daemon, "settling")["state"] == "settling"
        assert [row["path"] for row in rows_of(daemon, "--state", "settling")] == ["settling"]
        assert why(daemon, "x.tmp")["state"] == why(daemon, "sub/file")["state"] == "excluded"
        assert why(daemon, "x.tmp")["why"] == "left out by *.tmp in watch.exclude"
        assert "watch.recursive" in why(daemon, "sub/file")["why"]
        assert daemon.cli("rescan").returncode == 0
        eventually(lambda: status_of(daemon)["files"]["excluded"] == 1, timeout_s=WAIT_S)
        for name in ("link", "sub", "nope"):
            done = daemon.cli("why", name, "--json")
            assert (done.returncode, json.loads(done.stdout)["state"]) == (1, "unknown")
        assert refused(daemon, "wait", "--timeout", "0.2", code=4) == "timed out"
        assert refused(daemon, "wait", "--timeout", "0.2", "settling", code=4) == "timed out"
        assert "x.tmp: there is nothing to wait for" in refused(daemon, "wait", "settling", "x.tmp")
        assert "nope: there is nothing to wait for: no regular file" in refused(daemon, "wait", "nope")


def test_paused_destination_is_said_first(make: Make, faulty: FaultyS3) -> None:
    """State, since when and why; the files wait for it and nobody is blamed."""
    faulty.script(Answer(code=403, error_code="AccessDenied"), times=None)
    with make() as daemon:
        daemon.drop("a.txt")
        daemon.wait_event("destination.paused", timeout_s=WAIT_S)

        status = status_of(daemon)
        assert status["state"] == status["destination"]["state"] == "paused"
        assert status["destination"]["since"].endswith("Z")
        assert status["destination"]["reason"].startswith("AccessDenied: ")
        assert re.match(r"state +paused .*\npaused +since 20.*Z: AccessDenied: ", told(daemon, "status"))
        eventually(lambda: "the paused destination" in why(daemon, "a.txt")["why"], timeout_s=WAIT_S)
        (row,) = rows_of(daemon)
        assert why(daemon, "a.txt")["state"] == row["state"] == "queued"

        assert told(daemon, "retry", "--all") == "the paused destination is tried now; 0 files released\n"
        faulty.behave()
        assert told(daemon, "retry", "--all").endswith("0 files released\n")
        assert told(daemon, "wait", "--timeout", str(WAIT_S - 1)) == ""
        assert status_of(daemon)["state"] == "running"


def test_retry(make: Make, faulty: FaultyS3) -> None:
    """One, or all that wait and are parked; another file is an error, and then none is released."""
    with make() as daemon:
        # Refused three times a file is parked; for good once another one has passed.
        events = {
            "parked-1": "parked",
            "sent-1": "uploaded",
            "parked-2": "parked",
            "sent-2": "uploaded",
            "waiting": "failed",
        }
        for name, event in events.items():
            daemon.drop(name)
            daemon.wait_event(f"file.{event}", timeout_s=WAIT_S, path=name)
            if event == "uploaded":
                daemon.wait_event("file.parked", timeout_s=WAIT_S, path=name.replace("sent", "parked"), attempt=4)
        eventually(lambda: len(rows_of(daemon, "--state", "parked")) == 2, timeout_s=WAIT_S)
        assert refused(daemon, "wait", "parked-1", "parked-2", code=3).startswith("some files are parked")
        assert "parked: s3spool list" in refused(daemon, "wait", "parked-2", code=3)
        message = "s3spool: nope: is neither waiting nor parked; see `s3spool why`"
        assert refused(daemon, "retry", "parked-1", "nope") == message
        faulty.behave()

        assert told(daemon, "retry", "parked-1") == "1 file released\n"
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S, path="parked-1")
        assert [row["path"] for row in rows_of(daemon, "--state", "parked")] == ["parked-2"]

        assert told(daemon, "retry", "--all") == "2 files released\n"
        assert told(daemon, "wait", "--timeout", str(WAIT_S - 1)) == ""
        assert set(faulty.contents()) == {"parked-1", "parked-2", "sent-1", "sent-2", "waiting"}


def test_wait_tells_that_some_are_parked(make: Make) -> None:
    """All that can be sent is sent: exit code 3."""
    with make() as daemon:
        daemon.wait_ready(WAIT_S)
        for name in ("parked", "a", "b"):
            daemon.drop(name)

        assert refused(daemon, "wait", code=3) == "some files are parked: s3spool list --state parked"
        assert {row["path"]: row["state"] for row in rows_of(daemon, "--all")} == {
            "parked": "parked",
            "a": "uploaded",
            "b": "uploaded",
        }


def test_wait_forget_rescan_against_a_real_server(tmp_path: Path, seaweed: Seaweed, bucket: str) -> None:
    """All sent is exit code 0; what is forgotten is sent again, and is not counted as missed by the watch."""
    daemon = Daemon(tmp_path, seaweed, bucket=bucket)
    (tmp_path / "spool/before").write_bytes(b"b")
    with daemon:
        daemon.wait_ready(WAIT_S)
        for number in range(20):
            daemon.drop(f"{number}.txt")
        assert told(daemon, "wait", "--timeout", str(WAIT_S - 1)) == ""
        assert len(daemon.events("file.uploaded")) == 21
        assert told(daemon, "wait", "3.txt", str(daemon.folder / "4.txt"), "--timeout", str(WAIT_S - 1)) == ""

        assert told(daemon, "forget", "3.txt") == "forgotten\n"
        eventually(lambda: len(daemon.events("file.uploaded", path="3.txt")) == 2, timeout_s=WAIT_S)
        (daemon.folder / "3.txt").unlink()
        assert told(daemon, "forget", "3.txt") == "forgotten\n"
        assert told(daemon, "forget", "3.txt") == "nothing was known of it\n"
        assert not daemon.events("file.vanished")

        scans = daemon.scans()
        assert told(daemon, "rescan") == "rescan asked for\n"
        eventually(lambda: daemon.scans() > scans, timeout_s=WAIT_S)
        assert not daemon.events("scan.finished", reason="request"), "a scan that found nothing is no news"
        assert status_of(daemon)["watch"]["files_missed"] == 0


def test_files_removed_once_sent_are_waited_for(make: Make) -> None:
    """With `delete` the receipt is what remains."""
    with make(after={"action": "delete"}) as daemon:
        daemon.drop("a.txt")
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S)

        assert told(daemon, "wait", "a.txt") == ""
        eventually(lambda: not (daemon.folder / "a.txt").exists(), timeout_s=WAIT_S)
        assert why(daemon, "a.txt")["why"].endswith("; the local file is gone")
        assert told(daemon, "wait", "a.txt") == ""


ODD_NAMES = [
    *("new\nline", NOT_UTF8, "-dash", "--help", "ä b"),
    *("\x1b[2J\x1b]0;owned\x07", "\u202etxt.exe", "sub/d\ufeffir/x"),
]


def test_odd_names_go_through_every_command(make: Make) -> None:
    """They come in from the command line, go out as one printable line, and JSON's spelling is taken back."""
    with make() as daemon:
        for name in ODD_NAMES:
            daemon.drop(name)
        daemon.wait_uploaded(len(ODD_NAMES), WAIT_S)

        rows = rows_of(daemon, "--all")
        listed = told(daemon, "list", "--all").splitlines(keepends=True)
        assert len(rows) == len(listed) == len(ODD_NAMES)
        assert all(line.removesuffix("\n").isprintable() for line in listed)
        keys = {told(daemon, "key", "--json", "--", name): told(daemon, "key", "--", name) for name in ODD_NAMES}
        assert {json.loads(key): text for key, text in keys.items()} == {
            row["key"]: f"{printable(row['key'])}\n" for row in rows
        }
        for spelling in (row["path"] for row in rows):
            assert why(daemon, f"./{spelling}" if spelling[0] == "-" else spelling)["state"] == "uploaded"
        for name in ODD_NAMES:
            for line in told(daemon, "why", "--", name).splitlines():
                assert line.isprintable()
        assert told(daemon, "wait", "--timeout", str(WAIT_S - 1), "--", *ODD_NAMES) == ""
        for name in ODD_NAMES:
            assert told(daemon, "forget", "--", name) == "forgotten\n"
        daemon.wait_uploaded(2 * len(ODD_NAMES), WAIT_S)
        daemon.kill()
        for name in ODD_NAMES[:2]:
            assert why(daemon, str(daemon.folder / name))["state"] == "uploaded"
            assert told(daemon, "forget", "--", name) == "forgotten\n"


def test_folder_and_errors_that_are_not_utf8(make: Make, tmp_path: Path) -> None:
    """Status quotes both: it stays JSON, and one line each."""
    folder = tmp_path / NOT_UTF8
    folder.mkdir()
    daemon = make(environment={"S3SPOOL_WATCH__DIRECTORY": str(folder)})
    with daemon:
        daemon.wait_ready(WAIT_S)
        (folder / f"parked{NOT_UTF8}").write_bytes(b"x")
        daemon.wait_event("file.parked", timeout_s=WAIT_S)

        status = status_of(daemon)
        assert status["watch"]["directory"] == rf"{tmp_path}/caf\xe9"
        assert r"parkedcaf\xe9" in status["last_error"]
        assert why(daemon, f"parked{NOT_UTF8}")["state"] == "parked"
        daemon.kill()
        assert r"parkedcaf\xe9" in status_of(daemon)["last_error"]
        assert r"caf\xe9" in told(daemon, "status")


def test_daemon_with_flags_of_its_own_is_asked_for_them(make: Make, tmp_path: Path) -> None:
    """What it was started with counts, not what this shell's configuration says."""
    other = tmp_path / "other"
    other.mkdir()
    flags = {"S3SPOOL_WATCH__DIRECTORY": str(other), "S3SPOOL_DESTINATION__PREFIX": "in/"}
    daemon = make(environment=flags)
    with daemon:
        daemon.wait_ready(WAIT_S)
        (other / "a.txt").write_bytes(b"x")
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S)
        for name in flags:
            del daemon.environment[name]

        assert why(daemon, str(other / "a.txt"))["key"] == "in/a.txt"
        assert told(daemon, "key", str(other / "a.txt")) == "in/a.txt\n"
        assert "names no file inside the watched folder" in refused(daemon, "why", str(daemon.folder / "a.txt"))


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "why"},
        {"command": "why", "path": 5},
        {"command": "why", "path": "../one/s3spool.toml"},
        {"command": "why", "path": "/etc/passwd"},
        {"command": "why", "path": "a\0b"},
        {"command": "why", "path": "//€"},
        {"command": "forget", "path": ""},
        {"command": "retry"},
        {"command": "retry", "paths": [None]},
        {"command": "list", "state": ["queued"]},
        {"command": "list", "after": ["nowhere", ""]},
        {"command": "list", "after": ["receipts", 5]},
        {"command": "list", "after": "a"},
    ],
    ids=str,
)
def test_senseless_requests_are_refused(request_: dict[str, Any]) -> None:
    """None of them reaches the ledger or the folder, or counts as a bug."""
    from s3spool.daemon.handlers import handlers  # noqa: PLC0415 - as the daemon does

    handler = handlers(_NoDaemon())[request_["command"]]  # type: ignore[arg-type] # none is needed
    with pytest.raises(S3SpoolError, match="not a request this daemon knows"):
        handler(request_, Peer(0, frozenset()))


class _NoDaemon:
    class config:  # noqa: N801 - stands in for an attribute
        service = SimpleNamespace(control_group="")

    class components:  # noqa: N801 - likewise
        folder = SimpleNamespace(root=Path("/"))
        stats = Stats()


def test_a_file_in_the_retry_list_counts_as_unsent(make: Make) -> None:
    """Its age is the time that it is there, whatever its mtime says; the ledger tells it without the daemon as well."""
    daemon = make()
    with daemon:
        old = daemon.home / "old"
        old.write_bytes(b"content")
        os.utime(old, (0, 0))
        old.rename(daemon.folder / "waiting")
        daemon.wait_event("file.failed", timeout_s=WAIT_S)
        eventually(lambda: status_of(daemon)["oldest_unsent_s"] > 0, timeout_s=WAIT_S)
        assert status_of(daemon)["oldest_unsent_s"] < WAIT_S * 10
        assert daemon.stop() == 0

    assert 0 < status_of(daemon)["oldest_unsent_s"] < WAIT_S * 10


# --- without a daemon


@pytest.mark.parametrize("demo", [False, True], ids=["nothing", "a demo"])
def test_answers_about_nothing_are_no_comfort(demo: bool, tmp_path: Path) -> None:
    """Without a configuration the line names the places, and the demo of this directory that has ended."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    config = tmp_path / ".local/state/s3spool/demo/0123abcd/s3spool.toml"
    if demo:
        config.parent.mkdir(parents=True)
        config.write_text(f'[watch]\ndirectory = "{tmp_path}/drop"\n')

    command = [sys.executable, "-m", "s3spool", "list"]
    done = finished(*command, env=environment, cwd=tmp_path, check=True)

    places = f"s3spool.toml, {tmp_path}/.config/s3spool/s3spool.toml, /etc/s3spool/s3spool.toml"
    advice = f"for the demo add --config {config}" if demo else "name one with --config"
    assert done.stdout == ""
    assert done.stderr == (f"s3spool: no configuration is there ({places}), and no daemon has run here: {advice}\n")


def test_the_ledger_answers_when_the_daemon_does_not(make: Make, faulty: FaultyS3) -> None:
    """After kill -9: status, list, why; retry and forget work, and the next daemon does as told."""
    daemon = make()
    with daemon:
        daemon.wait_ready(WAIT_S)
        for name in ("parked", "waiting", "sent-1", "sent-2"):
            daemon.drop(name)
        assert refused(daemon, "wait", "parked", "sent-1", "sent-2", code=3)
        daemon.wait_event("file.failed", timeout_s=WAIT_S)
        daemon.kill()

        status = status_of(daemon)
        assert (status["state"], status["pid"], status["started"]) == ("stopped", None, None)
        counts = {"waiting": 1, "parked": 1, "uploaded": 2}
        assert status["files"] == dict.fromkeys(status["files"], 0) | counts | {"unsent": 2}
        assert status["bytes"]["uploaded"] == 14
        assert status["last_error"].startswith(("waiting: OperationAborted", "parked: EntityTooLarge"))
        assert told(daemon, "status").startswith("state          stopped\nfiles          1 waiting, 1 parked, 2 up")
        assert {row["path"]: row["state"] for row in rows_of(daemon, "--all")} == {
            "parked": "parked", "waiting": "waiting", "sent-1": "uploaded", "sent-2": "uploaded"
        }  # fmt: skip
        assert rows_of(daemon, "--state", "queued") == []
        daemon.drop("new")
        assert daemon.cli("why", "nope").returncode == 1
        states = {name: why(daemon, name)["state"] for name in ("parked", "waiting", "sent-1", "new")}
        assert states == {"parked": "parked", "waiting": "waiting", "sent-1": "uploaded", "new": "unsent"}
        for command in (["rescan"], ["wait"], ["wait", "new"]):
            assert refused(daemon, *command).startswith("s3spool: no daemon runs: nobody answers at ")
        assert told(daemon, "wait", "sent-1", "sent-2") == ""

        assert told(daemon, "retry", "parked") == "1 file released\n"
        assert why(daemon, "parked")["state"] == "waiting"
        assert told(daemon, "retry", "--all") == "2 files released\n"
        assert refused(daemon, "retry", "sent-1").startswith("s3spool: sent-1: is neither waiting nor parked")
        assert told(daemon, "forget", "sent-1") == "forgotten\n"
        assert told(daemon, "forget", "sent-1") == "nothing was known of it\n"
        assert why(daemon, "sent-1")["state"] == "unsent"

        faulty.behave()
        daemon.start().wait_ready(WAIT_S)
        assert told(daemon, "wait", "--timeout", str(WAIT_S - 1)) == ""
        assert {path: faulty.count(f"^PUT {path}$") for path in ("sent-1", "sent-2", "new")} == {
            "sent-1": 2, "sent-2": 1, "new": 1
        }  # fmt: skip
        assert {"parked", "waiting"} <= set(faulty.contents())


@pytest.mark.parametrize("begun", ["not at all", "an empty file", "no tables yet"])
def test_before_the_first_start_nothing_is_known(begun: str, make: Make) -> None:
    """No ledger, or one that is being made, is no error; and asking makes none."""
    daemon = make()
    fill(daemon)
    for file in daemon.state_directory.iterdir():
        file.unlink()
    path = daemon.state_directory / "ledger.sqlite3"
    if begun != "not at all":
        path.touch()
    if begun == "no tables yet":
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
    before = [*daemon.state_directory.iterdir()]

    assert status_of(daemon)["files"] == dict.fromkeys(STATUS["files"] or (), 0)
    assert told(daemon, "list") == ""
    assert daemon.cli("why", "a.txt").returncode == 1
    assert told(daemon, "retry", "--all") == "0 files released\n"
    assert told(daemon, "forget", "a.txt") == "nothing was known of it\n"
    assert "is neither waiting nor parked" in refused(daemon, "retry", "a.txt")
    made = [*daemon.state_directory.iterdir()]
    assert [file for file in made if not file.name.endswith(("-shm", "-wal"))] == before


@pytest.mark.parametrize("known", [Known(a_receipt("sub/c"), None), Known(None, a_retry("sub/c"))])
def test_what_cannot_be_looked_at_is_taken_for_what_is_known(known: Known) -> None:
    """`why` of a file in a closed directory tells why it waits, or that it was sent before that."""

    class Closed:
        def identity_of(self, _: str) -> None:
            raise PermissionError(13, "Permission denied")

    folder: Any = Closed()

    assert views.identity_of(folder, "sub/c", known) == (known.retry or known.receipt).identity  # type: ignore[union-attr]
    with pytest.raises(S3SpoolError, match="sub/c: cannot be looked at: Permission denied"):
        views.identity_of(folder, "sub/c")


def test_receipts_of_another_destination_do_not_count(make: Make) -> None:
    """What was sent to where the files went before is unsent, as the daemon will see it, too."""
    daemon = make()
    fill(daemon, 1)
    known = Identity.of((daemon.drop("sent-000000")).stat())
    ledger = Ledger(daemon.state_directory / "ledger.sqlite3", destination="aws|elsewhere|")
    ledger.start()
    ledger.record_receipt(a_receipt("sent-000000", identity=known, destination=ledger.destination))
    assert ledger.close(WAIT_S)

    assert why(daemon, "sent-000000")["state"] == "unsent"


def test_ledger_of_a_daemon_that_does_not_answer_is_not_written(make: Make) -> None:
    """It may be starting: who has the directory is named, and nothing changes. Reading is fine."""
    daemon = make()
    fill(daemon)
    lock = DirectoryLock(daemon.state_directory)
    try:
        for command in (["retry", "--all"], ["retry", "parked"], ["forget", "parked"]):
            assert f"in use by the daemon with pid {os.getpid()}, which does not answer" in refused(daemon, *command)
        status = status_of(daemon)
        assert (status["state"], status["pid"]) == ("starting", os.getpid())
        assert why(daemon, "parked")["state"] == "parked"
    finally:
        lock.release()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may hand files to others")
def test_root_leaves_nothing_that_the_daemons_user_cannot_use(make: Make) -> None:
    """`sudo s3spool status` of a stopped daemon makes files beside the ledger: they are its owner's."""
    daemon = make()
    fill(daemon)
    DirectoryLock(daemon.state_directory).release()
    for path in (daemon.state_directory, *daemon.state_directory.iterdir()):
        os.chown(path, 65534, 65534)

    for command in (["status"], ["list"], ["retry", "parked"], ["forget", "waiting"], ["status"]):
        told(daemon, *command)
        owners = {path.name: path.stat().st_uid for path in daemon.state_directory.iterdir()}
        assert set(owners.values()) == {65534}, owners


def test_second_instance_on_the_same_state_directory(make: Make) -> None:
    """Exit code 1 and one line that names the first, which goes on as if nothing had been."""
    first, second = make("one"), make("two")
    second.config["state"] = first.config["state"]
    second.config["service"] = first.config["service"]
    with first:
        first.wait_ready(WAIT_S)
        second.start()

        assert second.wait_exit(WAIT_S) == 1
        assert second.log_tail().strip() == (
            f"s3spool: state.directory = {first.state_directory}: another s3spool (pid {first.pid}) uses it;"
            " stop that one, or give this one a state directory of its own"
        )
        first.drop("a.txt")
        assert told(first, "wait", "--timeout", str(WAIT_S - 1)) == ""
        assert status_of(first)["pid"] == first.pid


def test_socket_path_that_is_taken(make: Make) -> None:
    """By a directory, for instance: one line, exit code 78."""
    daemon = make()
    daemon.socket_path.mkdir()
    daemon.start()

    assert daemon.wait_exit(WAIT_S) == 78
    problem = "is something else than a socket; name a path that is free"
    assert daemon.log_tail().splitlines()[-1] == f's3spool: service.control_socket = "{daemon.socket_path}": {problem}'


@pytest.mark.parametrize("place", ["ledger", "socket"])
def test_without_permission(place: str, make: Make) -> None:
    """One line that says what to do."""
    daemon = make()
    fill(daemon)
    hidden = Path(tempfile.mkdtemp(prefix="s3spool-test-", dir="/tmp"))  # pytest's own is closed to others
    try:
        hidden.chmod(0o755)
        closed = hidden / "closed"
        closed.mkdir(mode=0o700)
        state, sockets = (closed, hidden) if place == "ledger" else (hidden, closed)
        config = f'[watch]\ndirectory = "{hidden}/spool"\n[state]\ndirectory = "{state}/s"\n'
        (hidden / "c.toml").write_text(config + f'[service]\ncontrol_socket = "{sockets}/x.sock"\n')
        if os.getuid():
            closed.chmod(0)
        # Root may do anything; and who is not root may not be able to read this interpreter's files.
        drop = "import os; os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))"
        program = (
            "import sys, encodings.idna, encodings.utf_8_sig\n"
            "import s3spool.cli.output, s3spool.control.client, s3spool.daemon.handlers\n"
            "from s3spool.cli.commands import cli\n"
            f"{drop}\ncli(['status', '--config', sys.argv[1]])"
        )
        done = finished(sys.executable, "-c", program, str(hidden / "c.toml"), cwd="/", env=daemon.environment)
    finally:
        closed.chmod(0o700)
        subprocess.run(["rm", "-r", str(hidden)], check=True)

    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.count("\n") == 1
    advice = "use sudo" if place == "ledger" else "use sudo, or join the group of the daemon's user (s3spool"
    assert "permission denied" in done.stderr
    assert advice in done.stderr


# --- the command line itself


def shell(daemon: Daemon, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`$S` is the program; the exit code is that of the first command in a pipe."""
    return finished(
        "bash",
        "-c",
        f"{line}; exit ${{PIPESTATUS[0]}}",
        cwd=daemon.home,
        env=daemon.environment | {"S": f"{sys.executable} -m s3spool"} | environment,
    )


def test_list_may_be_cut_off(make: Make) -> None:
    """`| head` ends it without a word, with and without --json; a full disk costs one line."""
    daemon = make()
    fill(daemon, 20_000)

    for options in ("", "--json"):
        done = shell(daemon, f"$S list --all {options} | head -n 1")
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
        assert len(told(daemon, "list", "--all", *options.split()).splitlines()) == 20_002
    for command in ("list", "status", "status --json"):
        done = shell(daemon, f"$S {command} > /dev/full")
        assert (done.returncode, done.stderr) == (
            1, "s3spool: the output cannot be written: No space left on device\n"
        )  # fmt: skip


def test_terminals_that_do_not_know_every_character(make: Make) -> None:
    """JSON is UTF-8 everywhere; other output shows what the terminal cannot, but does not fail."""
    daemon = make()
    fill(daemon)
    (daemon.folder / "€").write_bytes(b"x")

    for command, expected in (
        ("$S why €", r"\u20ac: unsent"),
        ("$S why --json €", '"path": "€"'),
        ("$S key €", r"\u20ac"),
    ):
        done = shell(daemon, command, PYTHONIOENCODING="latin-1")
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["list", "--state", "lost"], "'lost' is not one of"),
        (["retry"], "name FILES, or --all"),
        (["retry", "--all", "a.txt"], "name FILES, or --all"),
        (["wait", "--timeout", "-1"], "is not in the range"),
        (["wait", "--timeout", "soon"], "is not a valid float"),
        (["why"], "Missing argument 'FILE'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(arguments: list[str], said: str, tmp_path: Path) -> None:
    """Exit code 2, and nothing on stdout."""
    done = finished(sys.executable, "-m", "s3spool", *arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version(argument: str) -> None:
    """Both ways."""
    out = subprocess.check_output([sys.executable, "-m", "s3spool", argument], text=True, timeout=WAIT_S)
    assert __version__ in out


@pytest.mark.parametrize("command", ["--help", "status", "list", "why parked", "key a", "wait --help"])
def test_questions_do_not_load_the_machinery(command: str, make: Make) -> None:
    """A tenth of a second instead of half a one: no boto3, no pycurl, no structlog."""
    daemon = make()
    fill(daemon)
    program = (
        "import sys\nfrom s3spool.cli.commands import cli\n"
        "try:\n    cli(sys.argv[1:])\nfinally:\n"
        "    heavy = {'boto3', 'botocore', 'pycurl', 'structlog', 'watchdog', 'awscrt'} & set(sys.modules)\n"
        "    print(sorted(heavy), file=sys.stderr)"
    )
    done = finished(sys.executable, "-c", program, *command.split(), cwd=daemon.home, env=daemon.environment)

    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


# --- names, keys and places, without a process


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, a directory, and links of every kind; the current directory holds it."""
    folder = tmp_path / "spool"
    (folder / "sub/deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "spool-2").mkdir()
    (tmp_path / "alias").symlink_to("spool")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "in").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("cwd", "file", "expected"),
    [
        (".", "a", "a"),
        (".", "sub/a", "sub/a"),
        (".", "spool/a", "a"),
        (".", "spool", "spool"),  # it may hold a file of its own name
        (".", "./spool//sub/../a", "a"),
        (".", "{folder}/sub/a", "sub/a"),
        (".", "alias/a", "a"),
        (".", "spool/link", "link"),
        (".", "link", "link"),
        (".", "spool/in/a", "sub/a"),
        (".", "spool/gone/a", "gone/a"),
        ("outside", "a", "a"),
        ("outside", "../spool/a", "a"),
        ("spool/sub", "a", "sub/a"),
        ("spool/sub", "../a", "a"),
        ("spool", "sub/a", "sub/a"),
        (".", "//caf\xe9", NOT_UTF8),
        (".", NOT_UTF8, NOT_UTF8),
        (".", "new\nline", "new\nline"),
    ],
)
def test_names_people_use(cwd: str, file: str, expected: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the current directory if that leads into the folder, else from the folder; the last link is a name."""
    monkeypatch.chdir(tree.parent / cwd)
    assert path_in(str(tree), file.format(folder=tree)) == expected


@pytest.mark.parametrize(
    "file", ["", ".", "..", "/", "../a", "/etc/passwd", "out/a", "sub/..", "{folder}", "{folder}-2/a", "//€"]
)
def test_names_that_lead_elsewhere(file: str, tree: Path) -> None:
    """One line, whatever it is."""
    with pytest.raises(S3SpoolError, match="names no file inside the watched folder, /"):
        path_in(str(tree), file.format(folder=tree))


def test_names_without_a_current_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that stands in a directory somebody has removed still has the folder."""
    gone = tree.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert path_in(str(tree), "a") == "a"


def test_key_of_a_prefix_with_a_date(make: Make) -> None:
    """From the file's time; once the file is gone, from the receipt; else one line."""
    daemon = make(destination={"prefix": "%Y/"}, after={"action": "delete"})
    with daemon:
        path = daemon.drop("a.txt")
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S)
        key = daemon.events("file.uploaded")[0]["key"]
        eventually(lambda: not path.exists(), timeout_s=WAIT_S)
        daemon.stop()
    path.with_name("old.txt").write_bytes(b"x")
    os.utime(path.with_name("old.txt"), (0, 86_400 * 400))

    assert told(daemon, "key", "old.txt") == "1971/old.txt\n"
    assert told(daemon, "key", "a.txt") == f"{key}\n"
    assert refused(daemon, "key", "nope") == (
        "s3spool: nope: no such file, and its key depends on the file's time: destination.prefix = %Y/"
    )


def test_key_that_would_be_too_long(make: Make) -> None:
    """Is none, and the file will be parked."""
    daemon = make()
    fill(daemon)

    assert "KeyTooLongError" in refused(daemon, "key", "\x01" * 250 + "/" + "x" * 250 + "/" + "y" * 250)


@pytest.mark.parametrize(
    ("file", "text", "environ", "state", "socket"),
    [
        ("s3spool.toml", "", {}, "/var/lib/s3spool", "/run/s3spool/control.sock"),
        ("cam.toml", "", {}, "/var/lib/s3spool-cam", "/run/s3spool-cam/control.sock"),
        ("s3spool.toml", '[state]\ndirectory = "/s"', {}, "/s", "/run/s3spool/control.sock"),
        ("s3spool.toml", '[service]\ncontrol_socket = "/c"', {}, "/var/lib/s3spool", "/c"),
        ("s3spool.toml", "", {"S3SPOOL_STATE__DIRECTORY": "/e"}, "/e", "/run/s3spool/control.sock"),
        ("s3spool.toml", "", {"STATE_DIRECTORY": "/x", "RUNTIME_DIRECTORY": "/y"}, "/x", "/y/control.sock"),
    ],
)  # fmt: skip
def test_places_of_the_systems_service(
    file: str,
    text: str,
    environ: dict[str, str],
    state: str,
    socket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked from a person's shell, /etc/s3spool/s3spool.toml speaks of the unit's directories."""
    monkeypatch.setattr(configuration, "SYSTEM_FILE", tmp_path / "s3spool.toml")
    (tmp_path / file).write_text(text)
    environ = {"HOME": "/home/me"} | environ

    config = as_the_unit_has_it(configuration.load(tmp_path / file, environ=environ), environ)

    assert (str(config.state.directory), str(config.service.control_socket)) == (state, socket)


def test_places_of_a_persons_own_configuration(tmp_path: Path) -> None:
    """Are a person's own."""
    (tmp_path / "s3spool.toml").touch()
    config = configuration.load(tmp_path / "s3spool.toml", environ={"HOME": "/home/me"})

    assert as_the_unit_has_it(config, {}) is config


# --- waiting, step by step


class FakeClient(ControlClient):
    """Says what the script says; the last line for ever."""

    def __init__(self, *progress: dict[str, Any], states: dict[str, list[str]] | None = None) -> None:
        self.script = [{"pid": 1, "scan": 1, "left": 0, "parked": 0, "folder_there": True} | step for step in progress]
        self.states = states or {}
        self.rescans = self.looks = 0

    def rescan(self) -> dict[str, Any]:
        if not self.script:
            raise NoDaemonError("no daemon runs")
        self.rescans += 1
        return {"pid": self.script[0]["pid"], "scan": 1}

    def progress(self) -> dict[str, Any]:
        self.looks += 1
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def why(self, file: str) -> dict[str, Any]:
        states = self.states[file]
        return {"path": file, "why": "", "state": states.pop(0) if len(states) > 1 else states[0]}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize(
    ("progress", "looks", "rescans"),
    [
        ([{}], 2, 1),
        ([{"scan": 0}, {"scan": 0}, {}], 4, 1),
        ([{"left": 3}, {}, {"left": 1}, {}], 5, 1),  # between two rooms at the second look
        ([{"folder_there": False}, {"folder_there": False}, {}], 4, 3),
        ([{"pid": 1}, {"pid": 2}, {"pid": 2, "scan": 0}, {"pid": 2}], 5, 2),
    ],
    ids=["all sent", "scan", "gap", "lost folder", "another daemon"],
)
def test_all_is_sent(progress: list[dict[str, Any]], looks: int, rescans: int) -> None:
    """Only when the scan asked for has ended and two looks in a row find nothing."""
    client = FakeClient(*progress)

    assert waiting.wait_for_all(client, WAIT_S) == 0
    assert (client.looks, client.rescans) == (looks, rescans)


@pytest.mark.parametrize(
    ("step", "timeout_s", "code"),
    [
        ({"parked": 2}, WAIT_S, 3),
        ({"parked": 2}, None, 3),
        ({"left": 1, "parked": 1}, 0.05, 4),
        ({"scan": 0}, 0.05, 4),
        ({"folder_there": False}, 0.05, 4),
        ({"left": 1}, 0, 4),
        ({"left": 1}, float("nan"), 4),
    ],
)
def test_not_all_is_sent(step: dict[str, Any], timeout_s: float | None, code: int) -> None:
    """Parked is 3, over time is 4; what a lost folder holds nobody knows."""
    assert waiting.wait_for_all(FakeClient(step), timeout_s) == code


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ({"a": ["uploaded"], "b": ["uploaded"]}, 0),
        ({"a": ["unsent", "settling", "queued", "uploading", "uploaded"], "b": ["uploaded"]}, 0),
        ({"a": ["waiting", "parked"], "b": ["unsent", "uploaded"]}, 3),
        ({"a": ["unknown", "uploaded"], "b": ["uploaded"]}, 0),  # sent and removed between two questions
        ({"a": ["queued"], "b": ["uploaded"]}, 4),
    ],
)
def test_named_files(states: dict[str, list[str]], code: int) -> None:
    """Each of them counts, and only they."""
    client = FakeClient({"left": 5, "parked": 5}, states=states)
    assert waiting.wait_for_files(client, list(states), 0.5 if code == 4 else WAIT_S) == code


@pytest.mark.parametrize("state", ["unknown", "excluded"])
def test_files_that_will_never_be_sent(state: str) -> None:
    """Are not waited for."""
    with pytest.raises(S3SpoolError, match="a: there is nothing to wait for"):
        waiting.wait_for_files(FakeClient({}, states={"a": [state], "b": ["queued"]}), ["a", "b"], WAIT_S)


def test_the_line_on_a_terminal_says_what_is_waited_for() -> None:
    """Files by their states, bytes, rate and time left; a pause comes first."""
    status = Status(
        files=Files(uploading=1, queued=2, parked=7), bytes=Bytes(unsent=2**20), rate=Rate(bytes_per_s=2**19)
    )
    assert waiting.waits_for(status) == "waiting for 3 files: 1 uploading, 2 queued; 1 MiB, 512 KiB/s, 2 s left"
    assert waiting.waits_for(status, ["a", "b"]) == "waiting for a and 1 more; 1 MiB, 512 KiB/s, 2 s left"
    assert waiting.waits_for(Status()) == "waiting for the scan of the folder"
    status.destination = Destination(state="paused", reason="AccessDenied: no")
    assert waiting.waits_for(status).endswith("2 queued; uploads are paused: AccessDenied: no")


def test_a_list_on_a_terminal_has_a_header_and_lines_of_its_width(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A long error is cut; in a pipe it is whole, and there is no header."""
    row = {"path": "a", "state": "waiting", "bytes": 5, "age_s": 61.0, "error_code": "E", "attempts": 2}
    rows = [row | {"error": "x" * 200}] * 3
    print_rows(rows, as_json=False, limit=2)
    assert (
        capfdbinary.readouterr().out.splitlines()
        == [b"waiting          5 B     1 min  a  E (attempt 2): " + b"x" * 200] * 2
    )

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_rows(rows, as_json=False, limit=None)
    header, *lines = capfdbinary.readouterr().out.splitlines()
    assert header == b"STATE           SIZE       AGE  FILE"
    assert {(len(line), line[-3:]) for line in lines} == {(80, b"...")}


def test_nobody_waits_for_a_daemon_that_does_not_run() -> None:
    """Unless all is done already."""
    with pytest.raises(NoDaemonError):
        waiting.wait_for_files(FakeClient(states={"a": ["waiting"]}), ["a"], None)
    assert waiting.wait_for_files(FakeClient(states={"a": ["uploaded"]}), ["a"], None) == 0


def test_wait_ends_with_the_daemon(make: Make) -> None:
    """One line, exit code 1: nobody is left who would send."""
    daemon = make(watch={"settle_s": 3600})
    with daemon:
        daemon.wait_ready(WAIT_S)
        daemon.drop("a.txt")
        command = [sys.executable, "-m", "s3spool", "wait", "--config", str(daemon.config_path)]
        waiter = subprocess.Popen(command, stderr=subprocess.PIPE, env=daemon.environment, text=True)
        eventually(lambda: daemon.scans() > 1, timeout_s=WAIT_S)
        daemon.signal(signal.SIGTERM)

        _, said = waiter.communicate(timeout=WAIT_S)
        assert (waiter.returncode, said.count("\n")) == (1, 1)
        assert daemon.wait_exit(WAIT_S) == 0
