"""S3 says that it will never take a file: of one file that is believed, of all of them it is not."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from s3spool.errors import Scope, UploadError
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import State
from s3spool.pipeline.destination import STREAK, Destination
from s3spool.pipeline.item import Item
from s3spool.pipeline.retry import Policy
from s3spool.s3.error_table import BY_CODE, BY_STATUS
from support.daemon import Daemon
from support.faults import Status
from support.faulty import FaultyS3
from support.house import House
from support.lines import Lines, recorded
from support.memory_bucket import Answer
from support.objects import folder_files
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3spool.pipeline.upload import Job

WAIT_S = 30.0
FOR_GOOD = [
    *(Status(code=400, error_code=code) for code, rule in BY_CODE.items() if rule.permanent),
    *(Status(code=status) for status, rule in BY_STATUS.items() if rule.permanent),
]
COUNTER = itertools.count()


# --- the pipeline by hand, in any order, against what must be true at the end


class Sent(NamedTuple):
    """A request under way, and what S3 will say to it."""

    job: Job
    refused: bool


class Refusals(RuleBasedStateMachine):
    """Files that are good or bad, and a server that refuses everything for a while.

    A worker's steps are taken one by one, so that answers come in any order; S3 makes up its mind when it is asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.recording = recorded()
        self.recording.__enter__()
        self.house = self.opened()
        self.bad: set[str] = set()
        self.good: set[str] = set()
        self.sent: list[Sent] = []
        self.broken = self.mended = False
        self.told: list[tuple[str, bool]] = []  # each answer: path, refused
        self.tried: set[str] = set()  # since the last start

    def opened(self) -> House:
        retry = Policy(initial_s=0.001, max_s=0.001, max_attempts=0)
        never = Destination("memory", initial_s=3600.0, max_s=3600.0)
        house = House(Path(self.directory.name), policy=retry, destination=never, workers=4)
        house.start(house.ledger, house.after)
        return house

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.house.close()
            self.recording.__exit__(None, None, None)
            self.directory.cleanup()

    @rule(count=st.integers(1, 3))
    def drop_good(self, count: int) -> None:
        for _ in range(count):
            self.good.add(self.drop(f"good {len(self.good)}"))

    @rule(count=st.integers(1, 12))
    def drop_bad(self, count: int) -> None:
        for _ in range(count):
            self.bad.add(self.drop(f"bad {len(self.bad)}"))

    @precondition(lambda self: not self.broken and not self.mended)
    @rule()
    def fail_for_all(self) -> None:
        """With some under way, which will still pass."""
        self.take()
        self.take()
        self.broken = True

    @precondition(lambda self: self.broken and self.told and self.told[-1][1])
    @rule()
    def mend(self) -> None:
        self.broken, self.mended = False, True

    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        """Two are taken, and one of all under way is answered."""
        self.take()
        self.take()
        if self.sent:
            self.answer(data)

    @rule()
    def take(self) -> None:
        """One worker takes a file, if one may."""
        house, probe = self.house, False
        if house.destination.paused:
            if any(sent.job.probe for sent in self.sent):
                return
            house.destination.probe_now()
            probe = house.destination.admit()
        waiting = house.inbox.listing(100)[0]
        item = house.inbox.take_nowait()
        if probe and item is not None:
            untried = [path for path in waiting if path not in dict(self.told)]
            assert item.path not in self.tried or not untried, "a new file tells more than one that was refused"
        assert not isinstance(item, tuple) or isinstance(item, Item)
        job: Any = item and house.upload.begin(item, probe=probe)
        if job is None:
            if probe:
                house.destination.release_probe()
            return
        self.sent.append(Sent(job, self.broken or job.item.path in self.bad))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.answered(self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1))))

    @rule()
    def time_passes(self) -> None:
        """What waits for its retry is due."""
        assert self.house.ledger.flush(WAIT_S)
        with Reader(self.house.ledger.path) as reader:
            self.house.retry.tick(reader, time.time() + 1)

    @rule()
    def die_and_start_again(self) -> None:
        """What was in memory is gone, requests under way with it."""
        self.sent.clear()
        self.tried.clear()
        self.house.close()
        self.house = self.opened()
        house = self.house
        found = [(path, house.identity(path), None) for path in sorted(self.good | self.bad)]
        with Reader(house.ledger.path) as reader:
            house.inbox.offer(house.sift.sort(found, reader, hinted=False))

    def drop(self, path: str) -> str:
        self.house.drop(path)
        self.house.offer(path)
        return path

    def answered(self, sent: Sent) -> None:
        path = sent.job.item.path
        self.told.append((path, sent.refused))
        self.tried.add(path)
        error = UploadError("upload", path, "EntityTooLarge", "too large", permanent=True) if sent.refused else None
        assert self.house.upload.finish(sent.job, Answer(error, proven=True))
        assert self.house.ledger.flush(WAIT_S)
        eventually(lambda: self.house.inbox.counts()[1] == len(self.sent), message="it has been dealt with")

    def drain(self) -> None:
        """It works again, and now and then another file comes: all is decided, nothing waits any more."""
        self.broken = False
        for number in range(200):
            if number % 20 == 0:
                self.good.add(self.drop(f"last {len(self.good)}"))
            for _ in range(20):
                self.take()
                while self.sent:
                    self.answered(self.sent.pop(0))
            self.time_passes()
            with Reader(self.house.ledger.path) as reader:
                counts = reader.counts()
                if counts["uploaded"] + counts["parked"] == len(self.good | self.bad):
                    break
        with Reader(self.house.ledger.path) as reader:
            uploaded = {row.path for row in reader.receipts()}
            parked = {row.path for row in reader.retries(State.PARKED)}
            assert not list(reader.retries(State.WAITING))
        assert not self.house.destination.paused
        assert uploaded == self.good
        assert parked == self.bad


