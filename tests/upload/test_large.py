"""Large files through the pipeline: parts as work items, resumed, changed under our hands, given up."""

from __future__ import annotations

import errno
import functools
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from s3spool.config.schema import RetryConfig
from s3spool.errors import LedgerError, Scope, UploadError, unfit
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Failures, Multipart, State
from s3spool.queue.item import Item
from s3spool.queue.part_concurrency import NARROW
from s3spool.queue.parts import PartItem
from s3spool.upload import large
from s3spool.upload.large import PART_ATTEMPTS
from support.failing import fails
from support.house import Build, House
from support.lines import Lines
from support.objects import content_of
from support.rows import a_multipart, a_part
from support.waiting import eventually

PART = 256 * 1024
THRESHOLD = 300 * 1024


class Growing:
    """A bandwidth limiter that has let through more each time it is asked."""

    limited = False

    @property
    def granted(self) -> int:
        return round(time.monotonic() * 100 * 2**20)


@pytest.fixture
def build(build: Build) -> Build:
    return functools.partial(build, threshold=THRESHOLD, part_size=PART)


@pytest.fixture
def house(build: Build) -> House:
    return build().start()


def drop_big(house: House, parts: int) -> bytes:
    content = content_of(parts * PART)
    house.drop("big", content)
    return content


def arrives_whole(house: House, content: bytes) -> None:
    """`big` is sent, with these bytes, and nothing of it is left behind."""
    house.wait_sent("big")
    assert house.bucket.objects["big"] == content
    nothing_is_left(house)


def known_uploads(house: House) -> list[Multipart]:
    assert house.ledger.flush(10)
    with Reader(house.ledger.path) as reader:
        return reader.multiparts()


def nothing_is_left(house: House) -> None:
    """No upload at S3, none in the ledger, no descriptor."""
    assert house.bucket.parts.uploads == {}
    assert known_uploads(house) == []
    assert house.large.progress() == []
    eventually(lambda: house.open_files() == [])


def events(lines: Lines) -> list[str]:
    return [line["event"] for line in lines]


def a_refusal(**fields: Any) -> UploadError:
    return UploadError("upload", "big", "InternalError", "try again", **fields)


@pytest.mark.parametrize(
    ("size", "parts"),
    [(THRESHOLD, 0), (THRESHOLD + 1, 2), (3 * PART, 3), (3 * PART + 1, 4), (40 * PART, 40)],
)
def test_it_is_cut_above_the_threshold(house: House, lines: Lines, size: int, parts: int) -> None:
    """Up to the threshold one request; above it parts, put together to the same bytes."""
    content = content_of(size)
    house.drop("big", content)

    house.offer("big")
    house.wait_sent("big")

    assert house.bucket.objects == {"big": content}
    assert len(house.bucket.puts) == max(1, parts)
    assert house.receipt_of("big").identity == house.identity("big")
    assert events(lines) == (["multipart.started"] if parts else []) + ["file.uploaded"]
    nothing_is_left(house)


def test_nine_tenths_of_the_workers_send_parts_of_one_file(build: Build) -> None:
    """Where nothing else waits and more of them carry more, one file has them all but the share of small files."""
    house = build(workers=7, bandwidth=Growing())
    together = threading.Barrier(6, timeout=30)
    house.bucket.before_put = lambda _: together.wait()
    house.start()
    drop_big(house, 12)

    house.offer("big")

    house.wait_sent("big")


def test_a_small_file_finds_a_worker_at_once(build: Build) -> None:
    """Where more connections carry no more, parts leave workers free: nobody waits for one to end."""
    house = build(workers=6).start()
    gate = threading.Event()
    house.bucket.before_put = lambda path: path != "big" or gate.wait(30)
    drop_big(house, 12)
    house.offer("big")
    eventually(lambda: len(house.workers.jobs()) == NARROW)

    house.drop("small")
    house.offer("small")
    eventually(lambda: "small" in house.bucket.objects)

    assert house.bucket.puts == ["small"]
    gate.set()
    house.wait_sent("big")


