"""A configuration that a stranger has left in the current directory is not believed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3spool.config import loader as configuration
from s3spool.config.loader import load
from s3spool.errors import ConfigError
from support.processes import finished
from support.users import (
    DAEMON,
    DROPPER,
    ROOTS,
    as_user,
    becoming,
    everybodys,
    open_place,
    require_root,
    run_until_ready,
)

pytestmark = pytest.mark.integration
NAME = "s3spool.toml"


class Place:
    """A drop folder, a directory of root's alone, and an S3 endpoint that only counts who comes."""

    def __init__(self, directory: Path) -> None:
        self.drop = directory / "drop"
        self.private = directory / "private"
        self.home = directory / "home"
        for made in (self.drop, self.private, self.home / "s3spool"):
            made.mkdir(parents=True)
        (self.private / "payroll").write_text("private")
        self.private.chmod(0o700)
        os.chown(self.drop, DAEMON, DAEMON)
        self.drop.chmod(0o1777)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "XDG_CONFIG_HOME": str(self.home),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        self.endpoint = socket.create_server(("127.0.0.1", 0))
        self.endpoint.setblocking(False)

    def leave(self, user: int, place: Path) -> None:
        """As `user`, a configuration that sends root's files to an endpoint of that user's."""
        text = self.text(self.private, f"http://127.0.0.1:{self.endpoint.getsockname()[1]}")
        as_user(user, "sh", "-c", 'printf %s "$1" >"$2"', "sh", text, place)

    def text(self, folder: Path, endpoint: str = "http://127.0.0.1:9") -> str:
        return (
            f'[watch]\ndirectory = "{folder}"\nsettle_s = 0\n[destination]\nbucket = "bucket"\n'
            f'endpoint_url = "{endpoint}"\n[state]\ndirectory = "{self.home}/state"\n[log]\nformat = "json"\n'
        )

    def types(self, *command: str, cwd: Path, user: int = 0) -> subprocess.CompletedProcess[str]:
        who = becoming(user) if user else []
        return finished(
            *who, "timeout", "60", *(everybodys() if user else ROOTS), *command, cwd=cwd, env=self.environment
        )

    def somebody_came(self) -> bool:
        try:
            self.endpoint.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def place() -> Iterator[Place]:
    require_root()
    with open_place() as directory:
        place = Place(directory)
        yield place
        place.endpoint.close()


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_dropper_leaves_a_configuration(place: Place, command: str) -> None:
    """Previously root's files went to the endpoint that it names."""
    place.leave(DROPPER, place.drop / NAME)

    done = place.types(command, cwd=place.drop)

    assert not place.somebody_came()
    assert done.returncode == 78
    assert f"{NAME}: belongs to uid {DROPPER}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place.home / "state").exists()


def test_the_next_place_is_taken(place: Place) -> None:
    """One line says which file was passed over, and why."""
    place.leave(DROPPER, place.drop / NAME)
    (place.home / "s3spool" / NAME).write_text(place.text(place.drop))

    done = place.types("status", "--json", cwd=place.drop)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["watch"]["directory"] == str(place.drop)
    assert done.stderr.count("\n") == 1
    assert f"s3spool: {NAME}: belongs to uid {DROPPER}" in done.stderr
    assert f"passed over, {place.home}/s3spool/{NAME} is taken" in done.stderr


def test_the_daemon_says_so_in_its_log(place: Place) -> None:
    """Its lines may be read by a program: each is one of the log."""
    place.leave(DROPPER, place.drop / NAME)
    (place.home / "s3spool" / NAME).write_text(place.text(place.drop))

    said = run_until_ready(*ROOTS, "run", cwd=place.drop, env=place.environment)

    events = [json.loads(line) for line in said.splitlines()]
    (untrusted,) = [event for event in events if event["event"] == "config.untrusted"]
    assert "passed over" in untrusted["reason"]


