"""For producers: receipts beside the files, and a command that hears of them."""

from __future__ import annotations

import functools
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from s3spool.ledger.rows import Pause
from s3spool.upload import event_hook
from s3spool.upload.event_hook import EventHook
from support.daemon import Make
from support.faults import Status
from support.faulty import FaultyS3
from support.house import a_breaker
from support.rows import a_receipt, a_retry
from support.waiting import eventually

pytestmark = pytest.mark.integration

ODD = os.fsdecode(b"odd \xff\n.csv")


@pytest.fixture
def make(make: Make) -> Make:
    return functools.partial(make, retry={"initial_s": 0.1, "max_s": 1, "max_attempts": 1})


def attributes(path: Path) -> dict[str, str]:
    return {
        name.removeprefix("user.s3spool."): os.getxattr(path, name).decode()
        for name in os.listxattr(path)
        if name.startswith("user.s3spool.")
    }


def test_attributes_of_a_kept_file(make: Make, faulty: FaultyS3) -> None:
    """They name the object; the file is neither sent nor read again because of them, and a new content renews them."""
    with make(after={"receipt": "xattr"}) as daemon:
        daemon.wait_ready()
        file = daemon.drop("sub/a", b"one")
        uploaded = daemon.wait_event("file.uploaded")
        found = eventually(lambda: attributes(file))

        assert found["uploaded_at"].endswith("Z")
        assert found == {
            "bucket": faulty.bucket,
            "key": "sub/a",
            "etag": uploaded["etag"],
            "checksum": uploaded["checksum"],
            "uploaded_at": found["uploaded_at"],
        }
        eventually(lambda: json.loads(daemon.cli("why", "sub/a", "--json").stdout)["state"] == "uploaded")
        before = file.stat().st_ctime_ns
        assert daemon.stop() == 0
        daemon.start()
        daemon.wait_event("scan.finished")
        daemon.cli("wait")
        assert file.stat().st_ctime_ns == before
        assert len(daemon.events("file.uploaded")) == 1
        file.write_bytes(b"two")
        daemon.wait_uploaded(2)
        eventually(lambda: attributes(file)["etag"] != uploaded["etag"])
        assert faulty.contents()["sub/a"] == b"two"


def test_hard_links_are_not_marked(make: Make) -> None:
    """Two names of one file have two keys: marking one would make the other one be read again, without end."""
    with make(after={"receipt": "xattr"}).start_ready() as daemon:
        hidden = daemon.folder / ".hidden"
        hidden.write_bytes(b"x")
        (daemon.folder / "a").hardlink_to(hidden)
        hidden.rename(daemon.folder / "b")
        daemon.wait_uploaded(2)
        assert daemon.cli("wait").returncode == 0

        assert attributes(daemon.folder / "b") == {}


def test_a_file_that_cannot_be_marked_is_uploaded(make: Make) -> None:
    """One warning; the upload counts."""
    with make(after={"receipt": "xattr"}) as daemon:
        daemon.wait_ready()
        place = daemon.folder / "a"
        hidden = daemon.folder / ".a"
        hidden.write_bytes(b"x")
        for size in (1000, 100, 10, 1):  # until the file system's room for attributes is used up
            for number in range(100):
                try:
                    os.setxattr(hidden, f"user.f{size}-{number}", b"x" * size)
                except OSError:
                    break
            else:
                pytest.skip("this file system takes attributes of any size")
        hidden.rename(place)
        daemon.wait_event("file.uploaded")
        failed = daemon.wait_event("file.failed", operation="receipt")

        assert failed["level"] == "warning"
        assert daemon.stop() == 0


@pytest.mark.parametrize("kind", ["xattr", "file"])
def test_archived_files(kind: str, make: Make, tmp_path: Path) -> None:
    """The receipt lies beside the archived file, under its final name, also where a name is taken or too long."""
    archive = tmp_path / "archive"
    with make(after={"action": "archive", "archive_directory": str(archive), "receipt": kind}) as daemon:
        daemon.wait_ready()
        for content in (b"one", b"three"):
            daemon.drop("sub/a", content)
            eventually(lambda: not (daemon.folder / "sub/a").exists())
        daemon.drop("l" * 250)
        daemon.drop(ODD)
        daemon.wait_uploaded(4)
        assert daemon.stop() == 0

    assert (archive / "sub/a.1").read_bytes() == b"three"
    if kind == "xattr":
        assert attributes(archive / "sub/a")["key"] == "sub/a"
        assert attributes(archive / "sub/a.1")["etag"] != attributes(archive / "sub/a")["etag"]
        assert attributes(archive / ODD)["key"] == "odd %FF%0A.csv"
        return
    first = json.loads((archive / "sub/a.receipt.json").read_text())
    second = json.loads((archive / "sub/a.1.receipt.json").read_text())
    assert (first["path"], first["bytes"], first["key"]) == ("sub/a", 3, "sub/a")
    assert (second["bytes"], second["etag"] == first["etag"]) == (5, False)
    assert set(first) == {"path", "bytes", "bucket", "key", "etag", "checksum", "version_id", "uploaded_at"}
    assert len([name for name in os.listdir(archive) if name.startswith("l") and name.endswith(".receipt.json")]) == 1
    assert (archive / f"{ODD}.receipt.json").exists()


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        ({"receipt": "file"}, 'after.receipt = "file": needs after.action = "archive"'),
        ({"receipt": "xattr", "action": "delete"}, 'needs after.action = "keep" or "archive"'),
        ({"exec": "cat 'x"}, 'after.exec = "cat \'x": is no command line'),
        ({"exec": "cat"}, 'after.exec = "cat": must begin with the absolute path of a program'),
    ],
    ids=str,
)
def test_wrong_settings(after: dict[str, str], problem: str, make: Make) -> None:
    """Found at the start, with exit code 78."""
    daemon = make(after=after)
    daemon.start()

    assert daemon.wait_exit() == 78
    assert problem in daemon.log_tail()


