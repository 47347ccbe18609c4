"""The ledger: what it was told it knows after a kill, a full disk, a restart; it touches nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3spool.errors import AlreadyRunningError, LedgerError
from s3spool.ledger import database, health, store
from s3spool.ledger.database import DirectoryLock, holder
from s3spool.ledger.queries import Known
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Identity, from_text, to_text
from s3spool.ledger.store import Ledger
from support.lines import Lines, recorded
from support.rows import SOME, a_receipt, a_retry
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ODD = [
    "plain.txt",
    "ü/日本",
    "two\nlines",
    "quote'\"\\",
    os.fsdecode(b"latin-\xfc\xff"),
    "null\\u0000",
    "//x"[1:] + "y",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger(path, destination="here")
    ledger.start()
    yield ledger
    ledger.close(10)


@pytest.fixture
def lines() -> Iterator[Lines]:
    with recorded() as lines:
        yield lines


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a program of its own that may die as it likes."""
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{code}",
    ]
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)


# Rows


def test_a_name_that_is_not_utf8_comes_back() -> None:
    """SQLite's text holds no raw bytes, so such names are kept in another form, and unfolded again."""
    odd = os.fsdecode(b"a\xff/\xc3\xbc")

    assert to_text(odd).encode()
    assert from_text(to_text(odd)) == odd


@given(st.binary(min_size=1).filter(lambda name: not name.startswith(b"/")).map(os.fsdecode))
def test_every_path_comes_back(name: str) -> None:
    """The ledger's form of a path is reversible, whatever its bytes are."""
    text = to_text(name)

    assert from_text(text) == name
    text.encode()


def test_identity_tells_a_chmod_from_a_change() -> None:
    """Only ctime differs: perhaps the same content. Anything else differs: certainly another one."""
    assert SOME.may_hold_the_same(SOME._replace(ctime_ns=9))
    assert SOME.may_hold_the_same(SOME._replace(dev=9))
    assert not SOME.may_hold_the_same(SOME)
    assert not SOME.may_hold_the_same(SOME._replace(mtime_ns=9, ctime_ns=9))
    assert not SOME.may_hold_the_same(SOME._replace(size=9))


# The thread


def test_a_group_is_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is handed in at once, it is committed in groups of limited size, none left out."""
    monkeypatch.setattr(store, "GROUP_ROWS", 7)
    tries = ledger.tries

    for number in range(50):
        ledger.record_receipt(a_receipt(f"{number}"))
    assert ledger.flush(10)

    assert ledger.tries - tries >= 7
    with Reader(ledger.path) as reader:
        assert reader.counts()["uploaded"] == 50


# What is broken


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(7)"])
def test_a_kill_right_after_the_callback_keeps_the_row(path: Path, how: str) -> None:
    """Durable means durable: who dies a moment after being told finds the row at the next start."""
    code = f"""
import os, signal, threading
from pathlib import Path
from s3spool.ledger.store import Ledger
from support.rows import a_receipt, a_retry
ledger = Ledger(Path(sys.argv[1]), destination="here")
ledger.start()
ledger.record_retry(a_retry("waits"))
ledger.claim(["waits"])
ledger.record_receipt(a_receipt("sent"), lambda: {how})
threading.Event().wait()
"""
    dead = run_python(code, path)

    ledger = Ledger(path, destination="here")
    ledger.start()
    with Reader(path) as reader:
        assert dead.returncode in {7, -signal.SIGKILL}, dead.stderr
        assert reader.known(["sent"]) == {"sent": Known(a_receipt("sent"), None)}
        assert [row.path for row in reader.due(2e9, 10)] == ["waits"]  # the claim died with its process
    ledger.close(10)


def test_a_full_disk_keeps_the_rows_and_tries_again(path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no room nothing is dropped and nobody is told; one line each when it starts and ends."""
    ledger = Ledger(path, destination="here")
    ledger._db.execute("PRAGMA max_page_count = 1")  # as many as there are
    room, commit = threading.Event(), ledger._commit

    def commit_with_room(group: list[Any]) -> None:
        # On the ledger's thread: where two threads use a connection, Python may lose the error of one of them.
        if room.is_set():
            ledger._db.execute("PRAGMA max_page_count = 1000000")
        commit(group)

    monkeypatch.setattr(ledger, "_commit", commit_with_room)
    ledger.start()
    told: list[int] = []
    for number in range(500):
        ledger.record_receipt(a_receipt(f"{number}" * 50), lambda number=number: told.append(number))  # type: ignore[misc]
    eventually(lambda: ledger.failing_since)
    assert told == []
    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 0  # reading goes on
    last_beat = ledger.heartbeat.last
    eventually(lambda: ledger.heartbeat.last > last_beat)  # hours without room are no hang

    room.set()

    assert ledger.flush(30)
    assert told == list(range(500))
    assert ledger.failing_since is None
    assert [line["event"] for line in lines] == ["ledger.failed", "ledger.recovered"]
    assert lines[0]["error"] == "database or disk is full"
    assert ledger.close(10)
    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 500


