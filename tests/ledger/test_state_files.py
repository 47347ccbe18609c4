"""The state directory's owner plants links there, and root types commands: nothing of root's is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3spool.errors import LedgerError
from s3spool.ledger import database
from s3spool.ledger.database import DirectoryLock, holder, open_for_reading, open_for_writing
from s3spool.ledger.files import _account, become_owner, make_private
from s3spool.ledger.store import Ledger
from support.rows import a_retry
from support.users import DAEMON, DROPPER, ROOTS, as_user, becoming, open_place, require_root, run_until_ready

pytestmark = pytest.mark.integration
COMMANDS = (["retry", "--all"], ["forget", "a"], ["list"], ["status"], ["why", "a"], ["check"], ["run"])
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true"}
PRIVATE = "root's own\n"
NAMELESS = 2_000_000_000  # a user and a group that have no name


@pytest.fixture
def place() -> Iterator[Path]:
    require_root()
    with open_place() as place:
        yield place


class House:
    """A daemon's state directory, a file of root's that its owner cannot reach, and a configuration of root's."""

    def __init__(self, place: Path) -> None:
        self.state = place / "state"
        self.vault = place / "vault"
        self.config = place / "s3spool.toml"
        for directory in (self.state, self.vault, place / "spool"):
            directory.mkdir()
        self.vault.chmod(0o700)
        self.config.write_text(
            f'[watch]\ndirectory = "{place}/spool"\n[destination]\nbucket = "bucket"\n'
            f'endpoint_url = "http://127.0.0.1:9"\n[state]\ndirectory = "{self.state}"\n'
        )
        make_ledger(self.state / "ledger.sqlite3")
        for path in (self.state, *self.state.iterdir()):
            os.chown(path, DAEMON, DAEMON)

    def plant(self, name: str, target: Path) -> None:
        as_user(DAEMON, "ln", "-sfn", target, self.state / name)

    def root_types(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.run("timeout", "60", *ROOTS, *command)

    def root_starts_it(self) -> str:
        """What the daemon says until it is ready."""
        return run_until_ready(*ROOTS, "run", "--config", self.config, cwd="/", env=ENVIRONMENT)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--config", self.config],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            env=ENVIRONMENT,
        )

    def owners(self) -> set[int]:
        """All users and groups."""
        found = [path.lstat() for path in self.state.iterdir()]
        return {number for status in found for number in (status.st_uid, status.st_gid)}


def make_ledger(path: Path) -> None:
    ledger = Ledger(path, destination="here")
    ledger.start()
    ledger.record_retry(a_retry("a", error="the other ledger"))
    assert ledger.close(10)


def open_lock(path: Path) -> DirectoryLock:
    return DirectoryLock(path.parent)


@pytest.fixture
def house(place: Path) -> House:
    return House(place)


@pytest.mark.parametrize("command", [["retry", "--all"], ["forget", "a"], ["run"]], ids=" ".join)
def test_the_lock_leads_to_a_file_of_roots(house: House, command: list[str]) -> None:
    """Previously it was emptied, and a process id written into it."""
    victim = house.vault / "shadow"
    victim.write_text(PRIVATE)
    house.plant("daemon.lock", victim)

    house.root_types(*command)

    assert victim.read_text() == PRIVATE


def test_the_ledger_leads_to_where_nothing_is(house: House) -> None:
    """Previously root made a file there, with names in it that droppers choose."""
    (house.state / "ledger.sqlite3").unlink()
    house.plant("ledger.sqlite3", house.vault / "cron")

    house.root_types("run")

    assert list(house.vault.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_ledger_leads_to_another_one(house: House, command: list[str]) -> None:
    """Previously root told the names in it, and changed what it says."""
    other = house.vault / "ledger.sqlite3"
    make_ledger(other)
    before = other.read_bytes()
    house.plant("ledger.sqlite3", other)

    done = house.root_types(*command)

    assert {path.name: path.read_bytes() for path in house.vault.iterdir()} == {"ledger.sqlite3": before}
    if command[0] != "run":
        assert "the other ledger" not in done.stdout
    assert "ledger.sqlite3: is a symbolic link" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_links_that_come_and_go(house: House) -> None:
    """A link that is planted between the look and the opening leads nowhere either: root is its owner by then."""
    victim = house.vault / "shadow"
    victim.write_text(PRIVATE)
    lock = house.state / "daemon.lock"
    script = f"while :; do ln -sf {victim} {lock}; rm {lock}; : >{lock}; rm {lock}; done"
    with subprocess.Popen([*becoming(DAEMON), "sh", "-c", script], stderr=subprocess.DEVNULL) as swapper:
        try:
            for _ in range(8):
                house.root_types("retry", "--all")
        finally:
            swapper.kill()

    assert victim.read_text() == PRIVATE


def test_a_link_to_the_state_directory(house: House) -> None:
    """Of another user than what it leads to: that user would choose whom root becomes."""
    link = house.config.parent / "link"
    link.symlink_to(house.vault)
    os.chown(link, DROPPER, DROPPER, follow_symlinks=False)
    house.config.write_text(house.config.read_text().replace(str(house.state), str(link)))

    done = house.root_types("run")

    assert f"{link} is a symbolic link of uid {DROPPER}, who does not own what it leads to" in done.stderr
    assert list(house.vault.iterdir()) == []


def test_a_state_directory_that_is_yet_to_be_made(house: House) -> None:
    """In another user's directory it is made by, and for, that user: a moment later there might be a link."""
    new = house.state / "new" / "state"
    house.config.write_text(house.config.read_text().replace(str(house.state), str(new)))

    house.root_starts_it()

    assert {path.lstat().st_uid for path in (new.parent, new, *new.iterdir())} == {DAEMON}


def test_what_root_leaves_behind_is_the_daemons(house: House) -> None:
    """A command of root's works, and makes no file that the daemon could not open afterwards."""
    done = house.root_types("retry", "--all")

    assert (done.returncode, done.stdout) == (0, "1 file released\n"), done.stderr
    assert house.owners() == {DAEMON}


@pytest.mark.parametrize(("content", "mode"), [(b"", 0o600), (b"rows", 0o640)])
def test_a_ledger_keeps_the_mode_that_somebody_gave_it(tmp_path: Path, content: bytes, mode: int) -> None:
    """Only the empty file of a process that died while it created the ledger is made private."""
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(content)
    path.chmod(0o640)

    make_private(path)

    assert path.stat().st_mode & 0o777 == mode


def test_a_new_ledger_is_private(tmp_path: Path) -> None:
    """Nobody else may look at it, from the first moment on."""
    path = tmp_path / "ledger.sqlite3"

    make_private(path)

    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "opened"),
    [("ledger.sqlite3", open_for_reading), ("ledger.sqlite3", open_for_writing), ("daemon.lock", open_lock)],
)
def test_another_users_file_is_refused(tmp_path: Path, name: str, opened: Callable[[Path], object]) -> None:
    """That user could write into it at any time, and the directory is not that user's."""
    require_root()
    path = tmp_path / name
    path.touch()
    os.chown(path, DROPPER, DROPPER)

    with pytest.raises(LedgerError, match=f"{name}: belongs to uid {DROPPER}, who does not own the directory"):
        opened(path)


