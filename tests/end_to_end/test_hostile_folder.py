"""A folder in which somebody means harm: nothing outside of it is read or removed, and no other file is held up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from s3spool.control import server as control
from s3spool.folder import rename as rename_module
from s3spool.folder.folder import Folder
from s3spool.ledger.rows import Identity
from s3spool.s3.keys import MAX_KEY_BYTES, decoded, encoded
from support.daemon import Daemon, Make, to_toml
from support.faulty import FaultyS3
from support.objects import folder_files
from support.odd_files import make_odd
from support.s3_messages import md5_hex
from support.users import unprivileged
from support.waiting import eventually

pytestmark = pytest.mark.integration

WAIT_S = 60.0
SECRET = b"what lies outside is nobody's business"
CONTROLS = 60
SWAPPED = int(os.environ.get("S3SPOOL_TEST_FILES", "300"))
DEATHS = ("thread.died", "worker.replaced", "library.warning", "daemon.unhealthy", "ledger.failed")


@pytest.fixture
def build(tmp_path: Path, make: Make) -> Make:
    def build(action: str = "keep", **sections: Any) -> Daemon:
        watch = {"rescan_s": 1} | sections.pop("watch", {})
        after = {"action": action, "archive_directory": str(tmp_path / "archive")}
        return make(watch=watch, after=after, **sections)

    return build


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Beside the folder, on the same file system."""
    outside = tmp_path / "outside"
    (outside / "e").mkdir(parents=True)
    for name in ("f0", "f1", "e/f0", "e/f1"):
        (outside / name).write_bytes(SECRET)
    return outside


class Guard:
    """Tells whether anybody opened, listed, read or changed what is below these directories."""

    _OPEN, _ACCESS = 0x20, 0x1
    _CHANGES = 0x2 | 0x40 | 0x80 | 0x100 | 0x200  # IN_MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE
    _NONBLOCK = 0x800

    def __init__(self, *directories: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(self._NONBLOCK)
        for directory in directories:
            mask = self._OPEN | self._ACCESS | self._CHANGES
            assert libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) >= 0

    def seen(self) -> list[tuple[str, str]]:
        """(mask, name) of what has happened so far."""
        events = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                while data:
                    _, mask, _, length = struct.unpack_from("iIII", data)
                    events.append((hex(mask), os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))))
                    data = data[16 + length :]
        return events

    def close(self) -> None:
        os.close(self._fd)


_ATTACK = """
import ctypes, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
def exchange(one, other):  # RENAME_EXCHANGE: at no moment is there nothing
    assert libc.renameat2(-100, one.encode(), -100, other.encode(), 2) == 0, ctypes.get_errno()
def pause():
    select.select([], [], [], 0.0003)
def put(name, content):
    with open(f".new {os.path.basename(name)}", "wb") as file:
        file.write(content)
    os.rename(f".new {os.path.basename(name)}", name)
os.chdir(sys.argv[1])
n = 0
print("armed", flush=True)
while n < 12 or os.path.exists(sys.argv[2]):
    n += 1
    BODY
print(n, flush=True)
"""


@contextlib.contextmanager
def attack(folder: Path, body: str) -> Iterator[None]:
    """Another process that does this again and again in the folder, a dozen rounds and until the block ends."""
    flag = folder.parent / "attacking"
    flag.touch()
    program = _ATTACK.replace("BODY", body.strip("\n").replace("\n", "\n    "))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(flag)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "armed\n"
            yield
        finally:
            flag.unlink()
            rounds = process.stdout.read()
    assert process.returncode == 0
    assert int(rounds) >= 12


def controls(daemon: Daemon, count: int = CONTROLS, name: str = "control") -> dict[str, bytes]:
    """Files of an honest neighbour."""
    files = {f"{name} {number}": b"honest %d" % number for number in range(count)}
    daemon.drop_all(files)
    return files


def wait_in_bucket(faulty: FaultyS3, files: dict[str, bytes]) -> None:
    def missing() -> list[str]:
        there = faulty.contents()
        return [path for path, content in files.items() if there.get(encoded(path)) != content]

    eventually(lambda: not missing(), message="all of them in the bucket")


RAW = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


