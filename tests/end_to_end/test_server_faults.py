"""Each fault of a server alone, through the real daemon: what the log says, and that the end is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from end_to_end.conftest import COUNTER, PART, WORKERS
from s3spool.errors import Fault as Whose
from s3spool.ledger.rows import State
from support.daemon import Daemon
from support.faults import (
    EmptyOk,
    Endless,
    Fault,
    Garbage,
    HtmlOk,
    Late,
    LoseAnswer,
    Redirect,
    Reset,
    Silent,
    Status,
    Truncated,
    WrongChecksum,
    WrongEtag,
)
from support.faulty import FaultyS3
from support.objects import content_of, folder_files
from support.waiting import eventually

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet


pytestmark = pytest.mark.integration

NEIGHBOURS = 12  # more than a streak
NETWORK = "check network, DNS"
AGAIN = "it is sent again"
SERVER = "look at the server's state"
PORTAL = "without a proxy that alters answers"
ODD_ENCODING = b"<?xml version='1.0' encoding='no-such'?><Error><Code>SlowDown</Code></Error>"
MUCH = b"y" * 65536
ODD_DATE = "Thu, 26 Nov 2026 10:00:00 +99999999999999"


class Case(NamedTuple):
    """What a fault leads to where all files meet it, with its code and a part of its hint.

    paused: at once; streak: when eight files have failed; refused: the same, and one file is parked when others have
    passed; slowed: fewer workers; passes: it is none, the object is proven in another way.
    """

    name: str
    fault: Fault
    leads_to: str
    code: str = ""
    hint: str = ""


CASES = [
    Case("reset before the body", Reset("before"), "streak", "", NETWORK),
    Case("reset inside the body", Reset("inside"), "streak", "", NETWORK),
    Case("reset after the body", Reset("after"), "streak", "", NETWORK),
    Case("accepted and silent", Silent(), "streak", "OPERATION_TIMEDOUT", NETWORK),
    Case("answer too late", Late(), "streak", "OPERATION_TIMEDOUT", NETWORK),
    Case("no answer, but stored", LoseAnswer(), "streak", "GOT_NOTHING", NETWORK),
    Case("half a status line", Truncated(0.02), "streak", "", NETWORK),
    Case("garbage", Garbage(), "streak", "", NETWORK),
    Case("half an answer", Garbage(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), "streak", "PARTIAL_FILE"),
    Case("an error without an end", Endless((b"HTTP/1.1 500 No\r\n\r\n", MUCH)), "streak", "HTTP500", SERVER),
    Case(
        "a success without an end",
        Endless((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", MUCH)),
        "streak",
        "Unconfirmed",
        PORTAL,
    ),
    Case("a header without an end", Endless((b"HTTP/1.1 200 OK\r\nX-Long: ", MUCH)), "streak", "TOO_LARGE", NETWORK),
    Case(
        "200 with an error",
        Status(code=200, body=b"<Error><Code>InternalError</Code></Error>"),
        "streak",
        "Unconfirmed",
        PORTAL,
    ),
    Case("200, empty", EmptyOk(), "streak", "Unconfirmed", PORTAL),
    Case("200, empty, but stored", EmptyOk(store=True), "passes"),
    Case("200 from a captive portal", HtmlOk(), "streak", "Unconfirmed", PORTAL),
    Case("204", Status(code=204), "streak", "HTTP204", SERVER),
    Case("206", Status(code=206, body=b"part"), "streak", "HTTP206", SERVER),
    Case("wrong ETag, right checksum", WrongEtag(), "passes"),
    Case("wrong checksum", WrongChecksum(), "streak", "BadDigest"),
    Case("301", Redirect(), "paused", "PermanentRedirect", "destination.region"),
    Case("302", Status(code=302, headers={"Location": "http://127.0.0.1:9/"}), "paused", "HTTP302", "redirects"),
    Case("307", Status(code=307, error_code="TemporaryRedirect"), "streak", "TemporaryRedirect", "young"),
    Case("308", Status(code=308, headers={"Location": "http://127.0.0.1:9/"}), "paused", "HTTP308", "endpoint_url"),
    Case("400", Status(code=400), "refused", "HTTP400", "not an option"),
    Case("400, its content", Status(code=400, error_code="BadDigest"), "streak", "BadDigest", AGAIN),
    Case("400, an option", Status(code=400, error_code="InvalidArgument"), "refused", "InvalidArgument", "option"),
    Case("400, never heard of", Status(code=400, error_code="Unheard.Of"), "streak", "Unheard.Of", SERVER),
    Case("400, expired", Status(code=400, error_code="ExpiredToken"), "paused", "ExpiredToken", "credentials"),
    Case("403", Status(code=403), "paused", "HTTP403", "s3:PutObject"),
    Case("403, denied", Status(code=403, error_code="AccessDenied"), "paused", "AccessDenied", "s3:PutObject"),
    Case("404", Status(code=404), "paused", "HTTP404", "destination.bucket"),
    Case("404, no bucket", Status(code=404, error_code="NoSuchBucket"), "paused", "NoSuchBucket", "create the bucket"),
    Case("405", Status(code=405), "paused", "HTTP405", "no S3 server"),
    Case("409", Status(code=409, error_code="OperationAborted"), "streak", "OperationAborted", AGAIN),
    Case("411", Status(code=411, error_code="MissingContentLength"), "streak", "MissingContentLength", AGAIN),
    Case("412", Status(code=412, error_code="PreconditionFailed"), "streak", "PreconditionFailed", AGAIN),
    Case("413", Status(code=413), "refused", "HTTP413", "no object of this size"),
    Case("414", Status(code=414), "refused", "HTTP414", "does not take this file"),
    Case("400, too large", Status(code=400, error_code="EntityTooLarge"), "refused", "EntityTooLarge", "this size"),
    Case("429", Status(code=429), "slowed", "HTTP429", "upload.workers"),
    Case("431", Status(code=431), "paused", "HTTP431", "destination.metadata"),
    Case("500", Status(code=500, error_code="InternalError"), "streak", "InternalError", SERVER),
    Case("501", Status(code=501), "paused", "HTTP501", "options"),
    Case("502", Status(code=502, body=b"<html>Bad Gateway<br></html>"), "streak", "HTTP502", SERVER),
    Case("503", Status(code=503), "streak", "HTTP503", SERVER),
    Case("503, slow down", Status(code=503, error_code="SlowDown"), "slowed", "SlowDown", "upload.workers"),
    Case("503, in no known encoding", Status(code=503, body=ODD_ENCODING), "streak", "HTTP503", SERVER),
    Case("503, until no known day", Status(code=503, headers={"Retry-After": ODD_DATE}), "streak", "HTTP503", SERVER),
    Case("504", Status(code=504), "streak", "HTTP504", SERVER),
    Case("507", Status(code=507), "paused", "HTTP507", "make room"),
    Case("599", Status(code=599), "streak", "HTTP599", SERVER),
]


def drop(daemon: Daemon, name: str, count: int, size: int = 1000) -> dict[str, bytes]:
    files = {f"{name} {number}": content_of(size, next(COUNTER)) for number in range(count)}
    daemon.drop_all(files)
    return files


def wait_sent(daemon: Daemon, server: FaultyS3, files: dict[str, bytes]) -> None:
    """All of them, byte for byte, each told of once, and each gone from the folder only then."""

    def told() -> list[str]:
        return sorted(line["path"] for line in daemon.events("file.uploaded", this_run=True) if line["path"] in files)

    eventually(lambda: told() == sorted(files), message="all of them uploaded, once")
    there = server.contents()
    assert {path: there.get(path) for path in files} == files
    eventually(lambda: not folder_files(daemon.folder).keys() & files.keys())


def assert_told(line: dict[str, object], case: Case) -> None:
    """A person learns what it was and what to do."""
    assert str(line["error_code"]).startswith(case.code)
    assert line["error_code"]
    assert line["error"]
    assert case.hint in str(line["hint"])


# Each way in which the daemon takes a fault; which code takes which way is in the table (test_s3_errors.py).
LOST = {
    "reset before the body", "reset inside the body", "reset after the body", "accepted and silent", "answer too late",
    "no answer, but stored", "half a status line", "garbage",
}  # fmt: skip
QUICK = {
    "reset inside the body", "no answer, but stored", "200, empty, but stored",
    "200 from a captive portal", "wrong checksum", "403, denied", "413", "500", "503, slow down",
}  # fmt: skip


def params(cases: list[Case]) -> list[ParameterSet]:
    """All but the quick ones are slow."""
    return [pytest.param(it, id=it.name, marks=() if it.name in QUICK else pytest.mark.slow) for it in cases]


def parked_for_good(daemon: Daemon, path: str) -> bool:
    with daemon.ledger() as reader:
        return any(row.path == path and not row.provisional for row in reader.retries(State.PARKED))


@pytest.mark.parametrize("case", params(CASES))
def test_where_one_file_meets_it(case: Case, daemon: Daemon, server: FaultyS3) -> None:
    """The others pass, whatever it is; the one waits or is parked with its reason, and is there until it passes."""
    name = f"bad {next(COUNTER)}"
    server.script(case.fault, times=None, match=f"^PUT {name} ")

    bad = drop(daemon, name, 1)
    others = drop(daemon, f"other {next(COUNTER)}", NEIGHBOURS)
    wait_sent(daemon, server, others)
    path = next(iter(bad))
    if case.leads_to == "passes":
        wait_sent(daemon, server, bad)
        assert not daemon.events("file.failed", this_run=True)
        assert not daemon.events("destination.paused", this_run=True)
        return
    late = drop(daemon, f"late {next(COUNTER)}", 3)
    wait_sent(daemon, server, late)
    if case.leads_to == "slowed":
        line = eventually(lambda: daemon.events("destination.slowed", this_run=True))[0]
    else:
        event = "file.parked" if case.leads_to == "refused" else "file.failed"
        line = daemon.wait_event(event, path=path)

        def proven() -> bool:
            wait_sent(daemon, server, drop(daemon, f"later {next(COUNTER)}", 1))
            return bool(daemon.events(event, this_run=True, path=path, fault=Whose.OWN.value))

        # A lost connection may be the server's, who admits fewer: no file is blamed for it.
        if case.name not in LOST:
            eventually(proven, message="others passed between its failures")
        if case.leads_to != "refused":
            daemon.wait_event(event, path=path, attempt=line["attempt"] + 1)
    assert_told(line, case)
    assert folder_files(daemon.folder) == bad
    assert len(daemon.events("destination.paused", this_run=True)) <= (case.leads_to == "paused")

    if case.leads_to == "refused":
        eventually(lambda: parked_for_good(daemon, path), message="others have passed")
    server.behave()
    if case.leads_to == "refused":
        assert daemon.cli("retry", path).returncode == 0

    wait_sent(daemon, server, bad)
    parked = len(daemon.events("file.parked", this_run=True))
    # Twice where it was alone for a moment: then it is tried once more when another has passed.
    assert parked in ({1, 2} if case.leads_to == "refused" else {0})


@pytest.mark.parametrize("case", params(CASES))
def test_where_all_files_meet_it(case: Case, daemon: Daemon, server: FaultyS3) -> None:
    """What is the destination's pauses it, once, and costs nobody anything; when it is over all files are sent."""
    server.script(case.fault, times=None, match="^PUT" if case.leads_to == "passes" else "")

    files = drop(daemon, f"all {next(COUNTER)}", NEIGHBOURS)
    pauses = case.leads_to not in {"passes", "slowed"}
    if pauses:
        assert_told(daemon.wait_event("destination.paused"), case)
        probes = len(server.requests)
        eventually(lambda: len(server.requests) > probes)
    elif case.leads_to == "slowed":
        assert_told(daemon.wait_event("destination.slowed"), case)
    if case.leads_to != "passes":
        assert folder_files(daemon.folder) == files
        assert not daemon.events("file.uploaded", this_run=True)

    server.behave()

    wait_sent(daemon, server, files)
    for event in ("destination.paused", "destination.resumed"):
        assert len(daemon.events(event, this_run=True)) == pauses
    assert not daemon.events("file.parked", this_run=True)
    failed = daemon.events("file.failed", this_run=True)
    assert {line["fault"] for line in failed} <= {Whose.UNKNOWN.value}
    # Lost connections open the breaker only when nothing has passed for seconds.
    assert len(failed) < (2 * WORKERS if pauses else 1) or case.name in LOST