def test_small_files_go_first(build: Build) -> None:
    """Parts leave a worker to small files."""
    house = build(workers=2).start()
    gate = threading.Semaphore(0)
    house.bucket.before_put = lambda path: path != "big" or (gate.acquire(timeout=30))
    drop_big(house, 20)
    house.offer("big")
    eventually(lambda: len(house.workers.jobs()) == 1)
    names = house.drop_many(5)
    house.offer(*names)

    eventually(lambda: set(names) <= set(house.bucket.objects))

    assert house.bucket.puts.count("big") == 0
    gate.release(100)
    house.wait_sent("big")


def test_many_large_files_wait_as_names(build: Build) -> None:
    """Only as many are open as may be under way, however many wait."""
    house = build(workers=3).start()
    gate = threading.Event()
    house.bucket.before_put = lambda _: gate.wait(30)
    names = [house.drop(f"{number:02d}", content_of(4 * PART)).name for number in range(20)]
    house.offer(*names)

    eventually(lambda: len(house.workers.jobs()) == 2)
    assert len(house.open_files()) <= 6
    gate.set()

    house.wait_sent(*names)
    nothing_is_left(house)


def begun(house: House, content: bytes, parts: list[int]) -> str:
    """As a run that was killed leaves it: an upload in the ledger, with these parts at S3."""
    house.drop("big", content)
    identity = house.identity("big")
    upload = house.bucket.parts.create("big", identity, house.ledger.destination, PART)
    house.ledger.record_multipart(upload)
    for number in parts:
        house.bucket.parts.uploads[upload.upload_id][number] = content[(number - 1) * PART : number * PART]
    return upload.upload_id


@pytest.mark.parametrize(("there", "missing"), [([1, 3], 2), ([1, 2, 3, 4], 0), ([], 4)])
def test_only_what_is_missing_is_sent(build: Build, lines: Lines, there: list[int], missing: int) -> None:
    """S3 says what it has of the upload that the ledger remembers."""
    house = build()
    content = content_of(3 * PART + 5)
    begun(house, content, there)
    house.start()
    assert known_uploads(house)

    house.offer("big")

    arrives_whole(house, content)
    assert len(house.bucket.puts) == missing
    assert house.bucket.parts.begun == 1
    assert events(lines)[0] == ("multipart.resumed" if there else "multipart.started")


@pytest.mark.parametrize("how", ["other content", "another destination", "forgotten by S3", "wrong bytes"])
def test_what_cannot_be_resumed_begins_anew(build: Build, how: str) -> None:
    """The old upload is aborted, not left behind, and nothing of it ends up in the object."""
    house = build()
    content = content_of(3 * PART)
    old = begun(house, content, [1, 2])
    if how == "other content":
        content = content_of(3 * PART + 7)
        house.drop("big", content)
    elif how == "another destination":
        house.ledger.destination += 1
    elif how == "forgotten by S3":
        del house.bucket.parts.uploads[old]
    else:
        house.bucket.parts.uploads[old][2] = b"x" * PART
    house.start()
    assert known_uploads(house)

    house.offer("big")

    arrives_whole(house, content)
    assert (old in house.bucket.parts.aborted) is (how != "wrong bytes")


@pytest.mark.parametrize("how", ["rewritten", "grown", "shrunk", "replaced", "removed"])
def test_a_file_that_changes_under_way(house: House, lines: Lines, how: str) -> None:
    """The upload is aborted; what has changed is sent again from the start, what is gone is said to be."""
    old, new = content_of(8 * PART), content_of(6 * PART, seed=1)
    file = house.drop("big", old)

    def change() -> None:
        if how == "rewritten":
            file.write_bytes(content_of(8 * PART, seed=1))
        elif how == "grown":
            with file.open("ab") as opened:
                opened.write(b"more")
        elif how == "shrunk":
            with file.open("r+b") as opened:
                opened.truncate(PART + 1)
        elif how == "replaced":
            (file.parent / ".new").write_bytes(new)
            (file.parent / ".new").replace(file)
        else:
            file.unlink()

    house.bucket.before_next_put(change)
    house.offer("big")

    if how == "removed":
        eventually(lambda: "file.vanished" in events(lines))
        house.quiet()
        assert house.bucket.objects == {}
    else:
        eventually(lambda: house.bucket.objects.get("big") == file.read_bytes())
        house.quiet()
        assert "file.changed" in events(lines)
    assert "multipart.aborted" in events(lines)
    nothing_is_left(house)


