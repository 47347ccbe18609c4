"""Damaged input: no configuration and no ledger file, whatever is in it, ends in a traceback or loses a file."""

from __future__ import annotations

import contextlib
import random
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from s3spool.config.directories import check_directories
from s3spool.config.loader import load
from s3spool.config.schema import OPTIONS
from s3spool.errors import ConfigError, LedgerError
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Identity, State
from s3spool.ledger.store import Ledger
from support.daemon import Daemon
from support.faulty import FaultyS3
from support.rows import a_multipart, a_part, a_receipt, a_retry
from support.waiting import eventually

# --- configuration

SAMPLE = "\n".join(
    f"[{section}]\n" + "\n".join(f"{option.name.partition('.')[2]} = {option.default}" for option in found)
    for section in dict.fromkeys(option.name.partition(".")[0] for option in OPTIONS.values())
    if (found := [option for option in OPTIONS.values() if option.name.startswith(f"{section}.")])
).encode()
SAMPLE += b'\n[[rule]]\nmatch = ["*.a", "b/**"]\nprefix = "x/%Y/"\nmetadata = { a = "{path}" }\nafter = "keep"\n'
BITS = [
    b'"', b"'", b'"""', b"[", b"]", b"[[", b"{", b"}", b"=", b".", b"#", b"\\", b"\\u0000", b"\\U0010ffff",
    b"\n", b"\r", b"\x00", b"\x1b[2J", b"\x7f", b"\xff", b"\xc2\x85", "\u2028\u202e".encode(),
    b"nan", b"-inf", b"9" * 5000, b"0x" + b"9" * 5000, b"1e999", b"0x",
    b"1979-05-27T07:32:00Z", b"true", b"~nobody/x", b"/" * 5000, b"%", b"{hostname}", b"%Y%Q", b"KiB", b"\xef\xbb\xbf",
]  # fmt: skip
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(BITS) | st.binary(max_size=6)), max_size=6
)


def edited(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Some bytes taken out at some places, and others put in."""
    for where, count, new in edits:
        start = int(where * len(content))
        content = content[:start] + new + content[start + count :]
    return content


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "s3spool.toml"


def assert_read_or_refused(toml: Path, content: bytes) -> bool:
    """Either an object, or printable lines, each of which begins with the file or with a name that stands in it."""
    toml.write_bytes(content)
    try:
        load(toml, environ={"HOME": str(toml.parent)})
    except ConfigError as error:
        lines = list(map(str, error.errors))
    else:
        return True
    for line in lines:
        assert line.isprintable(), line
        assert line.startswith(str(toml)) or re.match(r"""[\w"'-].*: """, line)
        assert len(line) < 2_000
    return False


@given(st.binary(max_size=300) | st.text(string.printable, max_size=300).map(str.encode))
@settings(max_examples=200)
@example(b"\xff\xfe[\x00w\x00")
def test_any_bytes_are_read_or_refused_in_one_line(toml: Path, content: bytes) -> None:
    assert_read_or_refused(toml, content)


@given(EDITS)
@settings(max_examples=400)
def test_an_edited_configuration_is_read_or_refused_in_one_line(
    toml: Path, edits: list[tuple[float, int, bytes]]
) -> None:
    assert_read_or_refused(toml, edited(SAMPLE, edits))


VALUES = st.recursive(
    st.sampled_from([bit.decode(errors="replace") for bit in BITS])
    | st.text(max_size=20).map(lambda text: '"' + text.encode("ascii", "backslashreplace").decode() + '"')
    | st.integers().map(str)
    | st.floats().map(str),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["a", "mtime", '"\\u001b"', '"x y"']), inner, max_size=2).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=6,
)


