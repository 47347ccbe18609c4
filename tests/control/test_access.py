"""Droppers are not controllers: what each user may do at the control socket, with real users."""

from __future__ import annotations

import grp
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from s3spool.control.access import Access, Sight
from s3spool.control.peer import Peer
from s3spool.control.server import ControlServer
from s3spool.errors import ConfigError, S3SpoolError
from s3spool.ledger.rows import Identity, Receipt
from s3spool.ledger.store import Ledger
from support.daemon import Daemon, to_toml
from support.faulty import FaultyS3
from support.processes import finished
from support.waiting import eventually

pytestmark = pytest.mark.integration

WAIT_S = 60.0
SOON_S = 15.0  # half of what a connection may last: nobody waits for the end of another one
SERVICE, ALICE, BOB, OPERATOR = 64_001, 64_002, 64_003, 64_004  # users
DROPPERS = 64_100  # a group: the daemon's
CONTROLLERS = grp.getgrgid(1)  # some group that exists everywhere


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that all users may pass: pytest's own are its user's alone."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    home = Path(f"/tmp/s3spool-access-{os.getpid()}")  # noqa: S108 - named after this process
    home.mkdir(mode=0o755)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def daemon(home: Path, faulty: FaultyS3) -> Daemon:
    """As the package has it: a user of its own, a folder that its group may write, a state directory of its own."""
    daemon = Daemon(
        home,
        faulty,
        watch={"rescan_s": 1, "directory": str(home / "spool")},
        service={"control_group": CONTROLLERS.gr_name, "control_socket": str(home / "run/control.sock")},
    )
    daemon.socket_path = home / "run/control.sock"
    for name, mode in (("spool", 0o3770), ("state", 0o700), ("run", 0o750)):
        (home / name).mkdir(exist_ok=True)
        os.chown(home / name, SERVICE, DROPPERS)
        (home / name).chmod(mode)
    daemon.program = (*as_user(SERVICE), *daemon.program)
    return daemon


def as_user(uid: int, *groups: int) -> tuple[str, ...]:
    return (
        "setpriv",
        f"--reuid={uid}",
        f"--regid={DROPPERS}",
        f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups",
        "--inh-caps=-all",
    )