TestRefusals = Refusals.TestCase
TestRefusals.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# --- the same with threads, in front of a bucket in memory


@pytest.fixture
def lines() -> Iterator[Lines]:
    with recorded() as lines:
        yield lines


@pytest.fixture
def house(tmp_path: Path, lines: Lines) -> Iterator[House]:
    house = House(tmp_path, policy=Policy(initial_s=0.01, max_s=0.02, max_attempts=2))
    yield house
    house.close()


def states(house: House) -> dict[str, State]:
    with Reader(house.ledger.path) as reader:
        return {row.path: row.state for row in reader.retries()}


@pytest.mark.parametrize("permanent", [True, False])
def test_two_files_that_are_refused_alone_wait(house: House, permanent: bool) -> None:
    """Of one file it is believed, at once or after retry.max_attempts; a second one casts doubt on both."""
    refusal = UploadError("upload", "x", "EntityTooLarge", "too large", permanent=permanent)
    house.bucket.down = refusal
    house.start()
    house.drop("first")
    house.offer("first")
    eventually(lambda: states(house) == {"first": State.PARKED})
    if not permanent:
        return  # only what is refused for good is a reason for doubt

    house.drop("second")
    house.offer("second")
    eventually(lambda: states(house) == dict.fromkeys(("first", "second"), State.WAITING))
    house.bucket.down = None

    eventually(lambda: house.stats.uploaded == 2)
    house.quiet()
    assert states(house) == {}


def test_two_bad_files_that_pause_the_destination_do_it_once(house: House, lines: Lines) -> None:
    """They fail with a transient error, and nothing else is there; when others have passed they are found out."""
    storm = UploadError("upload", "x", "InternalError", "oops", scope=Scope.DESTINATION, sudden=False)
    house.bucket.refusals = {name: [storm] * 10_000 for name in ("bad 1", "bad 2")}
    house.destination.max_s = house.destination.initial_s = 0.01
    house.start()
    for name in ("bad 1", "bad 2"):
        house.drop(name)
        house.offer(name)
    eventually(lambda: house.destination.paused)
    probed = len(house.bucket.puts)
    eventually(lambda: len(house.bucket.puts) > probed + 5, message="both go on as probes")
    assert not lines.named("file.parked")

    held: list[str] = []
    house.bucket.before_put = held.append
    for n in range(5):
        house.drop(f"good {n}")
    house.offer(*(f"good {n}" for n in range(5)))
    eventually(lambda: house.stats.uploaded == 5)

    eventually(lambda: states(house) == dict.fromkeys(("bad 1", "bad 2"), State.PARKED))
    assert len(lines.named("destination.paused")) == len(lines.named("destination.resumed")) == 1
    first_good = next(n for n, path in enumerate(held) if path.startswith("good"))
    assert first_good <= 2, "the probe under way, and one that was taken meanwhile, come before it at most"