def test_a_daemon_that_root_starts_becomes_the_owner(house: House) -> None:
    """It says so in one line, and makes nothing that is root's."""
    said = house.root_starts_it()

    assert f"becoming uid {DAEMON}, whom state.directory = {house.state} belongs to" in said
    assert "daemon.ready" in said
    assert house.owners() == {DAEMON}


def test_a_program_that_only_root_can_read(house: House) -> None:
    """Root goes on with it, and has no other power left."""
    hidden = house.vault / "program"
    shutil.copytree(Path(database.__file__).parent.parent, hidden / "s3spool")
    command = [ROOTS[0], f"PYTHONPATH={hidden}", *ROOTS[1:]]

    done = house.run(*command, "retry", "--all")

    assert (done.returncode, done.stdout) == (0, "1 file released\n"), done.stderr
    assert house.owners() == {DAEMON}


@pytest.mark.parametrize(("missing", "problem"), [("setuid", "cannot become"), ("dac_read_search", "cannot read")])
def test_a_root_without_capabilities(house: House, missing: str, problem: str) -> None:
    """In a container: one line, and nothing touched."""
    hidden = house.vault / "program"
    shutil.copytree(Path(database.__file__).parent.parent, hidden / "s3spool")
    command = [ROOTS[0], f"PYTHONPATH={hidden}", *ROOTS[1:]]
    stripped = ["setpriv", f"--bounding-set=-{missing}", "--inh-caps=-all", "--"]

    done = house.run(*stripped, *command, "retry", "--all")

    assert done.returncode == 1
    assert f"state.directory = {house.state}: belongs to uid {DAEMON}, who" in done.stderr
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


# Without other users


@pytest.mark.parametrize("side", ["", "-wal", "-shm"])
@pytest.mark.parametrize("opened", [open_for_writing, open_for_reading])
def test_links_are_refused(tmp_path: Path, side: str, opened: object) -> None:
    """Whoever runs it: a state file is a regular file of the state directory itself."""
    path = tmp_path / "ledger.sqlite3"
    make_ledger(path)
    link = tmp_path / f"ledger.sqlite3{side}"
    if link.exists():
        link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(LedgerError, match=rf"ledger\.sqlite3{side}: is a symbolic link"):
        opened(path)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["link", "fifo", "names"])
def test_the_lock_is_a_file_of_its_own(tmp_path: Path, kind: str) -> None:
    """No link, no FIFO, and no second name of a file that is somebody's: it is emptied."""
    other, lock = tmp_path / "other", tmp_path / "daemon.lock"
    other.write_text(PRIVATE)
    if kind == "link":
        lock.symlink_to(other)
    elif kind == "names":
        lock.hardlink_to(other)
    else:
        os.mkfifo(lock)

    with pytest.raises(LedgerError, match=r"daemon\.lock: is "):
        DirectoryLock(tmp_path)
    assert holder(tmp_path) is None
    assert other.read_text() == PRIVATE


def test_a_state_directory_that_leads_nowhere_is_left_to_its_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root becomes nobody, and the error is the one that every user gets."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "link").symlink_to(tmp_path / "missing")

    assert become_owner(tmp_path / "link") == ""


@pytest.mark.parametrize(("group", "becomes"), [(NAMELESS, NAMELESS), (0, 65_534)])
def test_an_owner_without_a_name_has_the_group_of_the_directory(group: int, becomes: int) -> None:
    """But never that of root."""
    owner = os.stat_result((0o40755, 1, 1, 1, NAMELESS, group, 0, 0, 0, 0))

    assert _account(owner) == (f"uid {NAMELESS}", becomes, [becomes])