def told(daemon: Daemon, user: tuple[str, ...], command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return finished(
        *user,
        sys.executable,
        "-m",
        "s3spool",
        command,
        "--config",
        str(daemon.config_path),
        *arguments,
        env=daemon.environment,
        cwd="/",
    )


def drop(daemon: Daemon, uid: int, path: str, mode: int, content: str = "content") -> None:
    script = (
        f"umask 0; mkdir -p -m 0770 $(dirname {path}); echo {content} > {path}.part;"
        f" chmod {mode:o} {path}.part; touch -d @0 {path}.part; mv {path}.part {path}"
    )
    subprocess.run([*as_user(uid), "sh", "-c", script], cwd=daemon.folder, check=True, timeout=WAIT_S)


def test_what_each_user_may(daemon: Daemon) -> None:
    """Orders and everybody's names are for root, the daemon's user and the second group; droppers ask about files."""
    alice, bob, operator = as_user(ALICE), as_user(BOB), as_user(OPERATOR, CONTROLLERS.gr_gid)
    with daemon:
        daemon.wait_ready(WAIT_S)
        drop(daemon, ALICE, "shared", 0o644)
        drop(daemon, ALICE, "for-the-group", 0o640)
        drop(daemon, ALICE, "private", 0o600)
        daemon.wait_event("file.uploaded", WAIT_S, path="shared")
        daemon.wait_event("file.failed", WAIT_S, path="private")

        for orders in (["list"], ["retry", "--all"], ["retry", "private"], ["forget", "shared"], ["rescan"], ["wait"]):
            for dropper in (alice, bob):
                done = told(daemon, dropper, *orders)
                assert (done.returncode, done.stdout) == (1, "")
                assert "permission denied: only root, the daemon's user (64001) and members of group" in done.stderr
                assert done.stderr.count("\n") == 1
            if orders != ["wait"]:
                for controller in (operator, as_user(SERVICE), ()):
                    assert told(daemon, controller, *orders).returncode == 0, orders
        assert "shared" in told(daemon, operator, "list", "--all").stdout

        for user, seen in ((alice, {"shared", "for-the-group", "private"}), (bob, {"shared", "for-the-group"})):
            for name in ("shared", "for-the-group", "private"):
                done = told(daemon, user, "why", name)
                assert (done.returncode == 0) == (name in seen)
                if name not in seen:
                    assert "permission denied: only those who own or may read it" in done.stderr
                    assert done.stderr.replace(name, "nothing") == told(
                        daemon, user, "why", "nothing/at/all"
                    ).stderr.replace("nothing/at/all", "nothing")
        assert told(daemon, alice, "wait", "shared", "--timeout", "50").returncode == 0
        assert told(daemon, alice, "key", "shared").stdout == "shared\n"

        assert "private" in told(daemon, operator, "status").stdout
        for dropper in (alice, bob):
            done = told(daemon, dropper, "status")
            assert (done.returncode, "private" in done.stdout) == (0, False)
        assert daemon.stop() == 0


def test_a_file_that_is_gone_has_a_state_for_those_who_saw_its_name(daemon: Daemon) -> None:
    """With `delete` a dropper still hears what became of a file, but no key or checksum of others' files."""
    daemon.config["after"] = {"action": "delete"}
    with daemon:
        daemon.wait_ready(WAIT_S)
        drop(daemon, ALICE, "here", 0o640)
        drop(daemon, ALICE, "closed/there", 0o660)
        daemon.wait_uploaded(2, WAIT_S)
        eventually(lambda: not (daemon.folder / "here").exists(), timeout_s=WAIT_S)
        eventually(lambda: not (daemon.folder / "closed/there").exists(), timeout_s=WAIT_S)
        (daemon.folder / "closed").chmod(0o700)

        answer = json.loads(told(daemon, as_user(BOB), "why", "here", "--json").stdout)
        assert set(answer) == {"path", "state", "why"}
        assert answer["state"] == "uploaded"
        assert told(daemon, as_user(BOB), "wait", "here").returncode == 0
        assert "permission denied" in told(daemon, as_user(BOB), "why", "closed/there").stderr
        assert "checksum" in told(daemon, (), "why", "closed/there", "--json").stdout
        assert daemon.stop() == 0


CROWDS = {
    "idle": (40, b""),
    "half a line": (40, b'{"command": "sta'),
    "slow readers": (9, b'{"command": "list"}\n'),
    "of status": (40, b'{"command": "status"}\n'),
}


def test_a_crowd_of_one_user_delays_nobody(daemon: Daemon) -> None:
    """Silence, half requests, answers that are not read: `status` comes at once for others, root and the same user."""
    fill(daemon, 20_000)
    operator = as_user(OPERATOR, CONTROLLERS.gr_gid)
    with daemon:
        daemon.wait_ready(WAIT_S)
        for crowd, (count, said) in CROWDS.items():
            command = [*operator, sys.executable, "-c", CROWD, str(daemon.socket_path), str(count), said.decode()]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
                assert held.stdin is not None
                assert held.stdout is not None
                assert held.stdout.readline() == b"held\n", crowd
                for user in (operator, as_user(BOB), ()):
                    before = time.monotonic()
                    assert told(daemon, user, "status").returncode == 0, crowd
                    assert time.monotonic() - before < SOON_S, crowd
                held.stdin.close()
        assert daemon.stop() == 0


CROWD = """
import socket, sys
path, count, said = sys.argv[1:]
held = []
for _ in range(int(count)):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(path)
    held[-1].sendall(said.encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_slow_reader_of_list_holds_no_transaction(daemon: Daemon) -> None:
    """The WAL is shortened while somebody reads a list a line a minute."""
    fill(daemon, 20_000)
    with daemon:
        daemon.wait_ready(WAIT_S)
        command = [sys.executable, "-m", "s3spool", "list", "--all", "--json", "--config", str(daemon.config_path)]
        with ExitStack() as stack:
            for _ in range(8):
                reader = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, env=daemon.environment))
                stack.callback(reader.kill)
                assert reader.stdout is not None
                assert reader.stdout.read(1) == b"{"
            for number in range(1000):
                daemon.drop(f"new-{number}")
            daemon.wait_uploaded(1000, WAIT_S)
            wal = daemon.state_directory / "ledger.sqlite3-wal"
            busy = finished(
                sys.executable, "-c", CHECKPOINT, str(daemon.state_directory / "ledger.sqlite3"), check=True
            ).stdout
            assert busy.strip() == "0"
            assert wal.stat().st_size < 8 * 2**20
        assert daemon.stop() == 0


CHECKPOINT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=20)
busy, frames, moved = db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
print(busy or frames - moved)
"""


def fill(daemon: Daemon, count: int) -> None:
    """Receipts of files that were sent, and are gone."""
    ledger = Ledger(daemon.state_directory / "ledger.sqlite3", destination="elsewhere")
    ledger.start()
    for number in range(count):
        identity = Identity(1, number, 4096, 1, 1)
        ledger.record_receipt(receipt(f"sent/{number:06}-{'x' * 200}", identity))
    assert ledger.close(WAIT_S)
    for path in daemon.state_directory.iterdir():
        os.chown(path, SERVICE, DROPPERS)


def receipt(path: str, identity: Identity) -> Receipt:
    values: dict[str, Any] = {
        "path": path, "identity": identity, "destination": 1, "key": path, "etag": "e", "checksum": "c",
        "version_id": "", "read_at": time.time(), "uploaded_at": time.time(), "after": "keep",
    }  # fmt: skip
    return Receipt(**values)


# --- the rules by themselves


def test_the_kernel_names_all_groups_of_a_peer() -> None:
    """Those of the process that connected, whatever its name service says."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"\0s3spool-test-{os.getpid()}")
        listener.listen()
        script = "import socket, sys; c = socket.socket(socket.AF_UNIX); c.connect('\\0' + sys.argv[1]); c.recv(1)"
        command = [*as_user(ALICE, 7, 8), sys.executable, "-c", script, f"s3spool-test-{os.getpid()}"]
        with subprocess.Popen(command):
            connection, _ = listener.accept()
            with closing(connection):
                assert Peer.of(connection) == Peer(ALICE, frozenset({DROPPERS, 7, 8}))


def test_links_and_access_lists_grant_nothing(home: Path) -> None:
    """No symlink is followed to a file that a user may read, and a list that may deny counts as a denial."""
    folder = home / "folder"
    (folder / "real").mkdir(parents=True)
    (folder / "real/file").write_text("x")
    (folder / "link").symlink_to("real")
    (folder / "real/link").symlink_to("file")
    (folder / "fifo").symlink_to("/etc/passwd")
    access = Access("", folder)
    bob = Peer(BOB, frozenset({BOB}))

    assert access.sight(bob, "real/file") is Sight.ALL
    assert access.sight(bob, "link/file") is Sight.NOTHING
    assert access.sight(bob, "none/file") is Sight.NOTHING
    assert access.sight(bob, "real/none") is Sight.STATE
    (folder / "real").chmod(0o711)
    assert access.sight(bob, "real/none") is Sight.NOTHING
    (folder / "real").chmod(0o700)
    assert access.sight(bob, "real/file") is Sight.NOTHING
    (folder / "real").chmod(0o755)
    home.chmod(0o700)
    assert access.sight(bob, "real/file") is Sight.NOTHING
    home.chmod(0o755)
    entries = [(0x01, 6, -1), (0x02, 0, BOB), (0x04, 4, -1), (0x10, 4, -1), (0x20, 4, -1)]
    acl = b"\2\0\0\0" + b"".join(
        t.to_bytes(2, "little") + p.to_bytes(2, "little") + (u & 0xFFFFFFFF).to_bytes(4, "little")
        for t, p, u in entries
    )
    os.setxattr(folder / "real/file", "system.posix_acl_access", acl)
    assert access.sight(bob, "real/file") is Sight.NOTHING
    assert access.sight(Peer(0, frozenset()), "real/file") is Sight.ALL


def test_a_group_that_does_not_exist(home: Path) -> None:
    """Is a mistake in the configuration, said at the start."""
    with pytest.raises(ConfigError, match=r"service.control_group = .*no-such-group.*: there is no such group"):
        Access("no-such-group", home)


def test_json_holds_no_character_that_a_terminal_acts_on(daemon: Daemon) -> None:
    """DEL, C1 and direction marks are escapes in JSON and in `key`; the JSON says the same as before."""
    name = "a\x7fb\x85c\u202ed\U000e0041é"
    with daemon:
        daemon.wait_ready(WAIT_S)
        drop(daemon, ALICE, "plain", 0o644)
        daemon.drop(name)
        daemon.wait_uploaded(2, WAIT_S)
        path = str(daemon.folder / name)
        answers = [
            told(daemon, (), *command.split(), *arguments).stdout
            for command, *arguments in (
                ["list --all --json"], ["list", "--all"], ["why --json", path], ["why", path],
                ["key", path], ["key --json", path], ["status --json"], ["status"],
            )
        ]  # fmt: skip
        for answer in answers:
            assert answer, answers
            assert not {"\x7f", "\x85", "\u202e", "\U000e0041"} & set(answer)
        key = json.loads(answers[5])
        assert name in {row["path"] for row in map(json.loads, answers[0].splitlines())}
        assert key == "a%7Fb%C2%85c\u202ed\U000e0041é"
        assert answers[4] == "a%7Fb%C2%85c\\u202ed\\U000e0041é\n"
        assert daemon.stop() == 0


def test_orders_of_a_dropper_are_refused_on_the_wire(daemon: Daemon) -> None:
    """Not by the command line, which anybody can replace."""
    with daemon:
        daemon.wait_ready(WAIT_S)
        script = (
            "import socket, sys\n"
            f"c = socket.socket(socket.AF_UNIX); c.connect({str(daemon.socket_path)!r})\n"
            "c.sendall(sys.argv[1].encode() + b'\\n'); print(c.makefile().read())"
        )
        for command in ("list", "retry", "forget", "rescan"):
            request = json.dumps({"command": command, "all": True, "path": "a"})
            said = finished(*as_user(ALICE), sys.executable, "-c", script, request, check=True).stdout
            assert json.loads(said)["denied"] is True
        assert daemon.stop() == 0


def test_nothing_that_a_socket_says_moves_the_cursor(home: Path, daemon: Daemon) -> None:
    """Whatever listens there: escapes in every text of every answer are shown, not obeyed."""
    bad = "\x1b[2J\x9b\u202e\x7f"

    def refuse(*_: object) -> None:
        raise S3SpoolError(f"no: {bad}")

    row = {"path": bad, "state": bad, "error_code": bad, "error": bad, "attempts": 1, "next_attempt": bad}
    sent = {"path": bad, "state": "uploaded", "bytes": 1, "uploaded_at": bad, "key": bad}
    status = {
        "version": bad, "pid": 1, "started": bad, "state": bad, "oldest_unsent_s": 1.0, "last_error": bad,
        "destination": dict.fromkeys(("bucket", "prefix", "endpoint", "since", "reason"), bad) | {"state": "paused"},
        "watch": {"directory": bad, "backend": bad, "overflows": 1, "files_missed": 1}, "files": {bad: 1},
        "bytes": {"uploaded": 1, "in_flight": 1}, "rate": {"files_per_s": 1.0, "bytes_per_s": 1.0},
        "large_files": [{"path": bad, "bytes": 2, "bytes_uploaded": 1}],
    }  # fmt: skip
    where = {"below_root": str(daemon.folder)[1:], "prefix": bad}
    answers: dict[str, Any] = {
        "status": lambda *_: status,
        "list": lambda *_: {"rows": [row, sent], "next": None},
        "why": lambda *_: {"path": bad, "state": bad, "why": bad, "hint": bad},
        "where": lambda *_: where,
    }
    daemon.config_path.write_text(to_toml(daemon.config))
    with closing(
        ControlServer(daemon.socket_path, dict.fromkeys(("retry", "forget", "rescan"), refuse) | answers)
    ) as it:
        it.start()
        for command, *arguments in (
            ["status"], ["status", "--json"], ["list"], ["list", "--json"], ["why", "a"], ["why", "a", "--json"],
            ["key", "a"], ["key", "a", "--json"], ["retry", "a"], ["forget", "a"], ["rescan"], ["wait"],
        ):  # fmt: skip
            done = told(daemon, (), command, *arguments)
            said = done.stdout + done.stderr
            assert said, command
            assert not set(bad) - set("[2J") & set(said), (command, said)
            assert "Traceback" not in said, said
