"""Which configuration a command uses, and that what is typed is what happens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner

from s3spool.cli.commands import cli
from s3spool.config import loader as configuration
from s3spool.config.finding import named, salvaged
from s3spool.demo.home import Home, homes_here, running_demo, use_keys
from s3spool.errors import ConfigError
from s3spool.ledger.database import DirectoryLock
from support.daemon import Daemon, to_toml
from support.faulty import FaultyS3
from support.processes import finished
from support.waiting import eventually

pytestmark = pytest.mark.integration

WAIT_S = 30.0


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory and a home without any configuration."""
    for name in [name for name in os.environ if name.startswith(("S3SPOOL_", "AWS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(configuration, "SYSTEM_FILE", tmp_path / "etc" / "s3spool.toml")
    place = tmp_path / "here"
    for made in (place, tmp_path / "etc"):
        made.mkdir()
    monkeypatch.chdir(place)
    with TemporaryDirectory() as home:  # short: the path of a socket has at most 107 bytes
        monkeypatch.setenv("HOME", home)
        yield place


def a_file(path: Path, folder: str) -> Path:
    path.write_text(f'[watch]\ndirectory = "/{folder}"\n[state]\ndirectory = "{path.parent}/state"\n')
    return path


def folder_of(*arguments: str, **environment: str) -> str:
    """The folder that `status` names: it tells the configuration."""
    done = CliRunner().invoke(cli, [*arguments, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    return str(json.loads(done.stdout)["watch"]["directory"])


def test_each_way_to_name_a_configuration(here: Path, tmp_path: Path) -> None:
    """--config before and after the command, S3SPOOL_CONFIG, --name, then the current directory: in this order."""
    a_file(here / "s3spool.toml", "here")
    typed, other = a_file(tmp_path / "typed.toml", "typed"), a_file(tmp_path / "other.toml", "other")
    a_file(tmp_path / "etc" / "cam.toml", "cam")

    assert folder_of("--config", str(typed), "status") == "/typed"
    assert folder_of("status", "--config", str(typed)) == "/typed"
    assert folder_of("--config", str(other), "status", "--config", str(typed)) == "/typed"
    assert folder_of("status", "--config", str(typed), S3SPOOL_CONFIG=str(other)) == "/typed"
    assert folder_of("status", "--name", "cam", S3SPOOL_CONFIG=str(other)) == "/other"
    assert folder_of("status", "--name", "cam") == folder_of("--name", "cam", "status") == "/cam"
    assert folder_of("status") == "/here"


def test_a_name_is_the_name_of_a_file(here: Path) -> None:
    """It leads nowhere else."""
    assert here
    with pytest.raises(ConfigError, match="must be the name of a file in /etc/s3spool"):
        named(None, "../x", {})


def a_demo(folder: Path, environ: dict[str, str]) -> Home:
    home = Home.of(folder, environ)
    home.directory.mkdir(parents=True)
    home.config.write_text(
        f'[watch]\ndirectory = "{folder}"\n[destination]\nbucket = "demo"\nprofile = "demo"\n'
        f'endpoint_url = "http://127.0.0.1:8333"\n[state]\ndirectory = "{home.directory}/state"\n'
        f'[service]\ncontrol_socket = "{home.socket}"\n'
    )
    return home


def test_a_running_demo_is_found_from_its_directory(here: Path, tmp_path: Path) -> None:
    """Only while it runs, only there, and only where no other configuration is; each folder has a state of its own."""
    environ = dict(os.environ)
    home, other = a_demo(here / "drop", environ), a_demo(tmp_path / "elsewhere" / "drop", environ)
    assert home != other
    assert [*homes_here()] == [home]
    assert running_demo() is None

    lock, lock_of_other = DirectoryLock(home.directory), DirectoryLock(other.directory)
    try:
        assert running_demo() == home.config
        assert folder_of("status") == str(here / "drop")
        a_file(here / "s3spool.toml", "own")
        assert folder_of("status") == "/own"
    finally:
        lock.release()
        lock_of_other.release()


def test_a_demos_configuration_never_leads_to_the_persons_keys(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own keys count, whatever the environment holds; another configuration keeps the environment."""
    home = a_demo(here / "drop", dict(os.environ))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKPERSON")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/persons")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/persons")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")

    use_keys(configuration.load(a_file(here / "x.toml", "x")))
    assert os.environ["AWS_ACCESS_KEY_ID"] == "AKPERSON"

    use_keys(configuration.load(home.config))
    assert "AWS_ACCESS_KEY_ID" not in os.environ
    assert os.environ["AWS_CONFIG_FILE"] == str(home.aws)
    assert os.environ["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull


def plan(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["run", *arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def test_what_is_typed_is_what_happens(here: Path, tmp_path: Path) -> None:
    """With a folder and a URL no file is read; a URL's prefix is a directory; without both a file counts."""
    folder = tmp_path / "drop"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    (here / "s3spool.toml").write_text(
        f'[watch]\ndirectory = "{folder}"\n[destination]\nbucket = "inherited"\nprefix = "old/"\n'
        '[after]\naction = "delete"\n'
    )

    both = plan(str(folder), "s3://bucket/x")
    assert "a.txt to s3://bucket/x/a.txt\n" in both
    assert both.endswith('\nuploaded files stay here: after.action = "keep" by default\n')
    assert "a.txt to s3://bucket/a.txt\n" in plan("s3://bucket")
    assert "a.txt to s3://inherited/old/a.txt\n" in plan()
    assert plan().endswith('\nuploaded files are DELETED here: after.action = "delete" in ./s3spool.toml\n')
    assert plan("--after", "keep").endswith('\nuploaded files stay here: after.action = "keep" on the command line\n')


def test_a_dry_run_names_what_is_left_out(here: Path) -> None:
    """Each file with its pattern, and nothing is changed."""
    folder = here / "drop"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in ("a.txt", "sub/b.txt", "c.tmp", ".git/config"):
        (folder / name).write_text("12345")

    lines = plan(str(folder), "s3://bucket").splitlines()

    assert lines == [
        "excluded              .git/: left out by watch.exclude",
        "send             5 B  a.txt to s3://bucket/a.txt",
        "excluded         5 B  c.tmp: left out by *.tmp in watch.exclude",
        "send             5 B  sub/b.txt to s3://bucket/sub/b.txt",
        "2 files (10 B) would be sent, 1 excluded",
        'uploaded files stay here: after.action = "keep" by default',
    ]
    assert not Path(os.environ["HOME"], ".local").exists()


def test_a_dry_run_says_where_no_key_has_room(here: Path) -> None:
    """As the daemon does, which lists no such directory."""
    deep = here / "drop" / "/".join(["d" * 250] * 5)
    deep.mkdir(parents=True)
    (deep / "a.txt").touch()

    (line, *_) = plan(str(here / "drop"), "s3://bucket").splitlines()

    assert line.startswith("excluded ")
    assert line.endswith("every key below it would be longer than S3's 1,024 bytes")


# --- with a daemon


@pytest.mark.parametrize("broken", ["[watch\nexclude = 1\n", "[upload]\nworkers = 0\n", "[upload]\nworkerz = 1\n"])
def test_a_broken_file_does_not_disable_the_queries(broken: str, tmp_path: Path, faulty: FaultyS3) -> None:
    """The running daemon answers, and stderr says what is wrong; without a daemon the error is all there is."""
    with Daemon(tmp_path, faulty) as daemon:
        daemon.drop("a")
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S)
        daemon.config_path.write_text(broken + to_toml(daemon.config).replace("[upload]\n", ""))

        for command in (["status"], ["list", "--all"], ["why", "a"], ["key", "a"], ["retry", "--all"], ["wait"]):
            done = daemon.cli(*command)
            assert done.returncode == 0, done
            assert "the daemon that runs has an earlier state of the configuration" in done.stderr
        assert daemon.stop() == 0

    assert daemon.cli("status").returncode == 78


def test_a_broken_file_of_the_system_leads_to_the_unit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its places are those of the unit, unless a line that can be read sets them."""
    source = here / "cam.toml"
    monkeypatch.setattr(configuration, "SYSTEM_FILE", here / "s3spool.toml")
    source.write_text("[state\n")
    assert str(salvaged(source).service.control_socket) == "/run/s3spool-cam/control.sock"
    source.write_text('x = [\n[service]\ncontrol_socket = "/c" # here\n[state]\ndirectory = 5\n')
    assert str(salvaged(source).service.control_socket) == "/c"


# --- run --once


def once(tmp_path: Path, faulty: FaultyS3, *arguments: str) -> tuple[int, Daemon]:
    daemon = Daemon(tmp_path, faulty)
    daemon.config_path.write_text(to_toml(daemon.config))
    done = daemon.cli("run", "--once", *arguments, timeout_s=60)
    daemon.log_path.write_text(done.stderr)
    return done.returncode, daemon


def test_once_sends_what_is_there_and_exits(tmp_path: Path, faulty: FaultyS3) -> None:
    """Exit code 0, everything sent; a second run has nothing to do."""
    (tmp_path / "spool" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "c.tmp"):
        (tmp_path / "spool" / name).write_text(name)

    code, daemon = once(tmp_path, faulty)

    assert code == 0
    assert faulty.contents() == {"a": b"a", "sub/b": b"sub/b"}
    assert daemon.events()[-1]["event"] == "daemon.stopped"
    assert once(tmp_path, faulty)[0] == 0
    assert faulty.count("^PUT") == 2


def test_once_says_that_some_are_not_sent(tmp_path: Path, faulty: FaultyS3) -> None:
    """Exit code 3 if a file is parked."""
    from support.faults import Status  # noqa: PLC0415 - only here

    faulty.script(Status(code=400, error_code="EntityTooLarge"), times=None, match="^PUT parked")
    (tmp_path / "spool").mkdir()
    for name in ("parked", "good"):
        (tmp_path / "spool" / name).write_text(name)

    code, daemon = once(tmp_path, faulty)

    assert code == 3
    assert faulty.contents() == {"good": b"good"}
    (row,) = [json.loads(line) for line in daemon.cli("list", "--json").stdout.splitlines()]
    assert (row["path"], row["state"]) == ("parked", "parked")


# --- a shell


def completed(daemon: Daemon, words: str) -> list[str]:
    environment = {"_S3SPOOL_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = "import sys\nsys.argv[0] = 's3spool'\nfrom s3spool.cli.commands import cli\ncli(prog_name='s3spool')"
    done = finished(sys.executable, "-c", program, env=daemon.environment | environment, cwd=daemon.home)
    assert "Traceback" not in done.stderr, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line.startswith("plain")]


def test_completion_of_files_states_and_actions(tmp_path: Path, faulty: FaultyS3) -> None:
    """Files that the daemon knows, where files are asked for; states and actions by their names."""
    from support.faults import Status  # noqa: PLC0415 - only here

    faulty.script(Status(code=400, error_code="EntityTooLarge"), times=None, match="^PUT parked")
    with Daemon(tmp_path, faulty) as daemon:
        daemon.drop("parked-file")
        daemon.wait_event("file.parked", timeout_s=WAIT_S)
        daemon.drop("sent-file")
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S, path="sent-file")
        daemon.wait_event("file.parked", timeout_s=WAIT_S, attempt=4)

        assert completed(daemon, "s3spool retry ") == ["parked-file"]
        assert completed(daemon, "s3spool why se") == ["sent-file"]
    assert completed(daemon, "s3spool list --state ") == [
        "settling", "queued", "uploading", "waiting", "parked", "uploaded"
    ]  # fmt: skip
    assert completed(daemon, "s3spool run --after ") == ["keep", "delete", "archive"]


# --- why


def test_why_says_that_a_writer_has_the_file_open(tmp_path: Path, faulty: FaultyS3) -> None:
    """And list agrees on the state; when the writer closes it, it is sent."""
    with Daemon(tmp_path, faulty) as daemon:
        daemon.wait_ready(WAIT_S)
        with (daemon.folder / "slow").open("w") as writer:
            writer.write("half")
            writer.flush()

            def reason() -> bool:
                return "open for writing by another process" in daemon.cli("why", "slow").stdout

            eventually(reason, timeout_s=WAIT_S)
            rows = [json.loads(line) for line in daemon.cli("list", "--json").stdout.splitlines()]
            assert [(row["path"], row["state"]) for row in rows] in ([], [("slow", "settling")])
        daemon.wait_event("file.uploaded", timeout_s=WAIT_S, path="slow")