ACTS = {"create": r"^POST {name} 0\?uploads$", "part": r"^PUT {name} 0\?", "complete": r"^POST {name} 0\?uploadId"}
LARGE = {
    "reset inside the body", "garbage", "an error without an end", "a success without an end", "200, empty",
    "200 from a captive portal", "301", "403, denied", "404, no bucket", "413", "500", "503, slow down", "507",
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("case", params([it for it in CASES if it.name in LARGE]))
def test_where_a_large_file_meets_it(case: Case, act: str, daemon: Daemon, server: FaultyS3) -> None:
    """At each act of an upload in parts: told, the others pass, in the end the bytes are right and nothing is left."""
    name = f"large {next(COUNTER)}"
    server.script(case.fault, times=None, match=ACTS[act].format(name=name))

    large = drop(daemon, name, 1, PART + 1)
    (path,) = large
    events = {"destination.paused", "destination.slowed", "file.failed", "file.parked"}
    told = eventually(
        lambda: [line for line in daemon.events(this_run=True, path=path) if line["event"] in events],
    )
    assert told[0]["error_code"]
    assert told[0]["error"]
    wait_sent(daemon, server, drop(daemon, f"small {next(COUNTER)}", 3))
    assert folder_files(daemon.folder) == large
    assert path not in server.contents()

    server.behave()
    daemon.cli("retry", "--all")

    wait_sent(daemon, server, large)
    assert len(daemon.events("destination.paused", this_run=True)) <= 1
    eventually(lambda: server.store.uploads == {})