def test_a_disk_that_refuses_writes_keeps_the_rows_too(path: Path) -> None:
    """The kernel refuses (here: a file size limit); when it relents the rows are written."""
    code = """
import resource, signal, threading
from pathlib import Path
from s3spool.ledger.store import Ledger
from support.lines import recorded
from support.rows import a_receipt
from support.waiting import eventually
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]), destination="here")
ledger.start()
assert ledger.flush(10)
told = []
with recorded() as lines:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    for number in range(50):
        ledger.record_receipt(a_receipt(str(number)), lambda number=number: told.append(number))
    eventually(lambda: lines.named("ledger.failed"))
    assert told == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ledger.flush(30)
    assert told == list(range(50))
    assert lines.named("ledger.recovered")
assert ledger.close(10)
"""
    done = run_python(code, path)

    assert done.returncode == 0, done.stderr
    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 50


def test_closing_on_a_full_disk_says_so(path: Path, lines: Lines) -> None:
    """A shutdown is not held up by a full disk, but it must not claim that all is written."""
    ledger = Ledger(path, destination="here")
    ledger._db.execute("PRAGMA max_page_count = 1")
    ledger.start()
    told: list[str] = []
    ledger.record_receipt(a_receipt("a" * 9000), lambda: told.append("a"))
    eventually(lambda: ledger.failing_since)

    assert ledger.close(10) is False

    assert not ledger.alive()
    assert told == []


def test_a_commit_that_fails_is_taken_back(ledger: Ledger, lines: Lines) -> None:
    """A statement that fails in the middle of a group leaves no open transaction and no half group behind."""
    with contextlib.closing(sqlite3.connect(ledger.path)) as other:
        other.execute("CREATE TRIGGER bad BEFORE INSERT ON retries BEGIN SELECT * FROM nowhere; END")
        ledger.record_receipt(a_receipt("a"))
        ledger.record_retry(a_retry("b"))
        eventually(lambda: ledger.failing_since)
        with Reader(ledger.path) as reader:
            assert reader.counts() == {"uploaded": 0, "waiting": 0, "parked": 0}
        other.execute("DROP TRIGGER bad")  # would wait in vain if a transaction were open

    assert ledger.flush(10)
    with Reader(ledger.path) as reader:
        assert reader.counts() == {"uploaded": 1, "waiting": 1, "parked": 0}


def test_a_row_that_cannot_be_stored_keeps_no_other_out(ledger: Ledger, lines: Lines) -> None:
    """Refused for ever: it is said, nobody hears that it is durable, and its neighbours are."""
    told: list[str] = []
    bad = a_receipt("bad")._replace(key=None)  # type: ignore[arg-type] # the point
    ledger.record_receipt(a_receipt("a"), lambda: told.append("a"))
    ledger.record_receipt(bad, lambda: told.append("bad"))
    ledger.record_receipt(a_receipt("b\udc80"), lambda: told.append("b"))
    ledger.record_receipt(a_receipt("c")._replace(etag="\udc80"), lambda: told.append("c"))

    assert ledger.flush(10)

    with Reader(ledger.path) as reader:
        assert [receipt.path for receipt in reader.receipts()] == ["b\udc80", "a"]
    assert told == ["a", "b"]
    assert len(lines.named("ledger.failed")) == 2


def test_a_database_that_stays_locked_keeps_the_rows(path: Path, lines: Lines) -> None:
    """Somebody else writes for a while: tried again, with one line for it, then the rows are there."""
    ledger = Ledger(path, destination="here")
    ledger._db.execute("PRAGMA busy_timeout = 0")
    ledger.start()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.record_receipt(a_receipt("a"))
        eventually(lambda: ledger.tries >= 3)
        other.execute("ROLLBACK")

    assert ledger.flush(10)

    assert [line["event"] for line in lines] == ["ledger.failed", "ledger.recovered"]
    assert ledger.close(10)
    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 1