# --- the real daemon and a real server


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture(scope="module")
def running(server: FaultyS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with made(server, tmp_path_factory.mktemp("refusals")) as daemon:
        daemon.wait_event("scan.finished", WAIT_S)
        yield daemon
        assert daemon.stop() == 0


@pytest.fixture
def daemon(running: Daemon, server: FaultyS3) -> Iterator[Daemon]:
    """With everything before behind it: the last thing it knows of S3 is that it takes files."""
    running.drop(f"fine {next(COUNTER)}")
    eventually(lambda: folder_files(running.folder) == {}, timeout_s=WAIT_S)
    running.mark()
    yield running
    server.behave()
    running.cli("retry", "--all")
    eventually(lambda: folder_files(running.folder) == {}, timeout_s=WAIT_S)
    server.cut()  # its threads are the test's


def made(server: FaultyS3, home: Path) -> Daemon:
    return Daemon(
        home,
        bucket=server.bucket,
        environment=server.environment(),
        watch={"rescan_s": 3600, "settle_s": 0},
        after={"action": "delete"},
        upload={"workers": 20},
        retry={"initial_s": 0.1, "max_s": 0.3},
    )


def drop(daemon: Daemon, count: int, name: str = "file") -> dict[str, bytes]:
    files = {f"{name} {next(COUNTER)}": b"content" for _ in range(count)}
    for path, content in files.items():
        daemon.drop(path, content)
    return files


def in_state(daemon: Daemon, state: State) -> set[str]:
    with Reader(daemon.state_directory / "ledger.sqlite3") as reader:
        return {row.path for row in reader.retries(state)}


def wait_all_sent(daemon: Daemon, server: FaultyS3, files: dict[str, bytes]) -> None:
    """Without a person's help."""
    eventually(lambda: not folder_files(daemon.folder).keys() & files.keys(), timeout_s=WAIT_S)
    assert {path: server.contents().get(path) for path in files} == files
    eventually(lambda: not in_state(daemon, State.PARKED) & files.keys(), timeout_s=WAIT_S)


def name_of(fault: Status) -> str:
    return fault.error_code or str(fault.code)


@pytest.mark.integration
@pytest.mark.parametrize("fault", FOR_GOOD, ids=name_of)
def test_a_server_that_refuses_all_parks_none(fault: Status, daemon: Daemon, server: FaultyS3) -> None:
    """It is paused, and says why; when the server is mended all files are sent, and nobody has to release any."""
    server.script(fault, times=None)

    files = drop(daemon, 30)
    paused = daemon.wait_event("destination.paused", WAIT_S)
    probed = len(server.requests)
    eventually(lambda: len(server.requests) > probed + 3, timeout_s=WAIT_S, message="other files as probes")
    assert name_of(fault) in paused["error_code"]
    assert "look at the server" in paused["hint"]
    assert in_state(daemon, State.PARKED) == set()
    assert folder_files(daemon.folder) == files
    assert len({request.line for request in server.requests[probed:]}) > 1
    server.behave()

    wait_all_sent(daemon, server, files)
    assert len(daemon.events("destination.paused", this_run=True)) == 1
    assert len(daemon.events("destination.resumed", this_run=True)) == 1


@pytest.mark.integration
@pytest.mark.parametrize("fault", FOR_GOOD, ids=name_of)
def test_a_file_alone_is_parked_at_once(fault: Status, daemon: Daemon, server: FaultyS3) -> None:
    """There is nothing that could show that the server is to blame, and a person wants to know."""
    server.script(fault, times=None)

    (path,) = files = drop(daemon, 1)

    parked = daemon.wait_event("file.parked", WAIT_S, path=path)
    assert parked["attempt"] == 1
    assert parked["error_code"] in {name_of(fault), f"HTTP{name_of(fault)}"}
    assert parked["hint"] == (BY_CODE.get(fault.error_code) or BY_STATUS[fault.code]).hint
    eventually(lambda: in_state(daemon, State.PARKED) == set(files), timeout_s=WAIT_S)
    assert not daemon.events("destination.paused", this_run=True)


@pytest.mark.integration
def test_a_file_parked_alone_is_tried_once_more_when_another_passes(daemon: Daemon, server: FaultyS3) -> None:
    """Was it the server? Then it is sent; if it is refused again, S3 has shown that it takes others: for good."""
    server.script(Status(code=413), times=1)
    server.script(Status(code=413), times=None, match="^PUT bad ")
    files = drop(daemon, 1, "good")
    daemon.wait_event("file.parked", WAIT_S, path=next(iter(files)))
    files |= drop(daemon, 1, "good")
    wait_all_sent(daemon, server, files)

    (bad,) = drop(daemon, 1, "bad")
    daemon.wait_event("file.parked", WAIT_S, path=bad, attempt=1)
    for _ in range(3):
        wait_all_sent(daemon, server, drop(daemon, 1, "good"))
        daemon.wait_event("file.parked", WAIT_S, path=bad, attempt=2)

    assert server.count(f"^PUT {bad}$") == 2


@pytest.mark.integration
@pytest.mark.parametrize("count", [2, STREAK - 1])
def test_a_few_files_are_enough_for_doubt(count: int, daemon: Daemon, server: FaultyS3) -> None:
    """Too few to pause the destination: they wait, are tried again and again, and pass when the server is mended."""
    server.script(Status(code=413), times=None)

    files = drop(daemon, count)
    for path in files:
        line = daemon.wait_event("file.failed", WAIT_S, path=path)
        daemon.wait_event("file.failed", WAIT_S, path=path, attempt=line["attempt"] + 3)
    assert in_state(daemon, State.PARKED) == set()
    server.behave()

    wait_all_sent(daemon, server, files)
    assert not daemon.events("destination.paused", this_run=True)


@pytest.mark.integration
def test_bad_files_among_good_ones_are_parked(daemon: Daemon, server: FaultyS3) -> None:
    """Once others have passed it is known whose fault it is, and nobody else is held up."""
    server.script(Status(code=413), times=None, match="^PUT bad ")

    bad = drop(daemon, 3, "bad")
    good = drop(daemon, 30, "good")

    eventually(lambda: folder_files(daemon.folder) == bad, timeout_s=WAIT_S)
    for path in bad:
        daemon.wait_event("file.parked", WAIT_S, path=path)
    eventually(lambda: in_state(daemon, State.PARKED) == set(bad), timeout_s=WAIT_S)
    assert {path: server.contents().get(path) for path in good} == good
    assert not daemon.events("destination.paused", this_run=True)


@pytest.mark.integration
def test_twenty_bad_files_alone_are_parked_when_one_passes(daemon: Daemon, server: FaultyS3) -> None:
    """Until then they are known and wait: so many cannot be told from a broken server."""
    server.script(Status(code=413), times=None, match="^PUT bad ")

    bad = drop(daemon, 20, "bad")
    daemon.wait_event("destination.paused", WAIT_S)
    eventually(lambda: {f"PUT {path}" for path in bad} <= {it.line for it in server.requests}, timeout_s=WAIT_S)
    assert in_state(daemon, State.PARKED) == set()
    drop(daemon, 1, "good")

    eventually(lambda: folder_files(daemon.folder) == bad, timeout_s=WAIT_S, message="the good one is sent")
    eventually(lambda: in_state(daemon, State.PARKED) == set(bad), timeout_s=WAIT_S)
    assert len(daemon.events("destination.paused", this_run=True)) == 1


@pytest.mark.integration
def test_a_restart_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    """One was parked alone before the others came, some wait in the ledger, some were never counted: all come back."""
    with FaultyS3() as server, made(server, tmp_path) as daemon:
        daemon.wait_event("scan.finished", WAIT_S)
        server.script(Status(code=413), times=None)
        files = drop(daemon, 1, "alone")
        daemon.wait_event("file.parked", WAIT_S)
        eventually(lambda: in_state(daemon, State.PARKED) == set(files), timeout_s=WAIT_S)
        daemon.kill()
        daemon.start()
        daemon.wait_event("scan.finished", WAIT_S)
        files |= drop(daemon, 3)
        eventually(lambda: in_state(daemon, State.WAITING) == set(files), timeout_s=WAIT_S)
        files |= drop(daemon, 20)
        daemon.wait_event("destination.paused", WAIT_S)
        daemon.kill()
        daemon.start()
        daemon.wait_event("destination.paused", WAIT_S)
        assert in_state(daemon, State.PARKED) == set()
        server.behave()

        wait_all_sent(daemon, server, files)
        assert daemon.stop() == 0


@pytest.mark.integration
def test_two_files_that_always_fail_pause_once(daemon: Daemon, server: FaultyS3) -> None:
    """A 500 for exactly these two: with nobody else there it looks like an outage, but it holds nobody up."""
    server.script(Status(code=500, error_code="InternalError"), times=None, match="^PUT bad ")

    bad = drop(daemon, 2, "bad")
    daemon.wait_event("destination.paused", WAIT_S)
    good = drop(daemon, 20, "good")

    wait_all_sent(daemon, server, good)
    for path in bad:
        counted = daemon.wait_event("file.failed", WAIT_S, path=path)["attempt"]
        daemon.wait_event("file.failed", WAIT_S, path=path, attempt=counted + 2 * STREAK)
    assert len(daemon.events("destination.paused", this_run=True)) == 1
    assert len(daemon.events("destination.resumed", this_run=True)) == 1
    assert folder_files(daemon.folder) == bad