@given(st.sampled_from([option.name for option in OPTIONS.values()]), VALUES)
@settings(max_examples=400)
@example("destination.bucket", '"\\u001b[2J"')
@example("upload.workers", "0x" + "9" * 5000)
@example("watch.include", '["\\u001b[2J", 5]')
@example("destination.metadata", '{"\\u001b" = 5}')
@example("watch.directory", '"/\\u001b[2J"')
@example("state.directory", '"' + "x" * 300 + '"')
def test_any_value_of_any_key_is_taken_or_named(toml: Path, name: str, value: str) -> None:
    """A value that is refused is refused by its key's name, or by its line where it is no TOML."""
    content = f"{name} = {value}\n".encode("utf-8", "surrogatepass")
    toml.write_bytes(content)
    try:
        config = load(toml, environ={"HOME": str(toml.parent)})
    except ConfigError as error:
        for line in map(str, error.errors):
            assert line.isprintable(), line
            assert line.startswith((name, name.partition(".")[0], str(toml), "service.control_socket"))
    else:
        assume(name in {"watch.directory", "state.directory", "after.archive_directory", "destination.ca_bundle"})
        with contextlib.suppress(ConfigError):
            probe(config)


def probe(config: object) -> None:
    """What the daemon does next; kept from making anything."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "mkdir", lambda *_, **__: None)
        check_directories(config)  # type: ignore[arg-type] # a Config


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(6))
def test_the_program_says_it_in_a_line_per_error_and_ends_with_78(seed: int, tmp_path: Path, toml: Path) -> None:
    """What a person sees of a configuration that is broken somewhere."""
    rng = random.Random(seed)
    content = b""
    while not content or assert_read_or_refused(toml, content):
        content = edited(SAMPLE, [(rng.random(), rng.randrange(12), rng.choice(BITS)) for _ in range(4)])
    daemon = Daemon(tmp_path)
    daemon.config_path.write_bytes(content)

    done = daemon.cli("run")

    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.endswith("\n")
    for line in done.stderr[:-1].split("\n"):
        assert line.startswith("s3spool: ")
        assert line.isprintable()


# --- the ledger

ROWS = 300
Damage = Callable[[bytearray, random.Random], None]


def truncated(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def truncated_to_pages(content: bytearray, rng: random.Random) -> None:
    del content[4096 * rng.randrange(1, len(content) // 4096) :]


def bits_flipped(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 5, 50, 500])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def bits_flipped_in_the_header(content: bytearray, rng: random.Random) -> None:
    for _ in range(3):
        content[rng.randrange(100)] ^= 1 << rng.randrange(8)


def a_page_of_garbage(content: bytearray, rng: random.Random) -> None:
    start = 4096 * rng.randrange(len(content) // 4096)
    content[start : start + 4096] = rng.randbytes(4096)


def a_page_of_zeros(content: bytearray, rng: random.Random) -> None:
    start = 4096 * rng.randrange(len(content) // 4096)
    content[start : start + 4096] = bytes(4096)


def pages_swapped(content: bytearray, rng: random.Random) -> None:
    one, other = (4096 * rng.randrange(len(content) // 4096) for _ in range(2))
    content[one : one + 4096], content[other : other + 4096] = content[other : other + 4096], content[one : one + 4096]


def garbage(content: bytearray, rng: random.Random) -> None:
    content[:] = rng.randbytes(rng.randrange(1, 20_000))


def words_changed(content: bytearray, rng: random.Random) -> None:
    """Values that SQLite finds in order, and we do not know."""
    old, new = rng.choice(
        [(b"waiting", b"waitinG"), (b"parked", b"packed"), (b"file", b"//\xd0\x80e"), (b"crc", b"\xff\xfe\xfd")]
    )
    content[:] = content.replace(old, new)


DAMAGES = [
    truncated,
    truncated_to_pages,
    bits_flipped,
    bits_flipped_in_the_header,
    a_page_of_garbage,
    a_page_of_zeros,
    pages_swapped,
    garbage,
    words_changed,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with rows in every table."""
    path = tmp_path_factory.mktemp("whole") / "ledger.sqlite3"
    ledger = Ledger(path, destination="d")
    ledger.start()
    for number in range(ROWS):
        identity = Identity(1, number, 5, number, number)
        ledger.record_receipt(a_receipt(f"file {number}", identity=identity))
        ledger.record_retry(a_retry(f"bad file {number}", state=State.PARKED if number % 2 else State.WAITING))
        upload = a_multipart(f"large file {number}")
        ledger.record_multipart(upload)
        ledger.record_part(a_part(upload.upload_id))
    assert ledger.close(60)
    return path


