"""A file's way through a worker: real files, leases, threads and ledger before a bucket in memory."""

from __future__ import annotations

import errno
import functools
import os
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from s3spool.config.schema import RetryConfig
from s3spool.errors import Fault, S3SpoolError, Scope, UploadError
from s3spool.failure.breaker import PROBES, STREAK
from s3spool.folder import folder as folder_module
from s3spool.folder.lease import Lease
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Failures, Identity, State
from s3spool.queue import inbox as inbox_module
from s3spool.queue.item import Item, Lane
from s3spool.queue.selection import RETRY_DIVISOR
from s3spool.queue.settle import BUSY_S, Ripe, SettleReason
from s3spool.s3.content import Stored
from s3spool.upload import small as upload_module
from s3spool.upload.small import SMALL_BYTES
from support.failing import fails, held
from support.house import Build, House
from support.lines import Lines
from support.memory_bucket import MemoryCarrier
from support.odd_files import OtherProcess, make_odd
from support.rows import a_receipt, a_retry
from support.waiting import eventually

LARGE = SMALL_BYTES + 1
MD5_OF_CONTENT = "md5:mgNkuembtIDdJeHwKEyFVQ=="  # of what `House.drop` writes


@pytest.fixture(params=["multiplexed", "blocking"])
def build(build: Build, request: pytest.FixtureRequest) -> Build:
    """Each test once with small files multiplexed, once with each in a thread, as under a bandwidth limit."""
    return functools.partial(build, blocking=request.param == "blocking")


@pytest.fixture
def house(build: Build) -> House:
    """All of it runs."""
    return build().start()


def wait(event: threading.Event) -> None:
    """Hold the caller up until the test lets it go on."""
    assert event.wait(60)


def denied(**fields: Any) -> UploadError:
    return UploadError("put", "a", "AccessDenied", "no", Scope.EVERYBODY, **fields)


def refused(**fields: Any) -> UploadError:
    return UploadError("put", "a", "BadDigest", "not what was announced", **fields)


def refuse_to_open(house: House, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = house.folder.open

    def refuse(path: str) -> tuple[int, os.stat_result]:
        if path == name:
            raise PermissionError(13, "Permission denied")
        return opened(path)

    monkeypatch.setattr(house.folder, "open", refuse)


def opened_before(house: House) -> None:
    """The circuit breaker, by an earlier file."""
    assert house.breaker.failed("earlier", Failures(), denied(), time.monotonic()).fault is Fault.DESTINATION


# What goes well


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, LARGE, 3 * 1024 * 1024])
def test_a_file_of_any_size_arrives_as_it_is(house: House, lines: Lines, size: int) -> None:
    """Empty, small in one read, large as a stream: the object has the file's bytes, the ledger a receipt."""
    content = random.Random(size).randbytes(size)
    house.drop("a", content)

    house.offer("a")
    house.wait_sent("a")

    assert house.bucket.objects == {"a": content}
    receipt = house.receipt_of("a")
    assert (receipt.identity, receipt.after) == (house.identity("a"), "keep")
    assert (house.stats.uploaded, house.stats.bytes_uploaded) == (1, size)
    assert [line["event"] for line in lines] == ["file.uploaded"]
    assert house.open_files() == []


def test_many_files_many_workers(build: Build) -> None:
    """Each file once, whatever worker it falls to; afterwards nothing is open and nothing runs."""
    house = build(workers=50, action="delete").start()
    contents = {f"{number:04d}": b"%d" % number for number in range(500)}
    for name, content in contents.items():
        house.drop(name, content)

    house.offer(*contents)
    house.wait_sent(*contents)

    assert sorted(house.bucket.puts) == list(contents)
    assert house.bucket.objects == contents
    eventually(lambda: not any(house.root.iterdir()))
    house.close()
    assert house.bucket.open_senders == 0
    assert house.open_files() == []


