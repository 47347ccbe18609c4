"""SIGKILL at every step and at any moment: what failed stays known, nothing is lost, nothing is removed too early."""

from __future__ import annotations

import functools
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from s3spool.ledger.queries import Known
from s3spool.ledger.rows import Retry, State
from support.daemon import Daemon, Make
from support.faults import Delay, Fault, HoldUntil, Status
from support.faulty import FaultyS3
from support.killing import program
from support.objects import content_of, folder_files
from support.waiting import eventually

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
CONTENT = content_of(5000)


@pytest.fixture
def make(make: Make) -> Make:
    return functools.partial(make, environment={"PYTHONPATH": str(TESTS)})


def known(daemon: Daemon, path: str) -> Known:
    with daemon.ledger() as reader:
        return reader.known([path]).get(path, Known(None, None))


def retry_of(daemon: Daemon, path: str) -> Retry:
    retry = known(daemon, path).retry
    assert retry is not None, f"{path} is not in the retry list"
    return retry


def finish(daemon: Daemon) -> None:
    """What was found before is through when this file is; then the daemon ends by itself."""
    daemon.drop("last", b"last")
    daemon.wait_event("file.uploaded", path="last")
    assert daemon.stop() == 0


# --- what failed


ASKED_S = 1  # what the server asks for between attempts, so that there is a schedule to keep
ASKING = {"Retry-After": str(ASKED_S)}


@pytest.mark.parametrize(("status", "error_code"), [(500, "InternalError"), (403, "AccessDenied")])
def test_failed_files_keep_their_count_and_their_schedule(
    status: int, error_code: str, make: Make, faulty: FaultyS3
) -> None:
    """After kill -9 a failed file goes on where it was: not at once, not from one, and until S3 works."""
    faulty.script(Status(code=status, error_code=error_code, headers=ASKING), times=None, match="^PUT bad")
    daemon = make(retry={"initial_s": 0.1, "max_s": ASKED_S}).start_ready()

    daemon.drop("bad", CONTENT)
    let_another_pass(daemon, error_code)
    eventually(lambda: known(daemon, "bad").retry, message="bad in the retry list")
    daemon.kill()

    before = retry_of(daemon, "bad")
    assert (before.state, before.attempts, before.error_code) == (State.WAITING, 1, error_code)
    assert before.error
    assert before.next_attempt >= before.last_error_at + ASKED_S

    daemon.start_ready()
    daemon.drop("another", b"passes")
    eventually(lambda: retry_of(daemon, "bad").attempts > before.attempts, message="another attempt")
    after = retry_of(daemon, "bad")
    assert after.attempts == before.attempts + 1
    assert after.first_error_at == before.first_error_at
    assert after.last_error_at >= before.next_attempt, "tried again before its time"
    daemon.kill()

    faulty.behave()
    daemon.start()
    sent = daemon.wait_event("file.uploaded", path="bad")
    finish(daemon)
    assert sent["attempt"] == after.attempts + 1
    assert faulty.contents()["bad"] == CONTENT
    with daemon.ledger() as reader:
        assert list(reader.retries()) == []


def let_another_pass(daemon: Daemon, error_code: str) -> None:
    """A 403 may concern all files; only when another one passes it is this file's own."""
    if error_code == "AccessDenied":
        daemon.wait_event("destination.paused")
        daemon.drop(f"witness {daemon.receipts()}")


def test_slow_down_costs_a_file_no_attempt(make: Make, faulty: FaultyS3) -> None:
    """It says nothing about the file: it stays in the inbox, before and after kill -9, and goes first when it may."""
    faulty.script(Status(code=503, error_code="SlowDown"), times=None, match="^PUT bad")
    daemon = make(retry={"initial_s": 0.1, "max_s": 0.2}).start()
    daemon.drop("bad", CONTENT)
    eventually(lambda: faulty.count("^PUT bad") > 2, message="several attempts")
    daemon.kill()
    assert known(daemon, "bad").retry is None

    sent = faulty.count("^PUT bad")
    daemon.start()
    eventually(lambda: faulty.count("^PUT bad") > sent, message="attempts after the restart")
    faulty.behave()
    assert daemon.wait_event("file.uploaded", path="bad")["attempt"] == 1
    finish(daemon)
    assert faulty.contents()["bad"] == CONTENT