def test_a_damaged_schema_that_is_no_text(whole: Path, tmp_path: Path) -> None:
    """SQLite quotes it in its message, which Python then cannot read."""
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(whole.read_bytes().replace(b"CREATE TABLE receipts", b"CREATE T\xcdBLE receipts"))

    with pytest.raises(LedgerError, match="is not a usable database"):
        Reader(path)
    Ledger(path, destination="d")._db.close()
    assert list(tmp_path.glob("*.broken-*"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_questions_to_a_damaged_ledger_are_answered_or_refused(
    damage: Damage, whole: Path, tmp_path: Path, seed: int
) -> None:
    """The threads that ask are prepared for LedgerError, and would die of anything else."""
    content = bytearray(whole.read_bytes())
    damage(content, random.Random(seed))
    for old in tmp_path.glob("ledger*"):
        old.unlink()
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(content)

    questions: list[Callable[[Reader], object]] = [
        lambda reader: reader.known([f"file {number}" for number in range(ROWS)] + ["bad file 1"]),
        lambda reader: reader.due(1e12, 1000),
        lambda reader: reader.next_due(),
        lambda reader: list(reader.retries()),
        lambda reader: list(reader.retries(State.PARKED)),
        lambda reader: list(reader.receipts()),
        lambda reader: list(reader.receipts_before(1e12)),
        lambda reader: reader.multiparts(),
        lambda reader: reader.multipart("large file 7"),
        lambda reader: reader.parts("upload of large%20file%207"),
        lambda reader: reader.counts(),
        lambda reader: reader.last_error(),
        lambda reader: reader.totals(),
        lambda reader: reader.destination("d"),
    ]
    with contextlib.suppress(LedgerError), Reader(path) as reader:
        for question in questions:
            with contextlib.suppress(LedgerError):
                question(reader)
    with contextlib.suppress(LedgerError):
        ledger = Ledger(path, destination="d")
        ledger._db.close()


@pytest.mark.integration
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_ledger_costs_no_file(damage: Damage, whole: Path, tmp_path: Path, faulty: FaultyS3) -> None:
    """Kept aside at the start or by a daemon that exits with 1, or refused as a newer version: all files are sent."""
    daemon = Daemon(tmp_path, faulty, watch={"rescan_s": 1}, after={"action": "delete"})
    content = bytearray(whole.read_bytes())
    damage(content, random.Random(damage.__name__))
    path = daemon.state_directory / "ledger.sqlite3"
    path.write_bytes(content)
    for number in range(ROWS):
        daemon.drop(f"file {number}", b"content %d" % number)

    with daemon:
        eventually(lambda: daemon.events("daemon.ready") or not daemon.alive)
        if not daemon.alive:
            assert daemon.wait_exit() == 78
            assert re.fullmatch(rf"\ns3spool: {path}: .*move (it|the file) away.*\n", daemon.log_path.read_text())
            assert path.read_bytes() == content
            path.rename(path.with_suffix(".broken"))
            daemon.start()
            daemon.wait_ready()
        daemon.drop("late", b"late")

        def all_sent() -> bool:
            if not daemon.alive:
                assert daemon.wait_exit() == 1
                daemon.start()  # as systemd does
            return not list(daemon.folder.iterdir())

        eventually(all_sent, message="all sent")
        assert not daemon.events("thread.died")
        assert b"Traceback" not in daemon.log_path.read_bytes()
        assert daemon.stop() == 0

    assert faulty.contents() == {"late": b"late"} | {f"file {number}": b"content %d" % number for number in range(ROWS)}