def assert_well(daemon: Daemon) -> None:
    """It lives, all its threads too, and no file's name got into the log as it is."""
    assert daemon.alive
    for name in DEATHS:
        found = daemon.events(name)
        assert not found, found[0]
    written = daemon.log_path.read_bytes()
    assert not RAW.search(written), RAW.findall(written)
    assert b"Traceback" not in written


# --- what is swapped under the daemon's hands

SWAP_A_FILE = """
os.symlink("{outside}/f0", ".link"); os.rename(".link", "victim"); pause()
put("victim", b"inside"); pause()
os.mkfifo(".fifo"); os.rename(".fifo", "victim"); pause()
os.unlink("victim"); os.mkdir("victim"); pause()
os.rmdir("victim")
put("victim", b"inside"); os.symlink("{outside}/f1", ".link"); os.rename(".link", "victim")
put("victim", b"inside"); pause()
"""
SWAP_A_DIRECTORY = """
if n == 1:
    os.makedirs("d/e", exist_ok=True); os.symlink("{outside}", ".link")
for name in ("d/f0", "d/f1", "d/e/f0", "d/e/f1"):
    if n % 5 == 0 or not os.path.lexists(name):
        put(name, b"inside")
exchange("d", ".link"); pause(); exchange("d", ".link")
exchange("d", ".link"); exchange("d", ".link"); pause()
"""