def test_a_part_that_fails_is_sent_again(house: House, lines: Lines) -> None:
    """Not the file: one line, and the others go on."""
    content = drop_big(house, 4)
    house.bucket.refusals["big"] = [a_refusal()]

    house.offer("big")

    arrives_whole(house, content)
    assert len(house.bucket.puts) == 5
    assert events(lines).count("file.failed") == 1


def test_a_refusal_of_a_torn_part_is_no_failure(build: Build, lines: Lines) -> None:
    """S3 refuses the checksum because the file changed under the part: sent anew, nothing is counted or logged."""
    house = build(workers=2).start()
    drop_big(house, 4)
    content = content_of(4 * PART, seed=1)
    house.bucket.refusals["big"] = [UploadError("upload", "big", "BadDigest", "not what was announced")]
    house.bucket.before_next_put(lambda: house.drop("big", content, mtime_ns=2 * 10**18))

    house.offer("big")

    arrives_whole(house, content)
    assert "file.changed" in events(lines)
    assert not lines.named("file.failed")
    assert not house.stats.failures


def test_a_part_whose_refusal_has_lost_its_cause_is_sent_again_uncounted(house: House, lines: Lines) -> None:
    """No line, no failure of the part; what is refused once more is one."""
    moved = UploadError("put", "big", "PermanentRedirect", "elsewhere", Scope.EVERYBODY, retry_immediately=True)
    content = drop_big(house, 2)
    house.bucket.refusals["big"] = [moved]

    house.offer("big")

    arrives_whole(house, content)
    assert len(house.bucket.puts) == 3
    assert not {"file.failed", "destination.paused"} & set(events(lines))


def test_a_part_that_keeps_failing_makes_the_file_wait(house: House) -> None:
    """The whole file backs off, and comes again for what is missing."""
    content = drop_big(house, 2)
    house.bucket.refusals["big"] = [a_refusal() for _ in range(2 * PART_ATTEMPTS)]

    house.offer("big")

    arrives_whole(house, content)
    assert house.stats.failed >= 1
    assert house.bucket.parts.begun == 1


def test_a_refused_large_file_is_parked_once_others_pass(build: Build) -> None:
    """What its first failure proves travels with the file: another file passes, and the second refusal is its own."""
    house = build(policy=RetryConfig(initial_s=0.2, max_s=0.2, max_attempts=0)).start()
    drop_big(house, 2)
    house.drop("small")
    house.bucket.refusals["big"] = [a_refusal(permanent=True) for _ in range(50)]

    house.offer("big")
    eventually(lambda: house.stats.failed == 1)
    house.offer("small")
    house.wait_sent("small")

    eventually(lambda: (known := house.known("big")) and known.retry and known.retry.state is State.PARKED)
    row = house.retry_of("big")
    assert (row.failures.own, row.provisional) == (1, False)


def test_without_a_descriptor_to_look_at_it_a_file_is_sent_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it has changed is not known then: no attempt is counted, as for a small file."""
    content = drop_big(house, 2)
    fails(monkeypatch, house.folder, "identity_of", OSError(errno.EMFILE, "Too many open files"))

    house.offer("big")

    arrives_whole(house, content)
    assert house.stats.failed == 0


def test_the_last_part_wakes_a_worker_for_the_completion(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that sent it may rest, or end: the completion must not wait for that."""
    wake, woken = house.inbox.wake, []

    def watched(count: int) -> None:
        (progress,) = house.large.progress() or [("", 0, 1)]
        woken.append(progress[1] == progress[2])
        wake(count)

    monkeypatch.setattr(house.inbox, "wake", watched)
    drop_big(house, 2)

    house.offer("big")
    house.wait_sent("big")

    assert True in woken