def test_a_file_named_with_config(place: Place) -> None:
    """It is what the person wants, so it counts, with one line."""
    place.leave(DROPPER, place.drop / NAME)

    done = place.types("status", "--config", str(place.drop / NAME), cwd=Path("/"))

    assert done.returncode == 0, done.stderr
    assert done.stderr == f"s3spool: {place.drop}/{NAME}: belongs to uid {DROPPER}; it counts because it was named\n"


def test_ones_own_file_counts(place: Place) -> None:
    """Also for somebody who is not root."""
    own = place.home / "own"
    own.mkdir()
    os.chown(own, DROPPER, DROPPER)
    place.leave(DROPPER, own / NAME)

    done = place.types("key", str(place.private / "x"), cwd=own, user=DROPPER)

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "x\n")


# Whoever it is


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configuration, "SYSTEM_FILE", tmp_path / "etc" / NAME)
    (tmp_path / NAME).write_text('[destination]\nbucket = "here"\n')
    return tmp_path


ENVIRON = {"HOME": "/nonexistent"}


@pytest.mark.parametrize("mode", [0o646, 0o666])
def test_a_file_that_others_can_write(here: Path, mode: int) -> None:
    """Somebody else may have filled it in."""
    (here / NAME).chmod(mode)

    with pytest.raises(ConfigError, match=r"s3spool\.toml: others can write to it"):
        load(environ=ENVIRON)


def test_a_directory_that_others_can_write(here: Path) -> None:
    """Somebody else may put another file in its place; the sticky bit keeps nobody from being the first."""
    here.chmod(0o1777)

    with pytest.raises(ConfigError, match=f"others can write to {here}"):
        load(environ=ENVIRON)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to a group")
def test_a_group_is_others_too(here: Path) -> None:
    """But not the group that has one's own name, which umask 002 relies on."""
    (here / NAME).chmod(0o664)
    assert load(environ=ENVIRON).destination.bucket == "here"

    os.chown(here / NAME, 0, DROPPER)

    with pytest.raises(ConfigError, match="others can write to it"):
        load(environ=ENVIRON)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
def test_a_link(here: Path) -> None:
    """Neither the link nor what it leads to may be a stranger's."""
    stranger = here / "below" / "stranger.toml"
    stranger.parent.mkdir()
    (here / NAME).rename(stranger)
    os.chown(stranger, DROPPER, DROPPER)
    (here / NAME).symlink_to(stranger)

    with pytest.raises(ConfigError, match=f"belongs to uid {DROPPER}"):
        load(environ=ENVIRON)

    os.chown(stranger, 0, 0)
    os.chown(here / NAME, DROPPER, DROPPER, follow_symlinks=False)

    with pytest.raises(ConfigError, match=f"belongs to uid {DROPPER}"):
        load(environ=ENVIRON)


@pytest.mark.parametrize("how", ["itself", "variable", "argument", "system", "instance"])
def test_never_inside_the_watched_folder(here: Path, how: str) -> None:
    """What is there was dropped, though it belongs to the very user: a program of that user's may have received it."""
    environ, overrides = dict(ENVIRON), {}
    folder = f'[watch]\ndirectory = "{here}"\n[destination]\nbucket = "other"\n'
    if how == "itself":
        (here / NAME).write_text(folder)
    elif how == "variable":
        environ["S3SPOOL_WATCH__DIRECTORY"] = str(here)
    elif how == "argument":
        overrides = {"watch.directory": str(here.parent)}
    else:
        (here / "etc").mkdir()
        (here / "etc" / (NAME if how == "system" else "cameras.toml")).write_text(folder)
    told: list[str] = []

    if how == "system":
        assert load(environ=environ, overrides=overrides, tell=told.append).destination.bucket == "other"
        (line,) = told
    else:
        with pytest.raises(ConfigError) as caught:
            load(environ=environ, overrides=overrides)
        line = str(caught.value)
    assert "is inside the watched folder" in line