@pytest.mark.parametrize(
    ("body", "action"),
    [
        pytest.param(SWAP_A_FILE, "delete", id="file-delete"),
        pytest.param(SWAP_A_FILE, "archive", id="file-archive"),
        pytest.param(SWAP_A_DIRECTORY, "keep", id="directory-keep"),
        pytest.param(SWAP_A_FILE, "keep", id="file-keep", marks=pytest.mark.slow),
        pytest.param(SWAP_A_DIRECTORY, "delete", id="directory-delete", marks=pytest.mark.slow),
        pytest.param(SWAP_A_DIRECTORY, "archive", id="directory-archive", marks=pytest.mark.slow),
    ],
)
def test_race_symlinks_swapped_in_lead_nowhere(
    body: str, action: str, build: Make, faulty: FaultyS3, outside: Path
) -> None:
    """Whatever a name leads to from one moment to the next: nothing outside is opened, listed, sent or removed."""
    daemon = build(action)
    before = folder_files(outside)
    with closing(Guard(outside, outside / "e")) as guard, daemon:
        daemon.wait_ready()
        with attack(daemon.folder, body.format(outside=outside)):
            for batch in range(3):
                wait_in_bucket(faulty, controls(daemon, CONTROLS // 3, f"batch {batch}"))
                scans = daemon.scans()
                eventually(lambda seen=scans: daemon.scans() > seen)  # type: ignore[misc]
        attacked = {"d/f0", "d/e/f1"} if body is SWAP_A_DIRECTORY else {"victim"}
        wait_in_bucket(faulty, dict.fromkeys(attacked, b"inside"))
        assert_well(daemon)
        assert daemon.stop() == 0
        assert guard.seen() == []

    assert folder_files(outside) == before
    assert SECRET not in faulty.contents().values()
    assert not [request for request in faulty.requests if request.method == "DELETE"]


SWAP_UNDER_MANY = """
if n == 1:
    os.symlink("{outside}", ".link"); os.mkdir("d")
    for number in range({count}):
        put(f"d/{{number}}", b"inside")
exchange("d", ".link"); exchange("d", ".link"); pause()
"""


@pytest.mark.parametrize("action", ["delete", "archive"])
def test_race_a_symlink_in_the_place_of_a_directory_of_many(
    action: str, build: Make, faulty: FaultyS3, outside: Path, tmp_path: Path
) -> None:
    """Exchanged all the time while its files are found, read, sent and removed: often enough through the link."""
    before = {f"{number}": SECRET for number in range(SWAPPED)}
    for name in before:
        (outside / name).write_bytes(SECRET)
    before |= folder_files(outside)
    daemon = build(action)
    with closing(Guard(outside)) as guard, daemon:
        daemon.wait_ready()
        with attack(daemon.folder, SWAP_UNDER_MANY.format(outside=outside, count=SWAPPED)):
            inside = {f"d/{number}": b"inside" for number in range(SWAPPED)}
            wait_in_bucket(faulty, inside)
        eventually(lambda: not os.listdir(daemon.folder / "d"))
        assert_well(daemon)
        assert daemon.stop() == 0
        assert guard.seen() == []

    assert folder_files(outside) == before
    assert faulty.contents() == inside
    if action == "archive":
        assert folder_files(tmp_path / "archive") == inside


def test_hard_links_to_what_one_may_not_read(build: Make, faulty: FaultyS3, outside: Path) -> None:
    """They are parked with the reason, and the others pass."""
    daemon = build("delete")
    (outside / "f0").chmod(0o600)
    if os.geteuid() == 0:
        os.chown(outside / "f0", 65534, 65534)
        daemon.program = (*unprivileged(), *daemon.program)
    else:
        (outside / "f0").chmod(0)
    os.utime(outside / "f0", (0, 0))  # while it is young, it may be about to get other permissions
    for number in range(20):
        (daemon.folder / f"stolen {number}").hardlink_to(outside / "f0")
    with daemon:
        wait_in_bucket(faulty, controls(daemon))
        failed = eventually(lambda: daemon.events("file.failed")[19:])
        assert failed[0]["error_code"] == "PermissionError"
        assert "read access" in failed[0]["hint"]
        assert_well(daemon)

    assert SECRET not in faulty.contents().values()
    assert (outside / "f0").stat().st_nlink == 21


@pytest.mark.parametrize("action", ["delete", "archive"])
def test_many_names_of_one_file(action: str, build: Make, faulty: FaultyS3, outside: Path, tmp_path: Path) -> None:
    """The removal of one changes the ctime of all: that is our own doing, and no reason to look at the others again."""
    names = {f"{number}" for number in range(300)}
    for name in names:
        (build(action).folder / name).hardlink_to(outside / "f0")
    with build(action) as daemon:
        eventually(lambda: folder_files(daemon.folder) == {})
        assert daemon.events("file.changed") == []
        assert_well(daemon)

    assert faulty.contents() == dict.fromkeys(names, SECRET)
    assert faulty.count("^PUT") == len(names)
    assert (outside / "f0").read_bytes() == SECRET
    archived = {entry.name for entry in (tmp_path / "archive").iterdir()} if action == "archive" else set()
    assert archived == (names if action == "archive" else set())


def identity_of(folder: Folder, path: str) -> Identity:
    identity = folder.identity_of(path)
    assert identity is not None
    return identity


def rewritten(file: Path, mtime_ns: int) -> Identity:
    """Its mtime is set back; the clock of an older kernel may stand still for some milliseconds."""
    file.write_bytes(b"else")
    os.utime(file, ns=(mtime_ns, mtime_ns))
    return Identity.of(file.stat())


def test_what_others_do_to_one_of_many_names_is_noticed(tmp_path: Path) -> None:
    """Another content, and the mtime set back: it was sent under neither name."""
    (tmp_path / "a").write_bytes(b"sent")
    for name in "bcd":
        (tmp_path / name).hardlink_to(tmp_path / "a")
    with closing(Folder(tmp_path)) as folder:
        sent = identity_of(folder, "a")
        assert folder.unlink_if_same("a", sent)
        assert folder.unlink_if_same("b", sent)

        before = folder.identity_of("c")
        eventually(lambda: rewritten(tmp_path / "c", sent.mtime_ns) != before)

        assert not folder.unlink_if_same("c", sent)
        changed = identity_of(folder, "c")
        assert folder.unlink_if_same("c", changed)
        assert not folder.unlink_if_same("d", sent), "sent before the change"
        assert folder.unlink_if_same("d", changed)


@contextlib.contextmanager
def around_the_first_move(before: Callable[[], object], after: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Somebody acts between the look at a file and its move, and right after the move."""
    move, first = rename_module.noreplace, [True]

    def raced(*where: Any) -> None:
        if not first:
            return move(*where)
        first.clear()
        before()
        move(*where)
        after()
        return None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rename_module, "noreplace", raced)
        yield


def test_race_the_directory_goes_while_a_file_in_it_is_archived(tmp_path: Path) -> None:
    """What was replaced in that moment, and cannot have its place back, is not left in the archive unsent."""
    root = tmp_path / "spool"
    hot = root / "sub" / "hot"
    hot.parent.mkdir(parents=True)
    hot.write_bytes(b"sent")

    def replace() -> None:
        hot.unlink()
        hot.write_bytes(b"not sent")

    with closing(Folder(root)) as folder:
        identity = identity_of(folder, "sub/hot")
        with around_the_first_move(replace, hot.parent.rmdir):
            assert folder.move_if_same("sub/hot", identity, tmp_path / "archive") is None

    assert folder_files(root) == {"hot": b"not sent"}
    assert folder_files(tmp_path / "archive") == {}


@pytest.mark.parametrize("action", ["delete", "archive"])
@pytest.mark.parametrize("new", ["file", "directory", "symlink", "dangling symlink", "file again", "longer"])
def test_race_replaced_while_it_is_removed(new: str, action: str, tmp_path: Path) -> None:
    """What took the name between the look and the removal has not been sent: it stays."""
    root = tmp_path / "spool"
    root.mkdir()
    hot = root / ("h" * 255)
    hot.write_bytes(b"sent")

    def replace() -> None:
        if new == "longer":
            with hot.open("ab") as file:
                file.write(b" and more")
            return
        hot.unlink()
        if new.startswith("file"):
            hot.write_bytes(b"not sent")
        else:
            make_odd(hot, new, Path("/etc/passwd" if new == "symlink" else "nowhere"))

    def replace_again() -> None:
        if new == "file again":
            hot.write_bytes(b"newer still")

    with closing(Folder(root)) as folder:
        identity = identity_of(folder, hot.name)
        with around_the_first_move(replace, replace_again):
            if action == "delete":
                assert not folder.unlink_if_same(hot.name, identity)
            else:
                assert folder.move_if_same(hot.name, identity, tmp_path / "archive") is None

    if new == "directory":
        assert hot.is_dir()
    elif "symlink" in new:
        assert hot.is_symlink()
    else:
        content = {"file": b"not sent", "file again": b"newer still", "longer": b"sent and more"}[new]
        assert hot.read_bytes() == content
    second = {f"{'h' * 253}.1"} if new == "file again" else set()
    assert set(os.listdir(root)) == {hot.name} | second
    assert all((root / name).read_bytes() == b"not sent" for name in second)
    assert folder_files(tmp_path / "archive") == {}


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_bears_the_reserved_name_is_not_replaced(kind: str, tmp_path: Path) -> None:
    """A removal that was cut short has left another content under it, which may never have been sent."""
    root = tmp_path / "spool"
    root.mkdir()
    (root / "a").write_bytes(b"sent")
    aside = root / ".s3spool-removing.a"
    match kind:
        case "file":
            aside.write_bytes(b"not sent")
        case "directory":
            (aside / "below").mkdir(parents=True)
        case "symlink":
            aside.symlink_to("/etc/passwd")
    with closing(Folder(root)) as folder:
        identity = identity_of(folder, "a")
        assert folder.unlink_if_same("a", identity)

    assert os.listdir(root) == ["a.1"]
    if kind == "file":
        assert (root / "a.1").read_bytes() == b"not sent"


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_no_symlink_in_the_archive_is_followed(kind: str, tmp_path: Path) -> None:
    """A symlink swapped in for a file may have come there by a race: it must not lead what follows anywhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "archive/sub").mkdir(parents=True)
    target = tmp_path / "archive/sub/deep"
    if kind == "symlink":
        target.symlink_to(outside)
    else:
        target.write_bytes(b"archived before")
    (tmp_path / "spool/sub/deep").mkdir(parents=True)
    (tmp_path / "spool/sub/deep/a").write_bytes(b"sent")
    with closing(Folder(tmp_path / "spool")) as folder:
        identity = identity_of(folder, "sub/deep/a")
        with pytest.raises(NotADirectoryError):
            folder.move_if_same("sub/deep/a", identity, tmp_path / "archive")

    assert os.listdir(outside) == []
    assert (tmp_path / "spool/sub/deep/a").read_bytes() == b"sent"


@pytest.mark.parametrize("newer", [False, True])
def test_what_a_dead_process_was_about_to_remove_gets_its_name_back(newer: bool, build: Make, faulty: FaultyS3) -> None:
    """Killed between the two steps of a removal: the file is not hidden for ever, nor takes a newer one's place.

    No receipt says that S3 has it, so it goes there, under a free name where its own is taken.
    """
    daemon = build("delete")
    (daemon.folder / "d").mkdir()
    daemon.drop("d/.s3spool-removing.x", b"half removed")
    if newer:
        daemon.drop("d/x", b"newer")
    with daemon:
        wait_in_bucket(faulty, {"d/x": b"newer", "d/x.1": b"half removed"} if newer else {"d/x": b"half removed"})
        eventually(lambda: not folder_files(daemon.folder))
        assert_well(daemon)


# --- names

DEEP = b"/".join([b"d"] * 100 + [b"file"])
LONG = b"/".join([b"l" * 250] * 4 + [b"x" * 200])  # deeper ones: tests/end_to_end/test_deep_folder.py
ODD = [
    b"n" * 255,
    "\u00fc".encode() * 127,
    "\u65e5".encode() * 85,
    DEEP,
    b"new\nline",
    b"\r\n",
    b"\n",
    b"\x1b[2J\x1b]0;owned\x07",
    b"\x7f\x08\x08rubbed out",
    b"c1 \xc2\x9b31m \xc2\x85",
    b"..%2f..%2fetc%2fpasswd",
    b"%2e%2e/%2e%2e/x",
    b"...",
    b"..../...",
    b"a\\..\\b",
    b"\\",
    b"latin \xe9\xff\xfe",
    b"\xff/\xfe",
    b"half of a pair \xed\xa0\x80",
    b"line\xe2\x80\xa8separator\xe2\x80\xa9",
    "\u202etxt.exe".encode(),
    "\u2066isolated\u2069".encode(),
    b"\xef\xbb\xbfbyte order mark",
    b"\xef\xbf\xbe\xef\xbf\xbf",
    "caf\u00e9".encode(),
    "cafe\u0301".encode(),
    b"Case",
    b"case",
    b"CASE",
    b" leading",
    b"trailing ",
    b"   ",
    b"dot.",
    b"dots..",
    b"x?y#z&a=b+%25",
    b"x?partNumber=1&uploadId=2",
    b"a;b@c:d,e$f!g*h'i(j)",
    b"{hostname} %Y %s {0}",
    b"<Key>&amp;</Key>",
    b'"quoted"',
    b"`id` $(id) ; rm -rf ~",
    b"-x",
    b"--help",
    b"-",
    b"//",
    b"\xf0\x9f\x92\xa9",
]
ODD = [name for name in ODD if name.strip(b"/")]


def put(folder: Path, path: bytes, content: bytes) -> None:
    """Complete at once, whatever its name: written under a hidden name, level by level, for paths of any length."""
    *directories, name = path.split(b"/")
    here = os.open(folder, os.O_RDONLY)
    hidden = os.open(".hidden", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=here)
    os.write(hidden, content)
    os.close(hidden)
    root = os.dup(here)
    for directory in directories:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, dir_fd=here)
        below = os.open(directory, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.rename(".hidden", name, src_dir_fd=root, dst_dir_fd=here)
    os.close(root)
    os.close(here)


@pytest.mark.parametrize(("when", "action"), [("before", "archive"), ("meanwhile", "keep"), ("meanwhile", "delete")])
def test_names_that_mean_harm(action: str, when: str, build: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """Each gets a key of its own that tells its name, whether the scan finds it or the watch."""
    daemon = build(action, log={"level": "debug"}, watch={"rescan_s": 3600, "exclude": [".hidden", "*.part"]})
    files = {os.fsdecode(name): b"content of %d" % number for number, name in enumerate(ODD)}

    def drop_all() -> None:
        for path, content in files.items():
            put(daemon.folder, os.fsencode(path), content)
        put(daemon.folder, LONG, b"too long for a key")

    if when == "before":
        drop_all()
    with daemon:
        daemon.wait_event("scan.finished")
        if when == "meanwhile":
            drop_all()
        wait_in_bucket(faulty, controls(daemon, 20) | files)
        (parked,) = eventually(lambda: daemon.events("file.parked"))
        assert parked["error_code"] == "KeyTooLongError"
        if action != "keep":
            eventually(lambda: not folder_files(daemon.folder).keys() & files.keys())
        assert_well(daemon)
        assert daemon.stop() == 0

    stored = faulty.contents()
    assert {decoded(key) for key in stored} >= set(files)
    assert len(stored) == len(files) + 20
    assert all(len(key.encode()) <= MAX_KEY_BYTES for key in stored)
    assert LONG in {os.fsencode(path) for path in folder_files(daemon.folder)}
    if action == "archive":
        assert folder_files(tmp_path / "archive").items() >= files.items()


def test_a_name_of_full_length_is_archived_twice(build: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """Where ".1" would not fit any more the archived name is cut, between two characters."""
    daemon = build("archive")
    name = "\u00fc" * 127 + "x"
    with daemon:
        for content in (b"first", b"second"):
            daemon.drop("short", content)
            put(daemon.folder, name.encode(), content)
            wait_in_bucket(faulty, {name: content})
            eventually(lambda: not folder_files(daemon.folder))
        assert not daemon.events("file.failed")

    assert folder_files(tmp_path / "archive") == {
        name: b"first",
        "\u00fc" * 126 + ".1": b"second",
        "short": b"first",
        "short.1": b"second",
    }


def test_a_terminal_shows_names_and_does_not_obey_them(build: Make, faulty: FaultyS3) -> None:
    """On a real terminal: our own colours at most, nothing of what a name wants it to do."""
    daemon = build(log={"format": "auto", "level": "debug"})
    harm = [b"\x1b[2J\x1b]0;owned\x07", b"c1 \xc2\x9b2J", b"\x7f\x08", b"bell\x07", "\u202eexe".encode(), b"a\nb\rc"]
    for name in harm:
        put(daemon.folder, name, b"content")
    daemon.config_path.write_text(to_toml(daemon.config))
    reader, terminal = pty.openpty()
    shown = bytearray()
    command = [*daemon.program, "run", "--config", str(daemon.config_path)]
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=daemon.environment, start_new_session=True
    ) as process:
        os.close(terminal)
        os.set_blocking(reader, False)

        def read_on() -> int:
            with contextlib.suppress(BlockingIOError, OSError):
                while data := os.read(reader, 65536):
                    shown.extend(data)
            return shown.count(b"file.uploaded")

        try:
            eventually(lambda: read_on() >= len(harm), message="all shown")
        finally:
            process.send_signal(signal.SIGTERM)
            eventually(lambda: read_on() is not None and process.poll() is not None)
            os.close(reader)

    for sign in (b"\x1b[2J", b"\x1b]", b"\x07", b"\x08", b"\x7f", b"\xc2\x9b", "\u202e".encode()):
        assert sign not in shown
    assert re.search(rb"a\\nb\\rc", shown)


# --- too many, too often, too large


REWRITE = """
for name, size in (("small", 60_000), ("large", 600_000)):
    with open(name, "r+b" if os.path.exists(name) else "wb", buffering=0) as file:
        for _ in range(4):
            file.write(b"%016d" % n * (size // 64)); pause()
    pause()
"""


def test_a_file_that_is_rewritten_for_ever(build: Make, faulty: FaultyS3) -> None:
    """It is never seen torn, holds nobody up, and is sent as it is when its writer lets go."""
    daemon = build()
    seen: set[bytes] = set()

    def whole() -> None:
        for name in ("small", "large"):
            if body := faulty.contents().get(name):
                seen.add(body[:16])
                # A larger one is read twice, and looked at afterwards: a writer that holds still in between tears the
                # attempt, which is no success.
                torn = body != body[:16] * (len(body) // 16)
                uploaded = {event["etag"] for event in daemon.events("file.uploaded", path=name)}
                assert not torn or (name == "large" and md5_hex(body) not in uploaded)

    with daemon:
        daemon.wait_ready()
        with attack(daemon.folder, REWRITE):
            for batch in range(5):
                wait_in_bucket(faulty, controls(daemon, 20, f"batch {batch}"))
                whole()
        wait_in_bucket(faulty, {name: (daemon.folder / name).read_bytes() for name in ("small", "large")})
        whole()
        assert_well(daemon)
    assert seen


LOOPS = {
    "directories that come and go": """
os.makedirs("loop/a/b", exist_ok=True); put("loop/a/b/x", b"%d" % n)
os.rename("loop", "other"); os.unlink("other/a/b/x") if os.path.exists("other/a/b/x") else None
os.removedirs("other/a/b"); pause()
""",
    "a directory with two names": """
if n == 1:
    os.mkdir("one")
    for number in range(30):
        put(f"one/{number}", b"moved about")
pause(); os.rename("one", "two"); pause(); os.rename("two", "one")
""",
}


@pytest.mark.parametrize(("body", "action"), list(zip(LOOPS.values(), ["keep", "delete"], strict=True)), ids=LOOPS)
def test_directories_in_a_loop(body: str, action: str, build: Make, faulty: FaultyS3) -> None:
    """Nothing piles up, nobody waits, and what is left in the end is sent from where it is."""
    daemon = build(action)
    with daemon:
        daemon.wait_ready()
        with attack(daemon.folder, body):
            wait_in_bucket(faulty, controls(daemon))
            before = daemon.process_status("VmRSS"), descriptors(daemon)
            scans = daemon.scans()
            eventually(lambda: daemon.scans() >= scans + 3)
            assert daemon.process_status("VmRSS") < before[0] + 30 * 1024
            assert descriptors(daemon) < before[1] + 50
        wait_in_bucket(faulty, folder_files(daemon.folder))
        if action == "delete":
            eventually(lambda: not folder_files(daemon.folder))
        assert_well(daemon)


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


REPLACE = """
put("hot", b"%d" % n)
"""


@pytest.mark.parametrize("action", ["keep", "delete"])
def test_a_file_that_is_replaced_all_the_time(action: str, build: Make, faulty: FaultyS3) -> None:
    """The last content wins, and is in the bucket before it goes."""
    daemon = build(action)
    with daemon:
        daemon.wait_ready()
        for burst in range(2):
            with attack(daemon.folder, REPLACE + 'open("../last", "wb").write(b"%d" % n)'):
                wait_in_bucket(faulty, controls(daemon, 30, f"burst {burst}"))
            last = (daemon.home / "last").read_bytes()
            wait_in_bucket(faulty, {"hot": last})
            if action == "delete":
                eventually(lambda: not (daemon.folder / "hot").exists())
        assert_well(daemon)


# --- the control socket


def test_a_control_socket_under_attack(build: Make, faulty: FaultyS3) -> None:
    """Garbage, half lines, clients that drip, never read or come by the thousand: the daemon stays as it is."""
    daemon = build(upload={"workers": 4})
    with daemon, ExitStack() as stack:
        daemon.wait_ready()
        wait_in_bucket(faulty, controls(daemon, name="warm"))
        before = daemon.process_status("Threads"), descriptors(daemon), daemon.process_status("VmRSS")

        for garbage in (b"\0" * 5000, b"{" * 5000, b"\xff", b'{"command": 5}', b"[" * 100_000):
            with closing(connected(daemon)) as connection:
                connection.sendall(garbage + b"\n")
                assert b'{"error":' in connection.recv(4096)
        oversize = b"x" * 3_000_000
        with closing(connected(daemon)) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(oversize)
        for _ in range(10_000):
            connected(daemon).close()
        assert daemon.cli("status").returncode == 0

        hold = hold_open(daemon, stack)
        assert hold >= control.USER_CONNECTIONS
        wait_in_bucket(faulty, controls(daemon))
        assert daemon.process_status("Threads") <= before[0] + control._THREADS
        # A busy machine takes a moment to refuse those that it has accepted.
        eventually(lambda: descriptors(daemon) <= before[1] + control.USER_CONNECTIONS + 20)
        stack.close()

        assert daemon.cli("status").returncode == 0
        assert daemon.process_status("VmRSS") < before[2] + 40 * 1024
        assert_well(daemon)
        assert daemon.stop() == 0


def connected(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(daemon.socket_path))  # blocks while the queue is full
        connection.settimeout(WAIT_S)
    except BaseException:
        connection.close()
        raise
    return connection


def hold_open(daemon: Daemon, stack: ExitStack) -> int:
    """As many connections that say half a line as the daemon and the kernel take; returns how many that were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(10_000, soft if hard == resource.RLIM_INFINITY else hard) - 200
    held = 0
    for _ in range(wanted):
        connection = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
        connection.setblocking(False)
        try:
            connection.connect(str(daemon.socket_path))
        except BlockingIOError:
            return held  # the queue is full: nobody else gets in
        with contextlib.suppress(BrokenPipeError):
            connection.send(b'{"command": "sta')
        held += 1
    return held
