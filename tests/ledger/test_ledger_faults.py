"""The ledger is deleted, broken, on a full or a lying disk, under the running daemon: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from s3spool.errors import LedgerDamagedError, LedgerError
from s3spool.ledger import store
from s3spool.ledger.health import Guard
from s3spool.ledger.reader import Reader
from s3spool.ledger.store import Ledger
from support.daemon import Daemon
from support.disks import fill, mounted
from support.faults import HoldUntil, Status
from support.faulty import FaultyS3
from support.inside import inside, run_until_ready
from support.lines import Lines, recorded
from support.objects import content_of, folder_files
from support.preload import lying
from support.rows import a_receipt, a_retry
from support.waiting import eventually

pytestmark = pytest.mark.integration

WAIT_S = 60.0
Break = Callable[[Path], None]


@pytest.fixture
def make(tmp_path: Path, faulty: FaultyS3) -> Iterator[Callable[..., Daemon]]:
    """Daemons with as few workers as will do; what still runs at the end is killed."""
    made: list[Daemon] = []

    def daemon(environment: dict[str, str] | None = None, **sections: Any) -> Daemon:
        sections.setdefault("upload", {"workers": 8})
        made.append(
            Daemon(tmp_path, bucket=faulty.bucket, environment=faulty.environment() | (environment or {}), **sections)
        )
        return made[-1]

    yield daemon
    for one in made:
        if one.alive:
            one.kill()


@pytest.fixture
def lines() -> Iterator[Lines]:
    with recorded() as recording:
        yield recording


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of the test's own looks after its file more often."""
    monkeypatch.setattr(store, "LOOK_S", 0.05)


def path_of(daemon: Daemon) -> Path:
    return daemon.state_directory / "ledger.sqlite3"


def receipts(path: Path) -> set[str]:
    """Empty while there is no ledger."""
    with contextlib.suppress(LedgerError), Reader(path) as reader:
        return {receipt.path for receipt in reader.receipts()}
    return set()