def test_killed_while_it_tries_again_it_tries_again(make: Make, faulty: FaultyS3) -> None:
    """A retry that a worker had in its hands is in the list for the next start."""
    held = HoldUntil()
    faulty.script(Status(code=500, error_code="InternalError"), match="^PUT bad")
    faulty.script(held, match="^PUT bad")
    daemon = make().start_ready()

    daemon.drop("bad", CONTENT)
    eventually(lambda: faulty.count("^PUT bad") == 2, message="the second attempt")
    with daemon.ledger() as reader:
        eventually(lambda: reader.next_due() is None, message="the second attempt in the ledger")
    daemon.kill()
    held.release()
    daemon.start()
    sent = daemon.wait_event("file.uploaded", path="bad")
    finish(daemon)

    assert sent["attempt"] == 2
    assert faulty.contents()["bad"] == CONTENT


LONG = "/".join("d" * 200 for _ in range(6))


@pytest.mark.parametrize(
    ("path", "fault", "error_code"),
    [
        ("refused", Status(code=400, error_code="InvalidURI"), "InvalidURI"),
        ("large", Status(code=400, error_code="EntityTooLarge"), "EntityTooLarge"),
        ("taken", None, "PreconditionFailed"),
        (LONG, None, "KeyTooLongError"),
    ],
    ids=["refused", "too large", "taken", "name too long"],
)
def test_parked_files_stay_parked_until_they_change(
    path: str, fault: Fault | None, error_code: str, make: Make, faulty: FaultyS3
) -> None:
    """A file that can never pass is put aside with its reason; kill -9 and a restart send nothing for it.

    But for one more time where nothing proved S3's word, once S3 has taken another file.
    """
    if fault is not None:
        faulty.script(fault, times=None, match=f"^PUT {path}")
    if path == "taken":
        faulty.client().put_object(Bucket=faulty.bucket, Key=path, Body=b"somebody else's")
    daemon = make(destination={"overwrite": "never"}).start_ready()

    file = daemon.drop(path, CONTENT)
    daemon.wait_event("file.parked", path=path)
    eventually(lambda: known(daemon, path).retry, message="parked in the ledger")
    daemon.kill()
    parked = retry_of(daemon, path)
    requests = faulty.count(f"^PUT {path}")
    attempts = 1 if fault is None else 3
    assert (parked.state, parked.attempts, parked.error_code) == (State.PARKED, attempts, error_code)
    assert parked.error

    daemon.start_scanned()
    daemon.drop("other")
    daemon.wait_event("file.uploaded", path="other")
    if fault is not None:
        daemon.wait_event("file.parked", path=path, attempt=4)
        eventually(lambda: retry_of(daemon, path).state is State.PARKED)
        parked = retry_of(daemon, path)
    daemon.drop("third")
    daemon.wait_event("file.uploaded", path="third")
    assert retry_of(daemon, path) == parked
    assert faulty.count(f"^PUT {path}") - requests == (fault is not None)
    assert file.read_bytes() == CONTENT

    faulty.behave()
    faulty.objects.pop(path, None)
    if path == LONG:
        file.rename(daemon.folder / "short")
        finish(daemon)
        assert faulty.contents()["short"] == CONTENT
    else:
        file.write_bytes(b"changed")
        daemon.wait_event("file.uploaded", path=path)
        finish(daemon)
        assert faulty.contents()[path] == b"changed"
        assert known(daemon, path).retry is None


# --- the order in which a file is sent, recorded and removed


class Kill(NamedTuple):
    """A step (see killing.py), and what has to be true when the process dies there; None: either."""

    step: str
    stored: bool  # the object is in the bucket
    durable: bool | None  # the receipt is in the ledger
    removed: bool | None = False  # the file has left the folder (where that is wanted)


