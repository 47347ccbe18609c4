"""S3 says that it will never take a file: whose fault that is, other files show."""

from __future__ import annotations

import threading

import pytest

from end_to_end.conftest import COUNTER
from s3spool.errors import Fault
from s3spool.failure.breaker import STREAK
from s3spool.failure.retry_policy import PROVISIONAL
from s3spool.ledger.rows import State
from s3spool.s3.error_table import BY_CODE, BY_STATUS
from support.daemon import Daemon, Make
from support.faults import Delay, Status
from support.faulty import FaultyS3
from support.objects import folder_files
from support.waiting import eventually

FOR_GOOD = [
    *(Status(code=400, error_code=code) for code, rule in BY_CODE.items() if rule.permanent),
    *(Status(code=status) for status, rule in BY_STATUS.items() if rule.permanent),
]
# All have one rule (test_s3_errors.py): two of them show in each run what follows from it.
REFUSALS = [
    pytest.param(fault, id=name, marks=() if name in {"InvalidRequest", "413"} else pytest.mark.slow)
    for fault in FOR_GOOD
    for name in [fault.error_code or str(fault.code)]
]

pytestmark = pytest.mark.integration


@pytest.fixture
def daemon(daemon: Daemon) -> Daemon:
    """The last thing it knows of S3 is that it takes files."""
    daemon.drop(f"fine {next(COUNTER)}")
    eventually(lambda: folder_files(daemon.folder) == {})
    daemon.mark()
    return daemon


def drop(daemon: Daemon, count: int, name: str = "file") -> dict[str, bytes]:
    files = {f"{name} {next(COUNTER)}": b"content" for _ in range(count)}
    daemon.drop_all(files)
    return files


def in_state(daemon: Daemon, state: State) -> set[str]:
    with daemon.ledger() as reader:
        return {row.path for row in reader.retries(state)}


def wait_all_sent(daemon: Daemon, server: FaultyS3, files: dict[str, bytes]) -> None:
    """Without a person's help."""
    eventually(lambda: not folder_files(daemon.folder).keys() & files.keys())
    assert {path: server.contents().get(path) for path in files} == files
    eventually(lambda: not in_state(daemon, State.PARKED) & files.keys())


def name_of(fault: Status) -> str:
    return fault.error_code or str(fault.code)


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_file_alone_is_parked_at_the_third_refusal(fault: Status, daemon: Daemon, server: FaultyS3) -> None:
    """There is nothing that could show that the server is to blame, and a person wants to know."""
    server.script(fault, times=None)

    (path,) = files = drop(daemon, 1)

    parked = daemon.wait_event("file.parked", path=path)
    assert (parked["attempt"], parked["fault"]) == (PROVISIONAL, Fault.UNKNOWN.value)
    assert parked["error_code"] in {name_of(fault), f"HTTP{name_of(fault)}"}
    assert parked["hint"] == (BY_CODE.get(fault.error_code) or BY_STATUS[fault.code]).hint
    eventually(lambda: in_state(daemon, State.PARKED) == set(files))
    assert not daemon.events("destination.paused", this_run=True)


def test_a_file_parked_alone_is_tried_once_more_when_another_passes(daemon: Daemon, server: FaultyS3) -> None:
    """Was it the server? Then it is sent; if it is refused again, S3 has shown that it takes others: for good."""
    server.script(Status(code=413), times=PROVISIONAL)
    server.script(Status(code=413), times=None, match="^PUT bad ")
    files = drop(daemon, 1, "good")
    daemon.wait_event("file.parked", path=next(iter(files)))
    files |= drop(daemon, 1, "good")
    wait_all_sent(daemon, server, files)

    (bad,) = drop(daemon, 1, "bad")
    daemon.wait_event("file.parked", path=bad, attempt=PROVISIONAL)
    for _ in range(3):
        wait_all_sent(daemon, server, drop(daemon, 1, "good"))
        parked = daemon.wait_event("file.parked", path=bad, attempt=PROVISIONAL + 1)

    assert parked["fault"] == Fault.OWN.value
    assert server.count(f"^PUT {bad}$") == PROVISIONAL + 1


@pytest.mark.parametrize("count", [2, STREAK - 1])
def test_a_few_files_alone_pause_nothing(count: int, daemon: Daemon, server: FaultyS3) -> None:
    """They are parked without proof, each by itself, and all pass with the first file after the server's repair."""
    server.script(Status(code=413), times=None)

    files = drop(daemon, count)
    for path in files:
        daemon.wait_event("file.parked", path=path, attempt=PROVISIONAL)
    eventually(lambda: in_state(daemon, State.PARKED) == set(files))
    server.behave()

    wait_all_sent(daemon, server, files | drop(daemon, 1, "good"))
    assert not daemon.events("destination.paused", this_run=True)


def test_twenty_bad_files_alone_are_parked_when_one_passes(daemon: Daemon, server: FaultyS3) -> None:
    """Until then they are known and wait: so many cannot be told from a broken server."""
    server.script(Status(code=413), times=None, match="^PUT bad ")

    bad = drop(daemon, 20, "bad")
    daemon.wait_event("destination.paused")
    eventually(lambda: {f"PUT {path}" for path in bad} <= {it.line for it in server.requests})
    assert in_state(daemon, State.PARKED) == set()
    drop(daemon, 1, "good")

    eventually(lambda: folder_files(daemon.folder) == bad, message="the good one is sent")
    eventually(lambda: in_state(daemon, State.PARKED) == set(bad))
    assert len(daemon.events("destination.paused", this_run=True)) == 1


def test_a_restart_in_the_middle_changes_nothing(make: Make, faulty: FaultyS3) -> None:
    """Some were parked without proof before the others came, some wait, some were never counted: all come back."""
    daemon = make(
        watch={"rescan_s": 3600}, after={"action": "delete"}, retry={"initial_s": 0.1, "max_s": 0.3}
    ).start_scanned()
    faulty.script(Status(code=413), times=None)
    parked = drop(daemon, 3)
    eventually(lambda: in_state(daemon, State.PARKED) == set(parked))
    daemon.kill()
    daemon.start_scanned()
    files = parked | drop(daemon, 20)
    daemon.wait_event("destination.paused")
    daemon.kill()
    daemon.start().wait_event("destination.paused")
    # On a slow machine some of the others fail a second time before the pause.
    assert in_state(daemon, State.PARKED) >= set(parked)
    faulty.behave()

    wait_all_sent(daemon, faulty, files)
    assert daemon.stop() == 0


def test_old_successes_are_no_news(daemon: Daemon, server: FaultyS3) -> None:
    """A file refused for good is not sent again for each success that was sent before the refusal.

    Where answers take long and files keep coming, it was sent 342 times in 15 seconds.
    """
    server.script(Delay(0.3), times=None, match="PUT .*passes")
    server.script(Status(code=400, error_code="EntityTooLarge"), times=None, match="PUT .*refused")
    name = f"refused {next(COUNTER)}"
    daemon.drop(name)
    for _ in range(150):
        daemon.drop(f"passes {next(COUNTER)}")
        threading.Event().wait(0.02)  # they keep coming
    eventually(lambda: set(folder_files(daemon.folder)) == {name})

    assert 3 <= server.count(f"PUT .*{name}$") <= 8
    assert daemon.events("file.parked", this_run=True, path=name)