def broken(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.broken-*"))


# --- ways to break it


def delete(path: Path) -> None:
    path.unlink()


def delete_all(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def delete_the_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def replace_with_garbage(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(content_of(20_000))
    other.replace(path)


def replace_with_another_database(path: Path) -> None:
    other = path.with_name("other")
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE holidays (day TEXT)")
    other.replace(path)


def move_and_link(path: Path) -> None:
    """As people do who want it on another disk."""
    elsewhere = path.parent.with_name("elsewhere")
    elsewhere.mkdir()
    path.symlink_to(path.rename(elsewhere / path.name))


def replace_with_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def replace_with_a_fifo(path: Path) -> None:
    other = path.with_name("other")
    os.mkfifo(other)
    other.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(content_of(path.stat().st_size))


def overwrite_with_another_database(path: Path) -> None:
    other = path.with_name("other")
    replace_with_another_database(other)
    path.write_bytes(other.read_bytes())
    other.unlink()


UNTOUCHED = [
    delete,
    delete_all,
    delete_the_log,
    replace_with_garbage,
    replace_with_another_database,
    move_and_link,
    replace_with_a_circle,
    replace_with_a_fifo,
]
TOUCHED = [truncate, cut_in_half, overwrite, overwrite_with_another_database]


# With the daemon a few of them; the ledger's thread meets all.
QUICK = (delete, replace_with_garbage, cut_in_half)
EACH = [
    pytest.param(it, id=it.__name__, marks=() if it in QUICK else pytest.mark.slow) for it in (*UNTOUCHED, *TOUCHED)
]


@pytest.mark.parametrize("break_it", EACH)
def test_the_daemon_ends_and_the_next_start_makes_a_new_ledger(
    break_it: Break, make: Callable[..., Daemon], faulty: FaultyS3
) -> None:
    """One line says what is wrong, the broken file is kept, and files without a durable receipt are sent again."""
    holding = HoldUntil()
    faulty.script(holding, match="^PUT flight")
    faulty.script(Status(code=413, error_code="EntityTooLarge"), times=4, match="^PUT big")
    daemon = make().start()
    daemon.wait_ready(WAIT_S)
    daemon.drop("big", b"big")
    daemon.wait_event("file.parked", WAIT_S, path="big")
    daemon.drop("before", b"before")
    daemon.wait_event("file.uploaded", WAIT_S, path="before")
    daemon.wait_event("file.parked", WAIT_S, path="big", attempt=4)
    daemon.drop("flight", b"flight")
    eventually(lambda: faulty.count("^PUT flight"), timeout_s=WAIT_S)
    eventually(lambda: parked(path_of(daemon)) == {"big"}, timeout_s=WAIT_S)
    checkpointed(path_of(daemon))

    break_it(path_of(daemon))
    daemon.drop("after", b"after")

    assert daemon.wait_exit(WAIT_S) == 1
    (failed,) = daemon.events("ledger.failed")
    assert failed["path"] == str(path_of(daemon))
    assert ".broken-" in failed["hint"]
    assert not daemon.events("thread.died")
    assert bool(broken(daemon.state_directory)) is (break_it is not delete_all)
    assert not path_of(daemon).exists()
    holding.release()

    daemon.start()
    expected = {"before", "flight", "after", "big"}
    eventually(lambda: receipts(path_of(daemon)) == expected, timeout_s=WAIT_S)
    assert daemon.stop() == 0
    sent = {name: faulty.count(f"^PUT {name}$") for name in expected}
    assert (sent["before"], sent["flight"], sent["big"]) == (2, 2, 5)

    daemon.start()
    daemon.wait_event("scan.finished", WAIT_S)
    assert daemon.stop() == 0
    assert {name: faulty.count(f"^PUT {name}$") for name in sent} == sent


def checkpointed(path: Path) -> None:
    """All that is known stands in the main file from now on."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def parked(path: Path) -> set[str]:
    with contextlib.suppress(LedgerError), Reader(path) as reader:
        return {retry.path for retry in reader.retries()}
    return set()


def test_an_idle_daemon_notices_too(make: Callable[..., Daemon], faulty: FaultyS3) -> None:
    """Nothing is committed, and still the daemon ends within seconds; after a restart all works again."""
    daemon = make(after={"action": "delete"}).start()
    daemon.wait_event("scan.finished", WAIT_S)

    delete_all(path_of(daemon))

    assert daemon.wait_exit(WAIT_S) == 1
    daemon.start()
    daemon.drop("a", b"a")
    eventually(lambda: receipts(path_of(daemon)) == {"a"}, timeout_s=WAIT_S)
    eventually(lambda: folder_files(daemon.folder) == {}, timeout_s=WAIT_S)
    assert daemon.cli("status").returncode == 0


def test_a_ledger_that_cannot_be_read_when_it_is_cleaned(
    tmp_path: Path, lines: Lines, request: pytest.FixtureRequest
) -> None:
    """That is no fault of s3spool's, nor the end of the cleaning: it is said once, and tried again soon."""
    daemon = inside(tmp_path, request)
    due: list[bool] = []

    def out_of_reach(older_than: float) -> None:
        raise LedgerError("unable to open database file")

    def ready() -> None:
        daemon.components.large.sweep = out_of_reach  # type: ignore[method-assign]
        for _ in range(2):
            daemon._cleaning._last = 1.0
            daemon._cleaning.clean()
            due.append(not daemon._cleaning._last)

    assert run_until_ready(daemon, ready) == 0

    assert due == [True, True]
    (line,) = lines.named("ledger.failed")
    assert "is sound" in line["hint"]


# --- the writer by itself


@pytest.fixture
def ledger(tmp_path: Path, quick: None, lines: Lines) -> Iterator[Ledger]:
    (tmp_path / "state").mkdir()
    one = Ledger(tmp_path / "state" / "ledger.sqlite3", destination="here")
    one.start()
    yield one
    one.close(10)
    assert not one.alive()


@pytest.mark.parametrize("break_it", [*UNTOUCHED, *TOUCHED], ids=lambda act: act.__name__)
def test_each_damage_ends_the_ledger(break_it: Break, ledger: Ledger, lines: Lines) -> None:
    """One line says what is wrong, and the broken file is kept."""
    ledger.record_receipt(a_receipt("before"))
    assert ledger.flush(10)
    checkpointed(ledger.path)

    break_it(ledger.path)
    ledger.record_receipt(a_receipt("after"))

    eventually(lambda: not ledger.alive())
    (failed,) = lines.named("ledger.failed")
    assert failed["path"] == str(ledger.path)
    assert ".broken-" in failed["hint"]
    assert bool(broken(ledger.path.parent)) is (break_it is not delete_all)
    assert not ledger.path.exists()
    assert ledger.damaged


def test_what_others_write_into_the_ledger_is_noticed(ledger: Ledger) -> None:
    """In place, by its time or its size: then it is checked; damage is told from a sound change."""
    with contextlib.closing(sqlite3.connect(ledger.path)) as other:  # the last connection would remove the log
        other.execute("SELECT * FROM totals").fetchall()
        ledger.close(10)
        checkpointed(ledger.path)
        guard = Guard(ledger.path)
        assert not guard.before()

        os.utime(ledger.path, ns=(1, 1))
        assert guard.before()
        assert not guard.before()

        with ledger.path.open("r+b") as file:
            file.write(content_of(ledger.path.stat().st_size))
        with pytest.raises(LedgerDamagedError):
            guard.before()


def test_a_copy_that_is_put_back_in_place_is_what_counts(ledger: Ledger, lines: Lines) -> None:
    """What the ledger still had in memory of the newer content is forgotten, and damages nothing."""
    ledger.record_receipt(a_receipt("a"))
    assert ledger.flush(10)
    checkpointed(ledger.path)
    copy = ledger.path.read_bytes()
    ledger.record_receipt(a_receipt("b"))
    assert ledger.flush(10)
    checkpointed(ledger.path)
    ledger.drop_receipts(["none"])  # reads the pages
    assert ledger.flush(10)

    ledger.path.write_bytes(copy)
    ledger.record_receipt(a_receipt("c"))

    assert ledger.flush(10)
    assert receipts(ledger.path) == {"a", "c"}
    with contextlib.closing(sqlite3.connect(ledger.path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not lines.named("ledger.failed")


def test_what_others_write_beside_the_clock_is_noticed_by_its_size(ledger: Ledger) -> None:
    """A program that puts the time back changes the size all the same."""
    ledger.close(10)
    before = ledger.path.stat()
    guard = Guard(ledger.path)

    os.truncate(ledger.path, before.st_size // 2)
    os.utime(ledger.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(LedgerDamagedError):
        guard.before()


def test_nobody_waits_for_a_fifo_in_the_place_of_the_ledger(ledger: Ledger) -> None:
    """Opening it would block until somebody writes into it: that thread would be lost."""
    replace_with_a_fifo(ledger.path)

    with pytest.raises(LedgerError, match="is no file"):
        Reader(ledger.path)


def test_rows_that_are_not_durable_are_dropped_without_a_callback(ledger: Ledger, lines: Lines) -> None:
    """A receipt in a deleted file is worth nothing: nothing may be removed because of it."""
    told: list[str] = []
    ledger.record_receipt(a_receipt("before"), lambda: told.append("before"))
    assert ledger.flush(10)
    delete_all(ledger.path)

    ledger.record_receipt(a_receipt("after"), lambda: told.append("after"))

    eventually(lambda: not ledger.alive())
    assert told == ["before"]
    assert ledger.damaged
    assert "was deleted" in ledger.damaged
    assert len(lines.named("ledger.failed")) == 1
    assert not ledger.close(1)


def test_a_file_that_cannot_be_put_aside(ledger: Ledger, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says so, and the thread ends all the same."""

    def refuse(_: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("s3spool.ledger.store.put_aside", refuse)
    truncate(ledger.path)

    eventually(lambda: not ledger.alive())
    (line,) = lines.named("ledger.failed")
    assert "was emptied" in line["error"]
    assert "cannot be renamed: Read-only" in line["error"]


def test_a_rotten_page_that_only_a_reader_meets(ledger: Ledger, lines: Lines) -> None:
    """No time stamp shows it; a reader reports it, and the ledger ends."""
    for number in range(2000):
        ledger.record_receipt(a_receipt(f"r{number}"))
    assert ledger.flush(10)
    checkpointed(ledger.path)
    assert ledger.flush(10)
    before = ledger.path.stat()
    with ledger.path.open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(content_of(3 * 4096))
    os.utime(ledger.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ledger.flush(10)
    assert not lines.named("ledger.failed")

    with Reader(ledger.path) as reader, pytest.raises(LedgerError) as caught:
        list(reader.receipts())
    ledger.report_read_error(caught.value)

    eventually(lambda: not ledger.alive(), timeout_s=20)
    assert receipts(ledger.path) == set()
    assert len(lines.named("ledger.failed")) == 1
    assert broken(ledger.path.parent)


def test_a_row_that_is_none_of_ours(ledger: Ledger, lines: Lines) -> None:
    """Sound for SQLite, nonsense for us: readers could not go on, so it is put aside as well."""
    ledger.record_retry(a_retry("a"))
    assert ledger.flush(10)
    with contextlib.closing(sqlite3.connect(ledger.path)) as db, db:
        db.execute("UPDATE retries SET path = '//' || char(8364)")

    with Reader(ledger.path) as reader, pytest.raises(LedgerError, match="malformed row") as caught:
        list(reader.retries())
    ledger.report_read_error(caught.value)

    eventually(lambda: not ledger.alive(), timeout_s=20)
    assert broken(ledger.path.parent)


def test_a_reader_that_fails_by_itself_costs_nothing(ledger: Ledger, lines: Lines) -> None:
    """The file is sound: it is said once, and no new ledger is made."""
    ledger.record_receipt(a_receipt("a"))
    inode = ledger.path.stat().st_ino
    complaint = ledger.report_read_error(LedgerError("unable to open database file"))
    complaint = ledger.report_read_error(LedgerError("unable to open database file"), complaint)

    assert ledger.flush(10)
    assert receipts(ledger.path) == {"a"}
    assert ledger.path.stat().st_ino == inode
    (line,) = lines.named("ledger.failed")
    assert "is sound" in line["hint"]


def test_somebody_elses_checkpoint_is_no_damage(ledger: Ledger, lines: Lines) -> None:
    """A person with the sqlite3 program changes the file and breaks nothing: it is looked at, and kept."""
    ledger.record_receipt(a_receipt("a"))
    assert ledger.flush(10)
    inode = ledger.path.stat().st_ino
    checkpointed(ledger.path)

    ledger.record_receipt(a_receipt("b"))

    assert ledger.flush(10)
    assert receipts(ledger.path) == {"a", "b"}
    assert ledger.path.stat().st_ino == inode
    assert not lines.named("ledger.failed")


def test_the_state_directory_is_gone_with_its_parent(ledger: Ledger, lines: Lines, tmp_path: Path) -> None:
    """The ledger ends with one line, and makes no directory: a start does that, or says why it cannot."""
    tmp_path.rename(aside := tmp_path.with_name(f"{tmp_path.name}-aside"))

    eventually(lambda: not ledger.alive(), timeout_s=20)

    assert "was deleted" in lines.named("ledger.failed")[0]["error"]
    assert not tmp_path.exists()
    aside.rename(tmp_path)


# --- the disk


def removed_and_recorded(daemon: Daemon, faulty: FaultyS3, files: dict[str, bytes]) -> None:
    eventually(lambda: folder_files(daemon.folder) == {}, timeout_s=WAIT_S)
    assert {key: faulty.contents().get(key) for key in files} == files
    assert all(faulty.count(f"^PUT {name}$") == 1 for name in files)
    assert receipts(path_of(daemon)) >= set(files)
    (failed,) = daemon.events("ledger.failed")
    assert failed["path"] == str(path_of(daemon))
    assert "state.directory" in failed["hint"]
    assert len(daemon.events("ledger.recovered")) == 1
    assert not daemon.events("file.failed")


def test_a_full_state_disk(make: Callable[..., Daemon], faulty: FaultyS3) -> None:
    """Files go to S3 and stay until there is room for their receipts; one line says so, one when it is over."""
    files = {f"f{number}" + "x" * 200: content_of(1000, number) for number in range(300)}
    daemon = make(after={"action": "delete"})
    with mounted(daemon.state_directory, "1m"):
        daemon.start()
        daemon.wait_event("scan.finished", WAIT_S)
        filler = fill(daemon.state_directory)
        for name, content in files.items():
            daemon.drop(name, content)
        daemon.wait_event("ledger.failed", WAIT_S)
        eventually(lambda: len(faulty.contents()) == len(files), timeout_s=WAIT_S)
        unrecorded = set(files) - receipts(path_of(daemon))
        assert unrecorded
        assert set(folder_files(daemon.folder)) >= unrecorded

        filler.unlink()

        daemon.wait_event("ledger.recovered", WAIT_S)
        removed_and_recorded(daemon, faulty, files)
        assert daemon.stop() == 0


def test_a_disk_that_cannot_sync(make: Callable[..., Daemon], faulty: FaultyS3, tmp_path: Path) -> None:
    """EIO from fsync: no receipt is believed, no file is removed, until the disk says yes."""
    flag = tmp_path / "fail"
    daemon = make(lying(tmp_path, fail_fsync=flag), after={"action": "delete"}).start()
    daemon.wait_event("scan.finished", WAIT_S)
    flag.touch()
    files = {f"f{number}": content_of(1000, number) for number in range(20)}
    for name, content in files.items():
        daemon.drop(name, content)
    failed = daemon.wait_event("ledger.failed", WAIT_S)
    eventually(lambda: len(faulty.contents()) == len(files), timeout_s=WAIT_S)
    assert failed["error"] == "disk I/O error"
    assert folder_files(daemon.folder) == files
    assert not daemon.events("file.uploaded")

    flag.unlink()

    daemon.wait_event("ledger.recovered", WAIT_S)
    removed_and_recorded(daemon, faulty, files)
    assert daemon.stop() == 0


def test_retry_and_forget_while_the_disk_cannot_sync(
    make: Callable[..., Daemon], faulty: FaultyS3, tmp_path: Path
) -> None:
    """The disk answers only after the commands have given up; what they asked for is done then, by no other event."""
    faulty.script(Status(code=400, error_code="BadDigest"), times=None, match="^PUT waits")
    flag = tmp_path / "fail"
    retry, watch = {"initial_s": 3600, "max_s": 3600}, {"rescan_s": 3600}
    daemon = make(lying(tmp_path, fail_fsync=flag), retry=retry, watch=watch).start_scanned()
    daemon.drop_all({"waits": b"waits", "sent": b"sent"})
    daemon.wait_event("file.failed", WAIT_S)
    eventually(lambda: receipts(path_of(daemon)) == {"sent"})
    faulty.behave()
    flag.touch()

    with ThreadPoolExecutor() as pool:  # each waits for ten seconds
        answers = list(pool.map(lambda command: daemon.cli(*command).stderr, [("retry", "--all"), ("forget", "sent")]))
    flag.unlink()

    assert all("the ledger does not answer" in answer for answer in answers), answers
    daemon.wait_event("file.uploaded", WAIT_S, path="waits")
    eventually(lambda: faulty.count("^PUT sent") == 2, timeout_s=WAIT_S)