WAY = [
    Kill("before:send", stored=False, durable=False),
    Kill("after:send", stored=False, durable=False),
    Kill("before:answer", stored=True, durable=False),
    Kill("after:answer", stored=True, durable=False),
    Kill("before:record", stored=True, durable=False),
    Kill("after:record", stored=True, durable=None),
    Kill("before:commit", stored=True, durable=False),
    Kill("after:insert", stored=True, durable=False),
    Kill("after:commit", stored=True, durable=True),
    Kill("before:committed", stored=True, durable=True),
    Kill("after:committed", stored=True, durable=True, removed=None),
    Kill("before:finished", stored=True, durable=True),
    Kill("after:finished", stored=True, durable=True, removed=True),
]
SAME_STATE = {
    "after:answer", "before:record", "before:commit", "before:committed", "before:finished",
    "before:aside", "before:unlink", "after:compare+unlink", "before:rename", "after:compare+rename",
}  # fmt: skip
REMOVALS = {
    "keep": [],
    "delete": [  # first its name, then the file
        ("before:compare+unlink", False),
        ("before:aside", False),
        ("after:aside", True),
        ("before:unlink", True),
        ("after:unlink", True),
        ("after:compare+unlink", True),
    ],
    "archive": [
        ("before:compare+rename", False),
        ("before:rename", False),
        ("after:rename", True),
        ("after:compare+rename", True),
    ],
}


def kills() -> Iterator[ParameterSet]:
    """The way to the receipt is one for all actions, and of steps in one state one is enough: the rest is slow."""
    for action, removals in REMOVALS.items():
        for kill in WAY:
            usual = kill.step not in SAME_STATE if action == "delete" else kill.step == "after:commit"
            yield pytest.param(action, kill, id=f"{action}-{kill.step}", marks=() if usual else pytest.mark.slow)
        for step, removed in removals:
            kill = Kill(step, stored=True, durable=True, removed=removed)
            marks = pytest.mark.slow if step in SAME_STATE else ()
            yield pytest.param(action, kill, id=f"{action}-{step}", marks=marks)


@pytest.mark.parametrize(("action", "kill"), list(kills()))
def test_killed_at_any_step_it_ends_right(
    action: str, kill: Kill, make: Make, faulty: FaultyS3, tmp_path: Path
) -> None:
    """Confirmed, then recorded, then removed: each only after the one before, and a restart completes what is left."""
    archive = tmp_path / "archive"
    daemon = make(after={"action": action, "archive_directory": str(archive)})
    file = daemon.folder / "sub/file"
    ordinary, daemon.program = daemon.program, program(kill.step)
    daemon.start_ready()

    daemon.drop("sub/file", CONTENT)
    assert daemon.wait_exit() == -signal.SIGKILL

    receipt = known(daemon, "sub/file").receipt
    gone = not file.exists()
    assert ("sub/file" in faulty.objects) == kill.stored
    assert kill.durable in {None, receipt is not None}
    assert kill.removed in {None, gone} or action == "keep"
    assert not gone or (action != "keep" and receipt is not None)

    daemon.program = ordinary
    daemon.start()
    eventually(lambda: known(daemon, "sub/file").receipt, message="a receipt")
    eventually(lambda: [*file.parent.glob("*")] == ([file] if action == "keep" else []), message=action)
    finish(daemon)

    assert faulty.contents() == {"sub/file": CONTENT, "last": b"last"}
    if action == "archive":
        assert (archive / "sub/file").read_bytes() == CONTENT
    sends = 2 if kill.stored and receipt is None else 1
    assert faulty.count("^PUT sub/file") == sends
    kept = {"sub/file": CONTENT, "last": b"last"}
    assert folder_files(daemon.folder) == (kept if action == "keep" else {})
    assert folder_files(archive) == (kept if action == "archive" else {})


STARTING = [f"before:{name}" for name in ("lock", "migrate", "ledger", "watch", "control", "scan")] + ["after:scan"]