def script(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_command_hears_of_all(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """Uploaded and parked files and a paused destination, in batches, each as a JSON line."""
    told = tmp_path / "told"
    command = script(tmp_path / "hook", f"import sys\nopen({str(told)!r}, 'a').write(sys.stdin.read() + '--\\n')")
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")

    def events() -> list[dict[str, Any]]:
        lines = told.read_text().splitlines() if told.exists() else []
        return [json.loads(line) for line in lines if line != "--"]

    with make(after={"exec": command}) as daemon:
        daemon.wait_ready()
        for number in range(50):
            daemon.drop(f"{number}")
        daemon.drop(ODD)
        daemon.drop("bad")
        eventually(lambda: len(events()) == 52)
        faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match="^PUT")
        daemon.drop("refused")
        eventually(lambda: events()[-1]["event"] == "destination.paused")
        assert daemon.cli("pause", "--reason", "why not").returncode == 0
        eventually(lambda: events()[-1]["event"] == "uploads.paused")
        assert events()[-1]["reason"] == "why not"
        assert daemon.cli("resume").returncode == 0
        faulty.behave()
        daemon.wait_event("file.uploaded", path="refused")
        assert daemon.stop() == 0

    found = events()
    uploaded = [event for event in found if event["event"] == "file.uploaded"]
    assert len({event["path"] for event in uploaded} - {"bad"}) == 52  # a stop hands over what waits
    assert {"path", "key", "bucket", "bytes", "etag", "checksum", "version_id", "time"} <= set(uploaded[0])
    assert [event["error_code"] for event in found if event["event"] == "file.parked"] == ["KeyTooLongError"]
    assert [event["error_code"] for event in found if event["event"] == "destination.paused"] == ["AccessDenied"]
    assert told.read_text().count("--") < 10


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import sys; print('no\\x1b[31m room'); sys.exit(3)", "exit status 3: no\x1b[31m room"),
        ("import os, time; os.fork(); time.sleep(600)", "killed after"),
        ("print('x' * 10**7)", ""),
    ],
    ids=["fails", "hangs", "floods"],
)
def test_bad_commands(text: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is one line; one that hangs is killed with its children; none stalls what adds events."""
    logged: list[str] = []
    monkeypatch.setattr(event_hook.log, "warning", lambda _, **fields: logged.append(fields["error"]), raising=False)
    monkeypatch.setattr(event_hook, "BATCH_S", 0.05)
    breaker = a_breaker(initial_s=1, max_s=1)
    command = script(tmp_path / "hook", f"open({str(tmp_path / 'ran')!r}, 'w')\n{text}")
    hook = EventHook(command, "b", breaker, timeout_s=2)
    hook.start()
    hook.uploaded(a_receipt("a"))
    eventually((tmp_path / "ran").exists)

    if error:
        eventually(lambda: logged)
        assert logged[0].startswith(error)
    hook.close()
    assert not hook._thread.is_alive()


def test_a_command_that_hangs_holds_no_stop_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and the log says why."""
    logged: list[str] = []
    monkeypatch.setattr(event_hook.log, "warning", lambda _, **fields: logged.append(fields["error"]), raising=False)
    monkeypatch.setattr(event_hook, "BATCH_S", 0.05)
    monkeypatch.setattr(event_hook, "CLOSE_S", 0.1)
    command = script(tmp_path / "hook", f"import time; open({str(tmp_path / 'ran')!r}, 'w'); time.sleep(600)")
    hook = EventHook(command, "b", a_breaker(initial_s=1, max_s=1), timeout_s=3600)
    hook.start()
    hook.uploaded(a_receipt("a"))
    eventually((tmp_path / "ran").exists)

    hook.close()

    eventually(lambda: not hook._thread.is_alive())
    assert logged == ["killed: s3spool stops"]


def test_an_idle_hook_ends_at_once() -> None:
    """It waits for events without end."""
    hook = EventHook("/bin/true", "b", a_breaker(initial_s=1, max_s=1))
    hook.start()

    hook.close()

    assert not hook._thread.is_alive()


def test_events_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a command is slow, no more than so many events wait; the rest is counted."""
    monkeypatch.setattr(event_hook, "MAX_WAITING", 5)
    logged: list[str] = []
    monkeypatch.setattr(event_hook.log, "warning", lambda _, **fields: logged.append(fields["error"]), raising=False)
    hook = EventHook("/bin/true", "b", a_breaker(initial_s=1, max_s=1))

    for number in range(8):
        hook.uploaded(a_receipt(f"{number}"))

    assert len(hook._batch()) == 5
    assert logged == ["3 events are lost: the command is too slow"]
    silent = EventHook("", "b", a_breaker(initial_s=1, max_s=1))
    silent.start()
    silent.uploaded(a_receipt("a"))
    silent.parked(a_retry("b"))
    silent.paused(Pause(1e9, "why not"))
    assert not silent._events
    silent.close()