def test_a_rollback_that_fails_is_not_the_end(ledger: Ledger, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even the rollback fails the thread lives on and tries again."""

    class Broken:
        in_transaction = True

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real
            self.failures = ["BEGIN IMMEDIATE", "ROLLBACK"]

        def execute(self, statement: str, *args: Any) -> Any:
            if statement in self.failures:
                self.failures.remove(statement)
                raise sqlite3.OperationalError("disk I/O error")
            return self.real.execute(statement, *args)

        def close(self) -> None:
            self.real.close()

    monkeypatch.setattr(ledger, "_db", Broken(ledger._db))

    ledger.record_receipt(a_receipt("a"))

    assert ledger.flush(10)
    assert lines.named("ledger.rollback_failed")
    with Reader(ledger.path) as reader:
        assert reader.counts()["uploaded"] == 1


@pytest.mark.parametrize("year_s", [253_402_300_800, 13_569_465_600, -13_569_465_600])
def test_a_file_from_the_far_future_does_not_stop_the_others(
    ledger: Ledger, tmp_path: Path, lines: Lines, year_s: int
) -> None:
    """Anyone may date a file to the year 2400; a number too large for SQLite must not block the ledger."""
    file = tmp_path / "future"
    file.touch()
    os.utime(file, ns=(0, year_s * 10**9))
    identity = Identity.of(file.stat())

    ledger.record_receipt(a_receipt("future", identity=identity))
    ledger.record_retry(a_retry("future too", identity=identity))
    ledger.record_receipt(a_receipt("present"))

    assert ledger.flush(2), lines
    with Reader(ledger.path) as reader:
        assert reader.known(["future"]) == {"future": Known(a_receipt("future", identity=identity), None)}
        assert reader.counts()["uploaded"] == 2


def test_an_inode_number_of_64_bits_does_not_stop_the_others(ledger: Ledger, lines: Lines) -> None:
    """Network and overlay file systems use all 64 bits of an inode number; SQLite's integers have a sign."""
    status = os.stat_result((0o100644, 2**64 - 7, 1, 1, 0, 0, 5, 0, 0, 0), {"st_mtime_ns": 5, "st_ctime_ns": 6})

    ledger.record_receipt(a_receipt("a", identity=Identity.of(status)))

    assert ledger.flush(2), lines
    with Reader(ledger.path) as reader:
        assert reader.known(["a"])["a"].receipt == a_receipt("a", identity=Identity.of(status))


def test_words_that_are_not_utf8_do_not_end_the_thread(ledger: Ledger) -> None:
    """An error message may quote a file name of any bytes."""
    odd = os.fsdecode(b"cannot read \xff")

    ledger.record_retry(a_retry("a", error=odd, hint=odd))

    assert ledger.flush(2)
    assert ledger.alive()
    with Reader(ledger.path) as reader:
        assert [row.error for row in reader.retries()] == ["cannot read \\udcff"]


# Opening


def refusal(
    path: Path, opener: Callable[[Path], object] = lambda path: Ledger(path, destination="here"), exit_code: int = 78
) -> str:
    with pytest.raises(LedgerError) as raised:
        opener(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    assert raised.value.exit_code == exit_code
    return message


OPENERS = [lambda path: Ledger(path, destination="here"), Reader]


def a_database(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_newer_ledger_is_refused_and_untouched(path: Path, opener: Callable[[Path], object]) -> None:
    """After a downgrade the program says so instead of writing into what it does not understand."""
    Ledger(path, destination="here")._db.close()
    a_database(path, "PRAGMA journal_mode = DELETE", f"PRAGMA user_version = {database.VERSION + 1}")
    before = path.read_bytes()

    message = refusal(path, opener)

    assert f"version {database.VERSION + 1}" in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE bookmarks (url TEXT)", "PRAGMA application_id = 7", "CREATE TABLE retries (path TEXT)"],
)
def test_another_programs_database_is_refused_and_untouched(
    path: Path, statement: str, opener: Callable[[Path], object]
) -> None:
    """Pointing state.directory at a foreign database costs nobody their data."""
    a_database(path, statement)
    before = path.read_bytes()

    message = refusal(path, opener)

    assert "not a ledger of s3spool" in message
    assert path.read_bytes() == before


def a_damaged_schema() -> bytes:
    """SQLite quotes it in its error; it is not UTF-8."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE retries (path TEXT)")
        return db.serialize().replace(b"TABLE", b"TABL\xff")


@pytest.mark.parametrize(
    "content",
    [b"just a text file, long enough to be looked at", b"\0" * 8192, a_damaged_schema()],
    ids=["text", "zeros", "schema"],
)
def test_what_is_no_database_is_kept_aside(path: Path, content: bytes, lines: Lines) -> None:
    """Commands leave it as it is and say what it is; a daemon renames it and begins a new ledger."""
    path.write_bytes(content)

    assert "not a usable database" in refusal(path, Reader)
    assert path.read_bytes() == content
    ledger = Ledger(path, destination="here")
    ledger.start()
    ledger.record_receipt(a_receipt("a"))
    assert ledger.close(10)

    (aside,) = path.parent.glob("*.broken-*")
    assert aside.read_bytes() == content
    with Reader(path) as reader:
        assert set(reader.known(["a"])) == {"a"}
    (line,) = lines.named("ledger.failed")
    assert "not a usable database" in line["error"]


def test_a_damaged_file_that_cannot_be_put_aside(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the start is refused, in one line."""
    path.write_bytes(b"just a text file, long enough to be looked at")

    def no(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(health, "put_aside", no)

    assert "cannot be renamed: Permission denied" in refusal(path)


@pytest.mark.parametrize("opener", OPENERS)
def test_what_cannot_be_opened(path: Path, opener: Callable[[Path], object]) -> None:
    """A directory of that name, or no directory around it, is one line as well."""
    path.mkdir()

    assert refusal(path, opener)
    assert "cannot be opened" in refusal(path / "missing" / "ledger.sqlite3", opener)


def test_an_unreadable_ledger_is_refused() -> None:
    """A ledger that belongs to somebody else (root ran it once) is one line that says so."""
    code = """
import os
from pathlib import Path
from s3spool.errors import LedgerError
from s3spool.ledger.store import Ledger
from s3spool.ledger.reader import Reader
if os.getuid() == 0:
    os.setuid(65534)
for opener in (lambda path: Ledger(path, destination="here"), Reader):
    try:
        opener(Path(sys.argv[1]))
    except LedgerError as exc:
        print(exc)
"""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ledger.sqlite3")
        Ledger(path, destination="here")._db.close()
        path.chmod(0o000)
        path.parent.chmod(0o755)

        done = run_python(code, path)

    assert done.stdout.count("cannot be opened (unable to open database file); check state.directory") == 2, done


def test_a_damaged_page_is_an_error_of_the_ledger(path: Path) -> None:
    """The file opens, but what is in it is broken: a LedgerError for whoever asks, and at the next start."""
    ledger = Ledger(path, destination="here")
    ledger.start()
    for number in range(200):
        ledger.record_receipt(a_receipt(f"{number}"))
        ledger.record_retry(a_retry(f"r{number}"))
    ledger.close(10)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))

    with Reader(path) as reader:
        questions: list[Callable[[], object]] = [
            lambda: reader.known(["1"]),
            lambda: reader.due(1.0, 1),
            reader.next_due,
            lambda: list(reader.retries()),
            lambda: list(reader.receipts()),
            lambda: list(reader.receipts_before(1.0)),
            reader.multiparts,
            lambda: reader.multipart("a"),
            lambda: reader.parts("a"),
            reader.counts,
            reader.last_error,
        ]
        for question in questions:
            assert "not a usable database" in refusal(path, lambda _, ask=question: ask())  # type: ignore[misc]
    aside = Ledger(path, destination="here")
    aside._db.close()
    assert [kept.read_bytes()[4096:4099] for kept in path.parent.glob("*.broken-*Z")] == [b"\xa5" * 3]


def test_an_empty_file_is_a_fresh_ledger(path: Path) -> None:
    """A process that died while it created the file left it empty; that is no reason to refuse."""
    path.touch()

    ledger = Ledger(path, destination="here")
    ledger.start()

    assert ledger.flush(10)
    ledger.close(10)
    assert path.stat().st_mode & 0o777 == 0o600
    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 0


def test_asking_an_empty_file(path: Path) -> None:
    """`status` beside a ledger that has no tables yet gets a LedgerError, not a traceback."""
    path.touch()

    with Reader(path) as reader:
        assert "no such table" in refusal(path, lambda _: reader.counts())


def test_a_closed_reader_has_no_descriptor(path: Path) -> None:
    """A daemon makes one for each question of its status page, and must not collect them."""
    Ledger(path, destination="here")._db.close()

    with Reader(path) as reader:
        assert reader.made()
        assert path in opened_files()

    assert path not in opened_files()


def opened_files() -> set[Path]:
    """Of this process."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(descriptor.readlink())
    return found


def test_a_name_that_looks_like_a_url(tmp_path: Path) -> None:
    """A state directory may be called anything."""
    path = tmp_path / "a?mode=memory#100%.d" / "ledger.sqlite3"
    path.parent.mkdir()
    ledger = Ledger(path, destination="here")
    ledger.start()
    ledger.record_receipt(a_receipt("a"))
    assert ledger.flush(10)

    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 1
    ledger.close(10)


def test_a_locked_database_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else writes into the ledger (a backup, a person): one line, no traceback, and systemd tries again."""
    Ledger(path, destination="here")._db.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0.0}))
    with contextlib.closing(connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        message = refusal(path, exit_code=1)

    assert "locked" in message


# Versions


def test_migrations_run_in_order_each_in_its_transaction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old ledger is brought up step by step, and keeps what it knew."""
    first = Ledger(path, destination="here")
    first.start()
    first.record_receipt(a_receipt("kept"))
    first.close(10)
    now = database.VERSION
    steps = {
        now: lambda db: db.execute("CREATE TABLE added (x)"),
        now + 1: lambda db: db.execute("INSERT INTO added VALUES (7)"),
    }
    monkeypatch.setattr(database, "VERSION", now + 2)
    monkeypatch.setattr(database, "MIGRATIONS", {**database.MIGRATIONS, **steps})

    ledger = Ledger(path, destination="here")

    assert ledger._db.execute("PRAGMA user_version").fetchone() == (now + 2,)
    assert ledger._db.execute("SELECT x FROM added").fetchall() == [(7,)]
    ledger.start()
    ledger.close(10)
    with Reader(path) as reader:
        assert reader.counts()["uploaded"] == 1


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a migration is taken back, and the next start finds the step before it."""
    Ledger(path, destination="here")._db.close()
    now = database.VERSION

    def half(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE half (x)")
        db.execute("INSERT INTO missing VALUES (1)")

    monkeypatch.setattr(database, "VERSION", now + 1)
    monkeypatch.setattr(database, "MIGRATIONS", {**database.MIGRATIONS, now: half})

    message = refusal(path)

    assert "no such table: missing" in message
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (now,)
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchone() == (0,)


@pytest.mark.parametrize("opener", OPENERS)
def test_a_ledger_from_before_the_first_release_is_refused(path: Path, opener: Callable[[Path], object]) -> None:
    """No migration leads from there: one line says so, and the file stays as it was."""
    Ledger(path, destination="here")._db.close()
    a_database(path, "PRAGMA journal_mode = DELETE", "PRAGMA user_version = 3")
    before = path.read_bytes()

    assert "written before the first release of s3spool (ledger version 3)" in refusal(path, opener)
    assert path.read_bytes() == before


# Who may use it


def test_a_second_daemon_is_refused_by_the_first_ones_pid(tmp_path: Path) -> None:
    """Two daemons on one ledger would send everything twice; the second says who is there."""
    assert holder(tmp_path) is None
    lock = DirectoryLock(tmp_path)

    with pytest.raises(AlreadyRunningError, match=rf"pid {os.getpid()}\b") as raised:
        DirectoryLock(tmp_path)

    assert str(tmp_path) in str(raised.value)
    assert holder(tmp_path) == os.getpid()
    lock.release()
    assert holder(tmp_path) is None


def test_a_dead_daemon_holds_nothing(tmp_path: Path) -> None:
    """The kernel drops the lock of a killed process, so the next start needs no cleaning up."""
    code = """
import os, signal
from pathlib import Path
from s3spool.ledger.database import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = run_python(code, tmp_path)
    left_behind = holder(tmp_path)

    lock = DirectoryLock(tmp_path)

    assert dead.returncode == -signal.SIGKILL
    assert left_behind is None
    assert holder(tmp_path) == os.getpid()
    lock.release()


def test_a_holder_that_has_not_said_its_pid(tmp_path: Path) -> None:
    """Between taking the lock and writing the pid there is nothing to name."""
    lock = DirectoryLock(tmp_path)
    lock.path.write_text("")

    with pytest.raises(AlreadyRunningError, match="pid unknown"):
        DirectoryLock(tmp_path)

    assert holder(tmp_path) is None
    lock.release()


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    """A directory of that name is one line."""
    (tmp_path / "daemon.lock").mkdir()

    with pytest.raises(LedgerError, match=r"daemon\.lock: cannot be opened: Is a directory"):
        DirectoryLock(tmp_path)


def test_asking_who_holds_it_keeps_nobody_out(tmp_path: Path) -> None:
    """`s3spool status` that looks at the very moment a daemon starts must not make it give up."""
    DirectoryLock(tmp_path).release()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            holder(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(300):
            DirectoryLock(tmp_path).release()
    finally:
        stop.set()
        thread.join(10)