def test_killed_again_and_again_while_it_starts(make: Make, faulty: FaultyS3) -> None:
    """Half a start, however far it came, leaves nothing that keeps the next from working."""
    daemon = make(after={"action": "delete"})
    daemon.drop("waiting", CONTENT)
    ordinary = daemon.program

    for step in STARTING:
        daemon.program = program(step)
        daemon.start()
        assert daemon.wait_exit() == -signal.SIGKILL, step
        assert "waiting" in faulty.objects or (daemon.folder / "waiting").exists(), step
    daemon.program = ordinary
    daemon.start()
    eventually(lambda: not (daemon.folder / "waiting").exists(), message="removed")
    finish(daemon)

    assert faulty.contents() == {"waiting": CONTENT, "last": b"last"}
    assert faulty.count("^PUT waiting") <= 2  # once before the kill after the scan


# --- any moment


KILLS = 12
FILES_A_ROUND = 30
BEFORE_ITS_FIRST_WORD, AFTER_ITS_FIRST_WORD = 2, 5  # the kills that come while it starts


@pytest.mark.timeout(300)
def test_killed_at_random_moments_nothing_is_lost(
    make: Make, faulty: FaultyS3, record_property: Callable[[str, object], None]
) -> None:
    """360 files, 12 kills, delete mode: each file is in the bucket or in the folder, and is sent again only if
    the kill came before its receipt."""
    seed = random.SystemRandom().randrange(10**6)
    record_property("seed", seed)
    rng = random.Random(seed)
    faulty.script(Delay(0.01), times=None, match="^PUT")  # so that there is something in flight
    daemon = make(after={"action": "delete"}, upload={"workers": 10})
    dropped: dict[str, bytes] = {}
    may_be_sent: Counter[str] = Counter()

    for number in range(KILLS):
        names = [f"{number:02d}/{index:02d}" for index in range(FILES_A_ROUND)]
        contents = {name: content_of(rng.randrange(2000), rng.randrange(10**6)) for name in names}
        dropped |= contents
        may_be_sent.update(names)
        early, late = names[: FILES_A_ROUND // 2], names[FILES_A_ROUND // 2 :]

        for name in early:
            daemon.drop(name, contents[name])
        requests = len(faulty.requests)
        daemon.start()
        if number != BEFORE_ITS_FIRST_WORD:
            daemon.wait_event("daemon.starting")
        for name in late:
            daemon.drop(name, contents[name])
        if number not in {BEFORE_ITS_FIRST_WORD, AFTER_ITS_FIRST_WORD}:
            wait_for_requests(requests + rng.randrange(1, 2 * FILES_A_ROUND), daemon, faulty)
        daemon.kill()

        with daemon.ledger() as reader:
            recorded = {receipt.path for receipt in reader.receipts()}
        # Asked for in this run and not recorded: it has to be sent once more.
        may_be_sent.update({request.key for request in faulty.requests[requests:]} - recorded)
        assert_nothing_is_lost(dropped, recorded, daemon, faulty)

    daemon.start()
    eventually(lambda: drained(daemon), timeout_s=120, message="an empty folder")
    finish(daemon)
    assert faulty.contents() == dropped | {"last": b"last"}
    sent = Counter(request.key for request in faulty.requests)
    assert {key: count for key, count in sent.items() if count > may_be_sent[key]} == {"last": 1}


def assert_nothing_is_lost(dropped: dict[str, bytes], recorded: set[str], daemon: Daemon, faulty: FaultyS3) -> None:
    here, there = folder_files(daemon.folder), faulty.contents()
    lost = [path for path, content in dropped.items() if content not in (here.get(path), there.get(path))]
    assert not lost
    assert recorded <= {path for path, content in dropped.items() if there.get(path) == content}
    assert dropped.keys() - here.keys() <= recorded, "removed before its receipt was durable"


def wait_for_requests(count: int, daemon: Daemon, faulty: FaultyS3) -> None:
    """Or until there is nothing to ask for any more."""
    eventually(lambda: len(faulty.requests) >= count or drained(daemon))


def drained(daemon: Daemon) -> bool:
    return not any(path.is_file() for path in daemon.folder.rglob("*"))