@pytest.mark.parametrize("act", ["create", "complete", "list"])
def test_an_act_that_fails_makes_the_file_wait(build: Build, act: str) -> None:
    """Later it goes on where it was."""
    house = build()
    content = content_of(3 * PART)
    if act == "list":
        begun(house, content, [1])
    else:
        house.drop("big", content)
    house.bucket.parts.refuse[act] = [a_refusal(), a_refusal()]
    house.start()
    known_uploads(house)

    house.offer("big")

    arrives_whole(house, content)
    assert len(house.bucket.puts) == (2 if act == "list" else 3)


def test_a_ledger_that_cannot_be_read_is_not_the_files_fault(
    build: Build, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, is not parked, whatever `max_attempts` says, and goes when the ledger can be read again."""
    house = build(policy=RetryConfig(initial_s=0.01, max_s=0.02, max_attempts=1))
    content = drop_big(house, 2)
    fails(monkeypatch, house.large._resumable, "resumed", LedgerError("unable to open database file"), times=2)
    house.start()

    house.offer("big")

    arrives_whole(house, content)
    assert [line["error_code"] for line in lines.named("file.failed")] == ["LedgerUnavailable"] * 2
    assert not any("bug" in line["hint"] for line in lines.named("file.failed"))


def test_an_upload_that_cannot_be_recorded_is_aborted(
    build: Build, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state disk that is full for long leaves no uploads behind that nobody knows of."""
    monkeypatch.setattr(large, "DURABLE_S", 0.05)
    house = build()
    content = drop_big(house, 2)
    commit = house.ledger._commit
    full = [True]

    def failing(group: list[Any]) -> None:
        if full and any(work.table == "multiparts" for work in group):
            raise sqlite3.OperationalError("database or disk is full")
        commit(group)

    house.ledger._commit = failing  # type: ignore[method-assign]
    house.start()

    house.offer("big")
    eventually(lambda: house.bucket.parts.aborted)
    full.clear()

    arrives_whole(house, content)
    assert lines.named("file.failed")[0]["error_code"] == "LedgerUnavailable"  # no part of it was tried


def test_an_upload_that_s3_forgot_meanwhile_begins_anew(house: House) -> None:
    """NoSuchUpload for a part: another upload, the same file."""
    content = drop_big(house, 4)

    house.bucket.before_next_put(house.bucket.parts.uploads.clear)

    house.offer("big")

    arrives_whole(house, content)
    assert house.bucket.parts.begun == 2


def test_a_file_above_five_tib_begins_no_upload(house: House) -> None:
    """S3 would refuse it after days."""
    house.bucket.parts.refuse["check"] = [unfit("big", "EntityTooLarge", "5 TiB", "split the file")]
    drop_big(house, 2)

    house.offer("big")

    eventually(lambda: (known := house.known("big")) and known.retry and known.retry.state is State.PARKED)
    assert house.bucket.parts.begun == 0


@pytest.mark.parametrize("act", ["part", "complete"])
def test_giving_up_leaves_no_orphan(house: House, lines: Lines, act: str) -> None:
    """Refused three times it is parked with its reason, and the upload is aborted."""
    drop_big(house, 4)
    if act == "part":
        house.bucket.refusals["big"] = [a_refusal(permanent=True)] * 12
    else:
        house.bucket.parts.refuse["complete"] = [a_refusal(permanent=True)] * 3

    house.offer("big")
    eventually(lambda: "file.parked" in events(lines))
    house.quiet()

    assert house.retry_of("big").state is State.PARKED
    assert house.bucket.parts.aborted == ["upload-1"]
    nothing_is_left(house)


def test_an_outage_in_the_middle_costs_no_attempt(build: Build, lines: Lines) -> None:
    """The parts wait with everything else, a part may be the probe, and nothing is sent twice that arrived."""
    house = build(policy=RetryConfig(initial_s=0.01, max_s=0.01, max_attempts=1))
    content = drop_big(house, 10)
    down = UploadError("put", "a", "Unreachable", "no route", Scope.EVERYBODY)

    def fail(_: str) -> None:
        if len(house.bucket.puts) >= 4:
            house.bucket.before_put = lambda _: None
            house.bucket.down = down

    house.bucket.before_put = fail
    house.start()
    house.offer("big")
    eventually(lambda: house.breaker.open)
    probed = len(house.bucket.puts)
    eventually(lambda: len(house.bucket.puts) > probed + 3)
    arrived = len(next(iter(house.bucket.parts.uploads.values())))
    refused = len(house.bucket.puts) - arrived
    house.bucket.down = None

    arrives_whole(house, content)
    assert len(house.bucket.puts) - refused <= 12  # a probe may have been refused at the last moment
    assert house.stats.failed == 0
    assert events(lines).count("destination.paused") == events(lines).count("destination.resumed") == 1


def test_a_part_in_hands_when_its_file_is_given_up(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker may not send it any more: it is the last that holds one, so it ends the file instead."""
    house = build()
    content = drop_big(house, 4)
    house.bucket.refusals["big"] = [UploadError("upload", "big", "NoSuchUpload", "no such upload")]
    down = UploadError("put", "other", "Unreachable", "no route", Scope.EVERYBODY)
    take = house.inbox.take

    def slow_to_begin(cool: Callable[[], None] | None = None) -> Item | PartItem | None:
        item = take(cool)
        if isinstance(item, PartItem) and item.number == 1:
            monkeypatch.undo()
            eventually(lambda: item.transfer.over and item.transfer.in_flight == 1)
            house.breaker.failed("other", Failures(), down, time.monotonic())
        return item

    monkeypatch.setattr(house.inbox, "take", slow_to_begin)
    house.start()
    house.offer("big")

    arrives_whole(house, content)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_over_a_part(house: House) -> None:
    """Replaced; the file comes again."""
    content = drop_big(house, 4)
    house.bucket.excepthooks.add("big")

    house.offer("big")
    eventually(lambda: house.workers.alive() < 4)
    assert house.workers.replace_dead() == 1

    arrives_whole(house, content)


@pytest.mark.parametrize(("last_part_at", "kept"), [(2e9, True), (1.2e9, False), (None, False)])
def test_the_sweep_leaves_what_went_on_lately(
    build: Build, monkeypatch: pytest.MonkeyPatch, last_part_at: float | None, kept: bool
) -> None:
    """A large file on a thin line may take longer than an upload may lie idle: S3 says when its last part came."""
    house = build().start()
    drop_big(house, 2)
    upload = a_multipart("big")._replace(identity=house.identity("big"), upload_id="long", started_at=1e9)
    house.bucket.parts.uploads["long"] = {}
    house.ledger.record_multipart(upload)
    assert house.ledger.flush(10)
    times = [] if last_part_at is None else [1.1e9, last_part_at]
    listed = {number: {"LastModified": datetime.fromtimestamp(at, UTC)} for number, at in enumerate(times, 1)}
    monkeypatch.setattr(house.bucket.parts, "listed", lambda _: listed)

    house.large.sweep(1.5e9)

    assert (known_uploads(house) == [upload]) is kept
    assert ("long" in house.bucket.parts.uploads) is kept


def test_the_sweep_aborts_what_is_ours_and_over(build: Build) -> None:
    """Old ones, and those of a content that is gone; one that can go on is left, and so is one being sent."""
    house = build().start()
    started_at = {"goes on": 2e9, "stale": 1e9, "gone": 2e9, "under way": 1e9}
    for path, started in started_at.items():
        file = house.drop(path, content_of(2 * PART))
        row = a_multipart(path, identity=house.identity(path), upload_id=path, started_at=started)
        if path == "gone":
            file.unlink()
        house.bucket.parts.uploads[path] = {}
        house.ledger.record_multipart(row)
        house.ledger.record_part(a_part(path))
    house.bucket.parts.uploads["somebody else's"] = {}
    assert house.inbox.claim("under way")
    assert house.ledger.flush(10)

    house.large.sweep(1.5e9)

    assert sorted(house.bucket.parts.uploads) == ["goes on", "somebody else's", "under way"]
    assert sorted(row.path for row in known_uploads(house)) == ["goes on", "under way"]