def test_the_receipt_is_durable_before_the_file_goes(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent, recorded, removed: in this order, or a crash between would lose what only the folder knew."""
    house = build(action="delete")
    order: list[str] = []
    house.bucket.before_put = lambda _: order.append(f"put, receipt {house.known('a') is not None}")
    remove = house.folder.unlink_if_same

    def observed(path: str, identity: Identity) -> bool:
        order.append(f"remove, receipt {house.known(path) is not None}")
        return remove(path, identity)

    monkeypatch.setattr(house.folder, "unlink_if_same", observed)
    file = house.drop("a")
    house.start()

    house.offer("a")
    eventually(lambda: not file.exists())

    assert order == ["put, receipt False", "remove, receipt True"]


def test_a_path_stays_in_flight_until_its_receipt_is_durable(build: Build) -> None:
    """A scan must not find a file in between, neither on its way nor known."""
    house = build()
    house.start(house.workers, house.after)
    house.drop("a")

    house.offer("a")
    eventually(lambda: house.bucket.objects)
    eventually(lambda: not house.workers.jobs())
    before = house.inbox.counts()
    house.start(house.ledger)

    house.quiet()
    assert before == (0, 1)


def test_an_answer_that_proves_nothing_alone_is_asked_about(house: House) -> None:
    """The worker asks S3 outside the gate, then the file counts as sent."""
    house.bucket.must_ask = True
    house.drop("a")
    house.drop("large", b"x" * LARGE)

    house.offer("a", "large")
    house.wait_sent("a", "large")

    assert house.stats.uploaded == 2


def test_a_file_of_a_slow_directory_is_sent(house: House, lines: Lines) -> None:
    """A worker opens it outside of the gate; one that has gone by then is forgotten."""
    house.components.slow.note_slow_file("slow/a", 2.0)
    house.drop("slow/a", b"late")

    house.offer("slow/a", "slow/gone")
    house.wait_sent("slow/a")

    assert house.bucket.objects == {"slow/a": b"late"}
    assert sorted((line["event"], line["path"]) for line in lines) == [
        ("file.uploaded", "slow/a"),
        ("file.vanished", "slow/gone"),
    ]


# What is known already


@pytest.mark.parametrize("size", [7, LARGE])
def test_a_touched_file_is_compared_not_sent(house: House, size: int) -> None:
    """After a chmod the checksum decides: same content, no request, a receipt of the new look."""
    house.drop("a", b"x" * size)
    house.offer("a")
    house.wait_sent("a")
    (house.root / "a").chmod(0o600)

    house.settle.add("a")
    eventually(lambda: (known := house.known("a")) and known.receipt and known.receipt.identity == house.identity("a"))
    house.quiet()

    assert house.bucket.puts == ["a"]
    assert house.stats.uploaded == 1


def test_a_touched_file_with_other_content_is_sent(house: House) -> None:
    """Who sets size and mtime back does not fool the checksum."""
    house.drop("a", b"one")
    house.offer("a")
    house.wait_sent("a")
    house.drop("a", b"two")

    house.settle.add("a")
    eventually(lambda: house.bucket.objects["a"] == b"two")
    house.quiet()

    assert house.bucket.puts == ["a", "a"]


@pytest.mark.parametrize("size", [7, LARGE])
def test_what_s3_has_already_is_recorded_not_sent(house: House, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Under a guard against overwriting S3 is asked first: the same content there counts as sent."""
    stored = Stored("in/a", '"etag"', "md5:x", "v7")
    monkeypatch.setattr(house.bucket, "asks_first", True)
    monkeypatch.setattr(house.bucket, "existing", lambda *_: stored)
    house.drop("a", b"x" * size)

    house.offer("a")
    eventually(lambda: house.known("a"))
    house.quiet()

    receipt = house.receipt_of("a")
    assert (receipt.identity, receipt.version_id) == (house.identity("a"), "v7")
    assert house.bucket.puts == []
    eventually(lambda: house.open_files() == [])


# What changes meanwhile


def test_a_file_that_changes_while_s3_is_asked_for_it_is_sent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 has the old content: that proves nothing of the new one."""
    file = house.drop("a", b"x" * LARGE)
    found = [Stored("in/a", '"etag"', "md5:x", "v7")]

    def existing(*_: Any) -> Stored | None:
        if not found:
            return None
        file.write_bytes(b"y" * LARGE)
        return found.pop()

    monkeypatch.setattr(house.bucket, "asks_first", True)
    monkeypatch.setattr(house.bucket, "existing", existing)

    house.offer("a")
    house.wait_sent("a")

    assert house.bucket.objects == {"a": b"y" * LARGE}
    assert house.receipt_of("a").identity == house.identity("a")


def test_a_large_file_that_changes_while_it_is_sent_is_sent_again(house: House, lines: Lines) -> None:
    """The torn attempt counts for nothing, and what is remembered is the last state."""
    file = house.drop("a", b"x" * LARGE)
    house.bucket.before_next_put(lambda: file.write_bytes(b"y" * LARGE))

    house.offer("a")
    eventually(lambda: house.bucket.puts == ["a", "a"])
    house.quiet()

    assert house.bucket.objects["a"] == b"y" * LARGE
    assert [line["event"] for line in lines] == ["file.changed", "file.uploaded"]
    assert house.receipt_of("a").identity == house.identity("a")
    assert house.stats.uploaded == 1


def test_a_refusal_of_a_torn_file_is_no_failure(house: House, lines: Lines) -> None:
    """S3 refuses the checksum because the file changed: sent again, not put into the retry list."""
    file = house.drop("a", b"x" * LARGE)
    house.bucket.refusals["a"] = [refused()]
    house.bucket.before_next_put(lambda: file.write_bytes(b"y" * LARGE))

    house.offer("a")
    house.wait_sent("a")

    assert [line["event"] for line in lines] == ["file.changed", "file.uploaded"]
    assert house.stats.failed == 0


def test_a_small_file_that_shrinks_under_the_reader(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no lease keeps writers out, what was read has to be what was seen."""
    monkeypatch.setattr(upload_module, "take_lease", lambda _: Lease.UNKNOWN)
    file = house.drop("a", b"0123456789")
    read = os.read
    lengths: list[int] = []

    def racing(fd: int, length: int) -> bytes:
        if length == 11:
            lengths.append(length)
            file.write_bytes(b"01234")
        return read(fd, length)

    monkeypatch.setattr(os, "read", racing)

    house.offer("a")
    house.wait_sent("a")

    assert lengths == [11]
    assert house.bucket.objects == {"a": b"01234"}


def test_a_change_during_a_small_upload_is_sent_again(house: House) -> None:
    """The watcher's hint comes while the old content is on its way: afterwards the new one follows."""
    file = house.drop("a", b"old")

    def change() -> None:
        file.write_bytes(b"new!")
        house.settle.add("a")
        eventually(lambda: not len(house.settle) and house.inbox._in_flight.get("a"))

    house.bucket.before_next_put(change)

    house.offer("a")
    eventually(lambda: house.bucket.objects.get("a") == b"new!")
    house.quiet()

    assert house.bucket.puts == ["a", "a"]


def test_a_file_that_vanished_is_counted_and_forgotten(house: House, lines: Lines) -> None:
    """Somebody removed it before it was taken: one line, and nothing is tried again."""
    house.record(a_retry("a", next_attempt=0.0))

    house.retry.wake()

    eventually(lambda: house.known("a") is None)
    house.quiet()
    assert house.stats.vanished == 1
    assert [(line["event"], line["path"]) for line in lines] == [("file.vanished", "a")]


@pytest.mark.parametrize("size", [4, LARGE, 3 * LARGE])
def test_an_error_of_close_says_nothing(build: Build, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """FUSE reports what it likes when a file is closed; its content has been read."""
    house = build(threshold=2 * LARGE, part_size=LARGE).start()
    close = os.close
    refused: list[int] = []

    def fails_once_closed(fd: int) -> None:
        close(fd)
        refused.append(fd)
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(folder_module, "os", SimpleNamespace(**(vars(os) | {"close": fails_once_closed})))
    house.drop("a", b"x" * size)

    house.offer("a")
    house.wait_sent("a")

    assert refused
    assert house.inbox.parts.in_flight == 0
    assert house.stats.workers_replaced == 0


def test_a_busy_file_for_which_nobody_has_room_is_found_by_a_scan(build: Build) -> None:
    """The queue is full, and half of settle are busy files: the scan is asked for at once."""
    house = build(size=10)
    house.start(house.ledger)
    house.inbox.offer([Item(f"full {number}", Lane.FOUND) for number in range(10)])
    for number in range(5):
        assert house.settle.add(f"busy {number}", SettleReason.BUSY)

    with house.ledger.reader() as reader:
        house.settle_thread._step([Ripe("busy", None, busy=True)], reader)

    assert house.rescans == ["full"]


def test_race_files_return_before_their_end_is_durable(build: Build) -> None:
    """Their directory is renamed away and back while they are tried again, on a slow disk: each is sent, and soon."""
    house = build(workers=80).start()
    names = [f"d/{number}" for number in range(300)]
    for name in names:
        house.drop(name)
    house.record(*[a_retry(name, identity=house.identity(name), next_attempt=2e9) for name in names])
    (house.root / "d").rename(house.root / "elsewhere")

    with held(house.ledger):
        house.inbox.offer([Item(name, Lane.RETRY, a_retry(name).failures) for name in names])
        eventually(lambda: house.stats.vanished >= 80 // RETRY_DIVISOR)
        (house.root / "elsewhere").rename(house.root / "d")
        for name in names:
            house.settle.add(name)
        eventually(lambda: not house.settle.pending())

    house.wait_sent(*names)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "symlinked parent"])
def test_what_is_no_regular_file_is_dropped(house: House, tmp_path: Path, lines: Lines, kind: str) -> None:
    """Never sent, never tried again, nothing to report about it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a").write_bytes(b"secret")
    path = "sub/a" if kind == "symlinked parent" else "a"
    if kind == "symlinked parent":
        (house.root / "sub").symlink_to(tmp_path / "secret")
    else:
        make_odd(house.root / "a", kind, tmp_path / "secret" / "a")

    house.offer(path)
    eventually(lambda: lines.named("file.skipped"))
    house.quiet()

    assert house.bucket.puts == []
    assert house.known(path) is None


# What is not complete


def test_a_file_with_a_writer_waits_for_its_close(house: House) -> None:
    """A file that is open for writing anywhere is not taken, however old it looks; its close wakes it."""
    with OtherProcess(house.drop("a", b"begun")) as writer:
        house.offer("a")
        eventually(lambda: house.settle.knows(["a"]))
        eventually(lambda: house.inbox.counts() == (0, 0))
        while_open = (list(house.bucket.puts), house.settle._reason_of["a"])
        writer.close()
        house.settle.add("a")  # as the watch does on close

        house.wait_sent("a")
    assert while_open == ([], SettleReason.BUSY)
    assert house.settle._delays_s[SettleReason.BUSY] == BUSY_S


def test_a_retry_that_finds_a_writer_starts_anew(house: House) -> None:
    """Its row in the retry list goes first, or it would be taken for one that waits for its turn."""
    with OtherProcess(house.drop("a")) as writer:
        house.record(a_retry("a", identity=house.identity("a"), next_attempt=0.0))

        house.retry.wake()
        eventually(lambda: house.settle.knows(["a"]))

        assert house.known("a") is None
        writer.close()
        house.settle.add("a")
        house.wait_sent("a")


def test_a_fresh_file_goes_back_to_settle(build: Build) -> None:
    """Changed less than the settle time ago: it waits that long, with the look it had."""
    house = build(settle_s=60.0).start()
    house.drop("a", mtime_ns=None)

    house.offer("a")
    eventually(lambda: house.settle.knows(["a"]))

    assert house.settle._queues[SettleReason.CHANGED]["a"][1] == house.identity("a")
    assert house.bucket.puts == []


def test_a_file_from_the_future_is_sent_once_it_looks_the_same_twice(build: Build) -> None:
    """A clock that is ahead must not keep a file for ever."""
    house = build(settle_s=0.05).start()
    house.drop("a", mtime_ns=4 * 10**18)

    house.offer("a")
    house.wait_sent("a")

    assert house.bucket.puts == ["a"]


def test_no_room_to_settle_asks_for_a_scan(build: Build) -> None:
    """A file that is not ready, and finds no room to wait in, is found again by a scan."""
    house = build(settle_s=60.0, size=1)
    house.settle.add("other")
    house.start()
    house.drop("a", mtime_ns=None)

    house.offer("a")

    eventually(lambda: house.rescans == ["full"])
    assert house.inbox.counts() == (0, 0)


# What fails


def test_a_refused_file_backs_off_and_is_sent_later(house: House, lines: Lines) -> None:
    """Each failure is a line and a row; the success ends both."""
    house.bucket.refusals["a"] = [refused(), refused()]
    house.drop("a")

    house.offer("a")
    house.wait_sent("a")

    assert house.bucket.puts == ["a"] * 3
    assert house.receipt_of("a")
    assert [(line["event"], line["attempt"]) for line in lines] == [
        ("file.failed", 1),
        ("file.failed", 2),
        ("file.uploaded", 3),
    ]
    assert (house.stats.failed, house.stats.uploaded) == (2, 1)


def test_what_cannot_succeed_is_parked(house: House, lines: Lines) -> None:
    """A conflict (412), a name too long: parked with its reason, and left alone until it changes."""
    conflict = UploadError("put", "a", "PreconditionFailed", "there", Scope.FILE, permanent=True, hint="rename it")
    house.bucket.refusals["a"] = [conflict]
    house.drop("a")

    house.offer("a")
    eventually(lambda: lines.named("file.parked"))
    house.quiet()
    house.settle.add("a")
    house.quiet()

    row = house.retry_of("a")
    assert (row.state, row.error_code, row.hint) == (State.PARKED, "PreconditionFailed", "rename it")
    assert row.identity == house.identity("a")
    assert house.bucket.puts == ["a"]
    assert len(lines.named("file.parked")) == 1
    house.drop("a", b"changed")
    house.settle.add("a")
    house.wait_sent("a")


def test_a_refusal_without_any_success_parks_until_another_file_passes(build: Build, lines: Lines) -> None:
    """Three attempts; then it waits for proof. The next success gives it one try more, which settles it."""
    house = build(policy=RetryConfig(initial_s=0.01, max_s=0.01, max_attempts=0)).start()
    house.bucket.refusals["bad"] = [refused(permanent=True) for _ in range(9)]
    house.bucket.refusals["unlucky"] = [refused(permanent=True) for _ in range(3)]
    house.offer(house.drop("bad").name, house.drop("unlucky").name)
    eventually(lambda: len(lines.named("file.parked")) == 2)
    house.quiet()
    assert sorted(house.bucket.puts) == ["bad"] * 3 + ["unlucky"] * 3
    row = house.retry_of("bad")
    assert (row.state, row.provisional, row.own_failures) == (State.PARKED, True, 0)

    house.offer(house.drop("good").name)
    house.wait_sent("good", "unlucky")
    eventually(lambda: len(lines.named("file.parked")) == 3)
    house.quiet()

    row = house.retry_of("bad")
    assert (row.state, row.provisional, row.own_failures) == (State.PARKED, False, 1)
    assert [line["fault"] for line in lines.named("file.parked")] == [Fault.UNKNOWN.value] * 2 + [Fault.OWN.value]
    assert house.bucket.puts.count("bad") == 4


@pytest.mark.parametrize("how", ["compared", "sent before"])
def test_what_proves_nothing_releases_no_parked_file(build: Build, lines: Lines, how: str) -> None:
    """Neither a file that was not sent, nor one that S3 was sent before the refusals, shows that S3 takes files now."""
    house = build(policy=RetryConfig(initial_s=0.01, max_s=0.01, max_attempts=0)).start()
    house.drop("other")
    go_on = threading.Event()
    if how == "compared":
        house.record(house.receipt_for("other", checksum=MD5_OF_CONTENT))
        (house.root / "other").chmod(0o600)
    else:
        house.bucket.before_put = lambda path: path != "other" or go_on.wait(60)
        house.offer("other")
        eventually(house.workers.jobs)
    house.bucket.refusals["bad"] = [refused(permanent=True) for _ in range(9)]
    house.offer(house.drop("bad").name)
    eventually(lambda: lines.named("file.parked"))

    go_on.set()
    if how == "compared":
        house.settle.add("other")
    identity = house.identity("other")
    eventually(lambda: (known := house.known("other")) and known.receipt and known.receipt.identity == identity)
    house.quiet()

    assert house.ledger.flush(10)
    row = house.retry_of("bad")
    assert (row.state, row.attempts, row.provisional) == (State.PARKED, 3, True)


def test_an_unreadable_file_that_was_just_written_is_busy(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rsync --inplace` lets others read a file when it has written it: no failure is logged meanwhile."""
    refuse_to_open(house, "secret", monkeypatch)
    house.drop("secret", mtime_ns=None)

    house.offer("secret")
    eventually(lambda: house.settle.knows(["secret"]))

    assert house.settle._reason_of["secret"] is SettleReason.BUSY
    assert not lines.named("file.failed")


def test_a_file_under_a_write_lease_is_busy(house: House, lines: Lines) -> None:
    """Another program, a Samba server say, may hold it: it is waited for like a writer, and nothing is logged."""
    with OtherProcess(house.drop("leased"), lease=True):
        house.offer("leased")
        eventually(lambda: house.settle.knows(["leased"]))

        assert house.settle._reason_of["leased"] is SettleReason.BUSY
        assert not lines.named("file.failed")

    house.offer("leased")
    eventually(lambda: "leased" in house.bucket.objects)  # and not until it has settled


def test_an_unreadable_file_waits_with_advice(house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """No right to read it: the reason and what to do about it, and the destination is not blamed."""
    refuse_to_open(house, "secret", monkeypatch)
    house.drop("secret")
    house.drop("a")

    house.offer("secret", "a")
    house.wait_sent("a")
    eventually(lambda: lines.named("file.failed"))

    line = lines.named("file.failed")[0]
    assert (line["path"], line["error_code"], line["operation"]) == ("secret", "PermissionError", "read")
    assert "read access" in line["hint"]
    assert house.stats.last_error == "read secret: PermissionError: Permission denied (" + line["hint"] + ")"


@pytest.mark.parametrize("size", [7, LARGE])
def test_a_bad_block_backs_off(house: House, lines: Lines, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read to its end is tried again later; no descriptor is left open."""
    fails(monkeypatch, house.bucket, "digest", OSError(5, "Input/output error"))
    house.drop("a", b"x" * size)

    house.offer("a")
    house.wait_sent("a")

    (line,) = lines.named("file.failed")
    assert (line["error_code"], line["error"]) == ("errno 5", "Input/output error")
    assert house.open_files() == []


def test_a_bug_met_by_one_file_is_that_files_trouble(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised while a file is judged: it backs off, the worker lives, a traceback is logged."""
    fails(monkeypatch, house.bucket, "verify", ZeroDivisionError())
    house.drop("a")

    house.offer("a")
    eventually(lambda: house.bucket.puts == ["a", "a"])
    house.quiet()

    assert house.stats.uploaded == 1
    assert lines.named("file.failed")[0]["exc_info"]
    assert house.workers.alive() == 4


def test_an_answer_that_trips_us_up_each_time_pauses(
    build: Build, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody has foreseen comes to each file: that is no file's fault, and one traceback a probe is enough."""
    house = build(workers=1)
    judge, probed = house.bucket.verify, threading.Event()

    def buggy(*_args: Any, **_options: Any) -> Any:
        if len(house.bucket.puts) > STREAK + 5:
            probed.set()
        raise ZeroDivisionError

    monkeypatch.setattr(house.bucket, "verify", buggy)
    names = house.drop_many(50)
    house.start()
    house.offer(*names)
    wait(probed)
    monkeypatch.setattr(house.bucket, "verify", judge)
    house.wait_sent(*names)

    (paused,) = lines.named("destination.paused")
    assert paused["error_code"] == "ZeroDivisionError"
    assert len(lines.named("destination.resumed")) == 1
    counted = {line["path"] for line in lines.named("file.failed") if line["level"] == "warning"}
    assert len(counted) == STREAK - 1


# When the destination fails


def test_a_destination_that_is_down_costs_no_file_anything(build: Build, lines: Lines) -> None:
    """Everything waits, nothing is counted or parked; one line when it pauses, one when it resumes."""
    house = build(workers=20, policy=RetryConfig(initial_s=0.01, max_s=0.01, max_attempts=1)).start()
    house.bucket.down = denied()
    names = house.drop_many(100)

    house.offer(*names)
    eventually(lambda: len(house.bucket.puts) > 40)  # some probes later
    house.bucket.down = None
    house.wait_sent(*names)

    assert [line["event"] for line in lines if not line["event"].startswith("file.")] == [
        "destination.paused",
        "destination.resumed",
    ]
    assert house.stats.failed == 0
    assert sorted(house.bucket.objects) == names
    with Reader(house.ledger.path) as reader:
        assert list(reader.retries()) == []


def test_only_a_round_of_probes_is_under_way(build: Build) -> None:
    """While it is open S3 hears of four files at a time, if they are answered before the next round."""
    house = build(workers=20, probes_s=(60.0, 60.0)).start()
    house.bucket.down = denied()
    names = house.drop_many(50)
    house.inbox.offer([Item(name, Lane.FOUND) for name in names])  # each one that arrives is a probe of its own
    eventually(lambda: house.breaker.open and not house.workers.jobs())
    before = len(house.bucket.puts)
    under_way: list[int] = []
    house.bucket.before_put = lambda _: under_way.append(len(house.workers.jobs()))

    for number in (1, 2, 3):
        house.breaker.probe_now()
        eventually(lambda: len(under_way) >= number * PROBES and not house.workers.jobs())  # noqa: B023 - called here
    house.bucket.down = None
    house.breaker.probe_now()

    house.wait_sent(*names)
    assert max(under_way[: 3 * PROBES]) <= PROBES
    probed = house.bucket.puts[before:][:PROBES]
    assert len(set(probed)) == PROBES


@pytest.mark.parametrize("how", ["touched", "vanished", "unreadable", "no file"])
def test_a_probe_that_needs_no_request_does_not_stop_the_probing(
    build: Build, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was to be the probe need not be sent: the next one is the probe then, not nobody."""
    house = build(workers=2)
    touched = house.drop("first")
    receipt = None
    if how == "touched":
        receipt = a_receipt("first", destination=house.ledger.destination, checksum=MD5_OF_CONTENT)
    elif how == "vanished":
        touched.unlink()
    elif how == "no file":
        touched.unlink()
        touched.mkdir()
    else:
        refuse_to_open(house, "first", monkeypatch)
    house.drop("second")
    opened_before(house)
    house.inbox.offer([Item("first", receipt=receipt), Item("second")])

    house.start()

    house.wait_sent("second")
    assert not house.breaker.open


def test_a_file_that_opens_the_breaker_alone_is_found_out(build: Build, lines: Lines) -> None:
    """S3 answers 403 for this one only: once others have passed, it backs off by itself."""
    house = build(workers=1, policy=RetryConfig(initial_s=60.0, max_s=60.0, max_attempts=0)).start()
    house.bucket.refusals["bad"] = [denied() for _ in range(1000)]
    names = [house.drop(name).name for name in ("bad", "good", "better", "best")]

    house.offer(*names)
    house.wait_sent("good", "better", "best")
    eventually(lambda: lines.named("file.failed"))
    house.quiet()

    assert not house.breaker.open
    (line,) = [line for line in lines.named("file.failed") if line["level"] == "warning"]
    assert (line["path"], line["fault"]) == ("bad", Fault.OWN.value)
    assert len(lines.named("destination.paused")) == 1


def test_a_line_at_the_attempts_1_2_4_and_8(build: Build, lines: Lines) -> None:
    """Twenty thousand files that fail for days must not fill the disk with the same sentence; all lines at debug.

    After so many failures of its own, where that is configured, a file is parked.
    """
    house = build(workers=1, policy=RetryConfig(initial_s=0.001, max_s=0.001, max_attempts=20)).start()
    broken = UploadError("read", "bad", "errno 5", "Input/output error", Scope.FILE)
    house.bucket.refusals["bad"] = [broken for _ in range(20)]
    house.drop("bad")

    house.offer("bad")
    eventually(lambda: lines.named("file.parked"))

    attempts: dict[str, list[int]] = {"warning": [], "debug": []}
    for line in lines.named("file.failed"):
        attempts[line["level"]].append(line["attempt"])
    assert attempts["warning"] == [1, 2, 4, 8, 16]
    assert sorted(attempts["warning"] + attempts["debug"]) == list(range(1, 20))


def test_a_streak_of_transient_errors_opens_the_breaker(build: Build, lines: Lines) -> None:
    """500 after 500 of different files without a success between them is an outage, not many bad files."""
    house = build(workers=1, policy=RetryConfig(initial_s=60.0, max_s=60.0, max_attempts=0))
    house.bucket.down = UploadError("put", "a", "InternalError", "we encountered an internal error")
    house.start()
    names = house.drop_many(2 * STREAK)

    house.offer(*names)
    eventually(lambda: lines.named("destination.paused"))
    house.bucket.down = None
    house.wait_sent(*names[STREAK - 1 :])

    assert house.stats.failed == STREAK - 1
    faults = [line["fault"] for line in lines.named("file.failed") if line["level"] == "warning"]
    assert faults == [Fault.UNKNOWN.value] * (STREAK - 1)
    assert not lines.named("file.parked")


def test_what_has_lost_its_cause_costs_no_attempt(build: Build, lines: Lines) -> None:
    """A checksum or a region that was corrected: all that were in flight go again, without a line or a count."""
    house = build(workers=8, policy=RetryConfig(initial_s=0.01, max_s=0.01, max_attempts=1))
    names = house.drop_many(20)
    house.bucket.refusals = {name: [denied(retry_immediately=True)] for name in names}
    house.start()

    house.offer(*names)
    house.wait_sent(*names)

    assert sorted(house.bucket.puts) == sorted(names * 2)
    assert {line["event"] for line in lines} == {"file.uploaded"}
    assert {line["attempt"] for line in lines} == {1}


def test_what_only_seemed_to_have_lost_its_cause_is_an_error(build: Build, lines: Lines) -> None:
    """A server that goes on refusing for what it was told: the destination is paused, and no request is wasted."""
    house = build(workers=1, policy=RetryConfig(initial_s=0.01, max_s=0.01, max_attempts=1))
    house.bucket.down = denied(retry_immediately=True)
    house.start()
    names = house.drop_many(3)

    house.offer(*names)
    eventually(lambda: lines.named("destination.paused"))
    eventually(lambda: len(house.bucket.puts) > 10)
    house.bucket.down = None
    house.wait_sent(*names)

    assert len(lines.named("destination.paused")) == len(lines.named("destination.resumed")) == 1
    assert house.stats.failed == 0


# Workers


def test_a_dead_worker_is_replaced_and_its_file_sent(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies over a file costs neither the file nor a place in the pool, nor a descriptor."""
    excepthooks: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", excepthooks.append)
    house.drop("a")
    house.drop("large", b"x" * LARGE)
    house.bucket.excepthooks = {"a", "large"}
    house.offer("a", "large")
    eventually(lambda: house.workers.alive() == 2)

    replaced = house.workers.replace_dead()

    assert replaced == 2
    house.wait_sent("a", "large")
    assert house.workers.alive() == 4
    assert house.workers.replace_dead() == 0
    assert house.stats.workers_replaced == 2
    assert {line["worker"] for line in lines.named("worker.replaced")} <= {f"upload-{n:03d}" for n in range(4)}
    assert house.open_files() == []
    house.close()
    assert house.bucket.open_senders == 0


def test_a_worker_that_dies_after_it_closed_its_file_closes_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the descriptor is another file's by then."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    fails(monkeypatch, house.breaker, "succeeded", RuntimeError("a worker dies"))
    house.drop("a", b"x" * LARGE)
    house.offer("a")
    eventually(lambda: house.workers.alive() == 3)
    others = [os.open(house.archive.parent, os.O_RDONLY) for _ in range(20)]

    try:
        assert house.workers.replace_dead() == 1
        house.wait_sent("a")
    finally:
        for other in others:
            os.close(other)


def test_a_leader_that_dies_costs_no_file(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files under way are sent again, by the other workers and by the one that replaces it."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    house = build(blocking=False)
    leader_followers = house.workers._leader_followers
    poll, broken = leader_followers._client.poll, [True]

    def breaks(pending: Any, over: Any, *, wait: bool) -> None:
        poll(pending, over, wait=wait and not broken)
        if broken:
            broken.pop()
            raise MemoryError

    monkeypatch.setattr(leader_followers._client, "poll", breaks)
    names = house.drop_many(8)
    house.start()
    house.offer(*names)
    eventually(lambda: house.workers.alive() == 3)

    assert house.workers.replace_dead() == 1

    house.wait_sent(*names)
    assert house.workers.alive() == 4
    assert not leader_followers.members()


def test_a_worker_that_dies_as_the_probe_is_followed_by_another_probe(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The breaker does not stay open because the worker that had the probe died."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    house = build(workers=2)
    opened_before(house)
    house.bucket.excepthooks = {"a"}
    house.drop("a")
    house.start()
    house.offer("a")
    eventually(lambda: house.workers.alive() == 1)

    house.workers.replace_dead()

    house.wait_sent("a")


def test_a_hundred_workers_wait_without_work_and_end_at_once(build: Build) -> None:
    """Idle workers sleep; closing the inbox ends them all."""
    house = build(workers=100).start()
    eventually(lambda: len(house.inbox._idle_workers.waiting) == 100)

    house.close()

    assert house.workers.alive() == 0
    assert house.bucket.open_senders == 0
    assert cast("MemoryCarrier", house.workers._leader_followers._client).closed


def test_one_file_after_the_other_takes_one_connection(house: House) -> None:
    """The worker that sent the last one sends the next: its connection is open, and no server has given it up yet."""
    for number in range(8):
        eventually(lambda: len(house.inbox._idle_workers.waiting) == 4)
        house.drop(f"{number}")
        house.offer(f"{number}")
        house.wait_sent(f"{number}")

    assert house.bucket.open_senders == 1


@pytest.mark.parametrize("size", [1, LARGE])
def test_connections_that_rest_are_closed(house: House, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A burst leaves no descriptors and buffers behind; what comes later is sent over new ones."""
    monkeypatch.setattr(inbox_module, "IDLE_S", 0.01)
    for name in ("a", "b"):
        house.drop(name, b"x" * size)
        house.offer(name)
        house.wait_sent(name)

        eventually(lambda: house.bucket.open_senders == 0)
    assert house.workers.closed_idle == 2  # the supervisor goes by it: memory to give back


def test_a_dead_worker_is_replaced_once_there_is_a_thread(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine at its limit of threads must not end the supervisor; it tries again."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    start = threading.Thread.start
    house.drop("a")
    house.bucket.excepthooks = {"a"}
    house.offer("a")
    eventually(lambda: house.workers.alive() == 3)

    def none_left(thread: threading.Thread) -> None:
        if thread.name.startswith("upload-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as at_the_limit:
        at_the_limit.setattr(threading.Thread, "start", none_left)
        replaced = house.workers.replace_dead()

    assert replaced == 0
    assert house.workers.replace_dead() == 1
    house.wait_sent("a")


def test_too_few_threads_for_the_workers(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to do, and those that run already can be ended."""
    house = build(workers=4)
    start = threading.Thread.start

    def three_left(thread: threading.Thread) -> None:
        if thread.name == "upload-003":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", three_left)
    with pytest.raises(S3SpoolError, match=r"upload\.workers = 4: no thread is left to give after 3;"):
        house.workers.start()

    house.inbox.close()
    assert house.workers.close(lambda: 10)


def test_stopping_lets_uploads_finish(house: House) -> None:
    """What is being sent when the daemon stops is sent to the end, and recorded."""
    go_on = threading.Event()
    house.bucket.before_put = lambda _: wait(go_on)
    house.drop("a")
    house.drop("b")
    house.offer("a")
    eventually(house.workers.jobs)
    house.inbox.close()

    too_early = house.workers.close(lambda: 0.0)
    go_on.set()

    assert too_early is False
    assert house.workers.close(lambda: 10.0)
    assert house.workers.replace_dead() == 0
    assert house.ledger.flush(10)
    assert house.known("a") is not None


def test_stopping_while_the_breaker_is_open(build: Build) -> None:
    """Workers that wait for the next probe are let go."""
    house = build(workers=10, probes_s=(3600.0, 3600.0))
    opened_before(house)
    house.offer(house.drop("b").name)
    house.start()
    eventually(lambda: len(house.inbox._idle_workers.waiting) == 10)

    house.close()

    assert house.workers.alive() == 0
    assert house.bucket.puts == []


def test_race_slowed_while_a_worker_waits_for_a_file(build: Build) -> None:
    """The server has asked for fewer requests meanwhile: the worker puts the file back and waits for its turn."""
    house = build(workers=1, probes_s=(3600.0, 3600.0)).start()
    eventually(lambda: house.inbox._idle_workers.waiting)
    house.breaker.limiter.refused(UploadError("put", "b", "SlowDown", "slower", Scope.LOAD, retry_after_s=3600.0))
    house.drop("a")

    house.offer("a")
    eventually(lambda: house.breaker.limiter._changed._waiters or house.bucket.puts)  # type: ignore[attr-defined]

    assert house.inbox.counts() == (1, 0)
    assert house.bucket.puts == []


def test_race_opened_while_a_worker_waits_for_a_file(build: Build) -> None:
    """A worker that fell asleep before the opening must not send what then comes: that is for a probe."""
    house = build(workers=3, probes_s=(3600.0, 3600.0)).start()
    eventually(lambda: len(house.inbox._idle_workers.waiting) == 3)
    opened_before(house)
    house.drop("a")

    house.inbox.offer([Item("a", Lane.FOUND)])
    eventually(lambda: len(house.inbox._idle_workers.waiting) == 3)

    assert house.bucket.puts == []
    assert house.inbox.counts() == (1, 0)
    house.breaker.probe_now()
    house.wait_sent("a")


def test_a_retry_keeps_its_history(house: House, lines: Lines) -> None:
    """What comes from the retry list counts on from there."""
    house.drop("a")
    house.bucket.refusals["a"] = [refused()]
    house.record(a_retry("a", identity=house.identity("a"), attempts=5, next_attempt=0.0))

    house.retry.wake()
    house.wait_sent("a")

    assert [(line["event"], line["attempt"]) for line in lines] == [("file.failed", 6), ("file.uploaded", 7)]


def test_a_hint_during_a_failure_is_not_lost(house: House, lines: Lines) -> None:
    """The file changed while it was being refused: once the failure is durable it is looked at again."""
    file = house.drop("a")
    house.bucket.refusals["a"] = [refused(permanent=True)]

    def change() -> None:
        file.write_bytes(b"better")
        house.settle.add("a")
        eventually(lambda: house.inbox._in_flight.get("a"))

    house.bucket.before_next_put(change)

    house.offer("a")

    house.wait_sent("a")
    assert house.bucket.objects == {"a": b"better"}


def test_race_a_file_comes_back_while_its_absence_is_noticed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone when it was opened, there again a moment later, with a hint in between: it is sent."""
    opened = house.folder.open
    absent = [True]

    def racing(path: str) -> tuple[int, os.stat_result]:
        if absent:
            absent.pop()
            house.drop(path)
            house.inbox.offer([Item(path)])
            raise FileNotFoundError(2, "No such file or directory")
        return opened(path)

    monkeypatch.setattr(house.folder, "open", racing)

    house.offer("a")

    house.wait_sent("a")


def test_a_file_that_can_neither_be_opened_nor_looked_at(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that went bad: the file waits in the retry list all the same."""
    fails(monkeypatch, house.folder, "open", OSError(5, "Input/output error"))
    fails(monkeypatch, house.folder, "identity_of", OSError(5, "Input/output error"))
    house.drop("a")

    house.offer("a")

    house.wait_sent("a")
    assert len(lines.named("file.failed")) == 1


def test_a_worker_goes_straight_on_after_a_vanished_file(build: Build, lines: Lines) -> None:
    """The next file in the queue is gone: the worker takes the one after it."""
    house = build(workers=1)
    queued = threading.Event()
    house.bucket.before_put = lambda _: wait(queued)
    house.start()
    house.drop("a")
    house.drop("c")
    house.offer("a")
    eventually(house.workers.jobs)

    house.offer("b", "c")
    queued.set()

    house.wait_sent("a", "c")
    assert house.stats.vanished == 1


def test_a_worker_that_cannot_have_a_connection_dies_and_is_replaced(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file waits, and is sent by the next."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    house = build(workers=1)
    fails(monkeypatch, house.bucket, "transport", MemoryError())
    house.start()
    house.drop("a")
    house.offer("a")
    eventually(lambda: house.workers.alive() == 0)

    assert house.workers.replace_dead() == 1

    house.wait_sent("a")
