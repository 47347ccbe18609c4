"""`s3spool top`: the picture in 80x24, hostile names, and a real terminal."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
import uuid
from typing import Any

import pytest
from rich.console import Console

from s3spool.cli.top import History, view
from s3spool.control.protocol import ask
from support.daemon import Daemon, Make
from support.faults import HoldUntil, Status
from support.faulty import FaultyS3
from support.processes import finished
from support.waiting import eventually

HOSTILE = "esc\x1b[31m\u202e\nname"


def an_answer(files: int = 0, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(("settling", "queued", "uploading", "waiting", "parked"), 1_234_567) | {"uploaded": files}
    status = {
        "state": "running",
        "files": counts,
        "bytes": {"uploaded": files * 1000},
        "oldest_unsent_s": 4000.0,
        "destination": {"bucket": "b" * 60, "prefix": "p/", "state": "open", "since": None, "reason": None},
    }
    return {
        "status": status,
        "upload_s": {"bounds": [0.01, 0.1, 1.0], "counts": [files, 0, 0, 0]},
        "uploading": [],
        "errors": [],
        "shape": [],
        **more,
    }


def drawn(answer: dict[str, Any], history: History, trouble: str = "", width: int = 80, height: int = 24) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False, highlight=False)
    console.print(view(answer, history, trouble, width, height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 10), (200, 60), (40, 24)])
def test_it_fits(width: int, height: int) -> None:
    """However much there is to show, and whatever its names: no line too many, none too long."""
    answer = an_answer(
        50,
        uploading=[{"path": HOSTILE + "x" * 300, "bytes": 100, "bytes_uploaded": 25} for _ in range(20)],
        errors=[{"state": "parked", "error_code": HOSTILE, "files": 10**9} for _ in range(20)],
        shape=[{"segment": f"{HOSTILE}{number}/", "queued": 10**6, "ages": [10**6] * 4} for number in range(20)],
    )
    answer["status"]["state"] = "paused"
    answer["status"]["destination"] |= {"state": "paused", "since": "now", "reason": HOSTILE * 30}
    history = History()
    history.add(an_answer(0), 0.0)
    history.add(answer, 1.0)

    lines = drawn(answer, history, HOSTILE, width, height)

    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)


def test_numbers() -> None:
    """Rates between two answers, and the latency of the last minute; a restart begins anew."""
    history = History()
    history.add(an_answer(0), 0.0)
    history.add(an_answer(100), 10.0)

    text = "\n".join(drawn(an_answer(100), history))

    assert history.rates() == [(10.0, 10_000.0)]
    assert "10.0 files/s" in text
    assert "50 % <= 10 ms  95 % <= 10 ms  99 % <= 10 ms" in text
    assert "oldest unsent 1.1 h" in text
    for second in range(400):
        history.add(an_answer(100 + second), 11.0 + second)
    assert len(history.rates()) == 300
    history.add(an_answer(1), 500.0)
    assert history.rates() == []


@pytest.fixture
def running(make: Make, faulty: FaultyS3) -> Daemon:
    """Parks a file at its first failure."""
    retry = {"initial_s": 0.1, "max_s": 1, "max_attempts": 1}
    return make(destination={"endpoint_url": faulty.endpoint_url}, retry=retry).start_ready()


@pytest.mark.integration
def test_what_the_daemon_answers(running: Daemon, faulty: FaultyS3) -> None:
    """Uploading, errors and backlog of a daemon in trouble."""
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")
    hold = HoldUntil()
    faulty.script(hold, times=None, match="PUT .*slow")
    running.drop("good")
    running.drop("sub/bad")
    running.wait_event("file.parked")
    running.drop("slow/one")

    def answer() -> dict[str, Any]:
        return dict(ask(running.socket_path, "top"))

    eventually(lambda: [row["path"] for row in answer()["uploading"]] == ["slow/one"])
    eventually(lambda: answer()["errors"] == [{"state": "parked", "error_code": "KeyTooLongError", "files": 1}])
    eventually(lambda: {row["segment"] for row in answer()["shape"]} == {"slow/", "sub/"})
    assert sum(answer()["upload_s"]["counts"]) == 1
    hold.event.set()


@pytest.mark.integration
def test_in_a_terminal(running: Daemon, faulty: FaultyS3) -> None:
    """It is drawn in tmux's 80x24, follows the daemon, says when that has ended, and `q` gives the terminal back."""
    tmux = shutil.which("tmux") or pytest.skip("no tmux here: apt install tmux")
    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")
    running.drop(HOSTILE)
    running.drop("dir/bad")
    running.wait_event("file.parked")
    server = f"s3spool-test-{uuid.uuid4().hex[:8]}"
    command = shlex.join([sys.executable, "-m", "s3spool", "top", "--config", str(running.config_path)])

    def run(*arguments: str) -> str:
        done = finished(tmux, "-L", server, *arguments)
        return done.stdout

    run("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", "-s", "it", "sh")
    try:
        run("send-keys", "-t", "it", f"{command}; echo ended with $?", "Enter")
        eventually(lambda: "KeyTooLongError" in run("capture-pane", "-p", "-t", "it"))
        picture = run("capture-pane", "-p", "-t", "it")
        if saved := os.environ.get("S3SPOOL_PICTURES"):
            with open(f"{saved}/top.txt", "w") as file:  # noqa: PTH123 - a picture for the documents
                file.write(picture)
        assert "s3://test-bucket/" in picture
        assert "1 uploaded" in picture
        assert "dir/" in picture
        running.drop("more")
        eventually(lambda: "2 uploaded" in run("capture-pane", "-p", "-t", "it"))
        running.kill()
        eventually(lambda: "no answer: no daemon runs" in run("capture-pane", "-p", "-t", "it"))
        run("send-keys", "-t", "it", "q")
        eventually(lambda: "ended with 0" in run("capture-pane", "-p", "-t", "it"))
    finally:
        run("kill-server")


@pytest.mark.integration
def test_without_a_terminal(running: Daemon) -> None:
    """One line instead of escape sequences in a pipe."""
    refused = running.cli("top")

    assert (refused.returncode, refused.stdout) == (1, "")
    assert "needs a terminal; `s3spool status` prints once" in refused.stderr
    assert json.loads(running.cli("status", "--json").stdout)["state"] == "running"
