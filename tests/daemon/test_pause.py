"""`s3spool pause`: nothing new is taken, what is in flight ends, and a restart does not forget it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_notifications import Manager

from s3spool.errors import Scope, UploadError
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import NO_FAILURES, Pause
from s3spool.ledger.store import Ledger
from s3spool.queue.inbox import Inbox
from s3spool.queue.item import Item
from support.browser import Browser
from support.daemon import Daemon, Make
from support.faults import HoldUntil, Status
from support.faulty import FaultyS3
from support.house import a_breaker
from support.waiting import eventually
from support.web import address, ask, free_port, metrics, order

pytestmark = pytest.mark.integration

MIB = 2**20
REASON = "bucket <b>moves</b>\nat noon"


def status(daemon: Daemon) -> dict[str, Any]:
    return dict(json.loads(daemon.cli("status", "--json").stdout))


def test_pause_is_kept_and_shown(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """In flight ends, nothing new begins, `kill -9` changes nothing, and each place shows the reason."""
    manager = Manager(tmp_path / "notify")
    hold = HoldUntil()
    faulty.script(hold, times=None, match="PUT .*first")
    daemon = make(environment={"NOTIFY_SOCKET": str(manager.path)}, service={"http_listen": f"127.0.0.1:{free_port()}"})
    with contextlib.closing(manager), daemon:
        daemon.wait_ready()
        daemon.drop("first")
        eventually(lambda: faulty.in_flight)
        paused = daemon.cli("pause", "--reason", REASON)
        assert (paused.returncode, paused.stderr) == (0, "")
        daemon.drop("second")
        hold.event.set()
        daemon.wait_event("file.uploaded", path="first")

        daemon.kill()
        daemon.start()
        daemon.wait_ready()
        daemon.drop("third")
        eventually(lambda: status(daemon)["files"]["queued"] == 2)
        destination = status(daemon)["destination"]
        why = daemon.cli("why", "second").stdout
        told = daemon.wait_event("uploads.paused")
        health = json.loads(ask(daemon, "/healthz")[2])
        manager.wait(r"STATUS=1 uploaded, 2 queued, .*; paused by hand since \d\d:\d\d: bucket .*")

        assert set(faulty.objects) == {"first"}
        assert destination["state"] == "paused" == status(daemon)["state"]
        assert destination["reason"] == f"by hand: {REASON}"
        assert destination["since"] == told["since"]
        assert "uploads are paused" in why
        assert metrics(daemon)["s3spool_destination_paused", ""] == 1
        assert metrics(daemon)["s3spool_paused_by_hand", ""] == 1
        assert (ask(daemon, "/healthz")[0], health["status"]) == (200, "paused")
        assert "bucket <b>moves</b>\\nat noon" in health["reason"]
        assert re.search(r"^paused +since .*: by hand: bucket", daemon.cli("status").stdout, re.MULTILINE)

        assert daemon.cli("resume").stdout == "uploads go on\n"
        daemon.wait_event("uploads.resumed")
        daemon.wait_event("file.uploaded", path="second")
        daemon.wait_event("file.uploaded", path="third")
        assert daemon.cli("resume").stdout == "uploads were not paused by hand\n"
        assert metrics(daemon)["s3spool_paused_by_hand", ""] == 0


def test_large_file_in_flight_ends(make: Make, faulty: FaultyS3) -> None:
    """All its parts are sent, and it is completed; another one does not begin."""
    hold = HoldUntil()
    faulty.script(hold, times=1, match="PUT .*partNumber=1&")
    daemon = make(upload={"workers": 2, "multipart_threshold": 5 * MIB, "part_size": 5 * MIB}).start_ready()
    daemon.drop("large", bytes(23 * MIB))
    eventually(lambda: faulty.in_flight)
    assert daemon.cli("pause").returncode == 0
    daemon.drop("next", bytes(23 * MIB))
    hold.event.set()

    daemon.wait_event("file.uploaded", path="large")
    eventually(lambda: status(daemon)["files"]["queued"] == 1)

    assert set(faulty.objects) == {"large"}
    assert daemon.stop() == 0


def test_outage_during_a_pause(make: Make, faulty: FaultyS3) -> None:
    """No probe goes out while a person has paused uploads; both reasons are shown."""
    hold = HoldUntil()
    faulty.script(hold, times=1, match="PUT .*first")
    with make() as daemon:
        daemon.wait_ready()
        daemon.drop("first")
        eventually(lambda: faulty.in_flight)
        assert daemon.cli("pause").returncode == 0
        hold.event.set()
        daemon.wait_event("file.uploaded", path="first")
        faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match="^PUT")
        assert daemon.cli("resume").returncode == 0
        daemon.drop("second")
        daemon.wait_event("destination.paused")
        assert daemon.cli("pause").returncode == 0
        eventually(lambda: not faulty.in_flight)
        before = faulty.count("^PUT")

        assert status(daemon)["destination"]["reason"].startswith("by hand; AccessDenied: ")
        daemon.cli("retry", "--all")
        eventually(lambda: status(daemon)["files"]["queued"] == 1)
        assert faulty.count("^PUT") == before

        faulty.behave()
        assert daemon.cli("resume").returncode == 0
        daemon.wait_event("file.uploaded", path="second")


def test_without_a_daemon(make: Make, faulty: FaultyS3) -> None:
    """The commands write to the ledger; the daemon starts paused, or not."""
    daemon = make()
    with daemon:
        daemon.wait_ready()
        assert daemon.stop() == 0

    assert daemon.cli("resume").stdout == "uploads were not paused by hand\n"
    assert daemon.cli("pause", "--reason", "one").returncode == 0
    first = status(daemon)["destination"]
    assert daemon.cli("pause", "--reason", "two").returncode == 0
    second = status(daemon)["destination"]
    daemon.drop("a")
    with daemon:
        daemon.wait_ready()
        eventually(lambda: status(daemon)["files"]["queued"] == 1)
        assert daemon.stop() == 0
    assert daemon.cli("resume").stdout == "uploads go on\n"

    assert (first["state"], first["reason"], second["reason"]) == ("paused", "by hand: one", "by hand: two")
    with daemon:
        daemon.wait_event("file.uploaded", path="a")


def test_second_pause_changes_the_reason_only(make: Make) -> None:
    """Since when stays; a reason of any length is refused in one line."""
    with make() as daemon:
        daemon.wait_ready()
        daemon.cli("pause", "--reason", "one")
        first = status(daemon)["destination"]
        daemon.cli("pause", "--reason", "two")
        second = status(daemon)["destination"]
        refused = daemon.cli("pause", "--reason", "x" * 501)

    assert (first["reason"], second["reason"]) == ("by hand: one", "by hand: two")
    assert first["since"] == second["since"]
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


@pytest.mark.browser
def test_buttons(make: Make, tmp_path: Path) -> None:
    """Pause with a reason and resume on the page."""
    daemon = make(service={"http_listen": f"127.0.0.1:{free_port()}"})
    with daemon, Browser(tmp_path / "profile", width=360) as page:
        daemon.wait_ready()
        page.open(f"http://{address(daemon)}/")
        page.wait("document.querySelector('#state').textContent === 'running'")
        page.run("document.querySelector('#reason').value = 'a <i>reason</i>'")
        page.click("#pause")
        daemon.wait_event("uploads.paused", reason="a <i>reason</i>")
        page.wait("document.querySelector('#banner').textContent.includes('by hand: a <i>reason</i>')")
        assert page.run("document.documentElement.scrollWidth") == 360

        page.click("#resume")
        daemon.wait_event("uploads.resumed")
        page.wait("document.querySelector('#banner').hidden")
        assert page.errors == []
        assert order(daemon, "pause", {"reason": 1})[0] == 400


def test_inbox_on_hold_during_an_outage() -> None:
    """No file is taken before `resume`, a probe included; a worker that waits closes its connections at once."""
    breaker = a_breaker(initial_s=0.01, max_s=0.02)
    inbox = Inbox(10, 2, breaker)
    inbox.hold(True)
    error = UploadError("upload", "a", "AccessDenied", "no", Scope.EVERYBODY)
    breaker.failed("a", NO_FAILURES, error, time.monotonic())
    inbox.offer([Item("b")])
    closed = threading.Event()
    taken: list[object] = []
    worker = threading.Thread(target=lambda: taken.append(inbox.take(closed.set)))
    worker.start()

    assert breaker.open
    assert closed.wait(10)
    assert inbox.take_nowait() is None
    assert taken == []
    inbox.hold(False)
    worker.join(10)
    assert taken == [Item("b")]


def test_the_ledger_keeps_the_pause(tmp_path: Path) -> None:
    """Its words may hold bytes that are not UTF-8; the end of the pause removes it."""
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger(path, destination="here")
    ledger.start()
    ledger.record_pause(Pause(1.5, "a \udcff reason"))
    assert ledger.flush(10)
    with Reader(path) as reader:
        assert reader.pause() == Pause(1.5, "a \\udcff reason")
    ledger.record_pause(None)
    assert ledger.close(10)
    with Reader(path) as reader:
        assert reader.pause() is None
