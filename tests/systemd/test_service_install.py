"""`s3spool service install` makes what is missing, says so, and `uninstall` takes back exactly that."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import s3spool
from s3spool.check.sandbox_check import check_unit, secret_is_private
from s3spool.cli.commands import cli
from s3spool.errors import ConfigError, S3SpoolError
from s3spool.systemd import install, units
from s3spool.systemd.install import Installation
from s3spool.systemd.units import service_of
from support.processes import finished
from support.users import DROPPER

PROGRAM = Path("/usr/bin/env")  # anything that every user can run
TEMPORARY = "/tmp"  # noqa: S108 - nothing is written there: it is refused
UNIT = "etc/systemd/system/s3spool.service"
CONFIG = "etc/s3spool/s3spool.toml"


@pytest.fixture(autouse=True)
def installed_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if interpreter and modules stood where each user can read them, which a developer's need not."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/env")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(s3spool, "__file__", "/usr/bin/env")


def put_in(root: Path, folder: Path | None = None, *, name: str = "", program: Path = PROGRAM) -> list[str]:
    return list(Installation(service_of(name), program=program, root=root).install(folder))


def take_out(root: Path, *, name: str = "") -> list[str]:
    return list(Installation(service_of(name), program=PROGRAM, root=root).uninstall())


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else "directory" for path in root.rglob("*")
    }


def test_install_writes_what_the_service_needs(tmp_path: Path) -> None:
    """The shipped unit with this program, the folder for the group, and a configuration that names it."""
    said = put_in(tmp_path)

    unit = (tmp_path / UNIT).read_text()
    assert f"ExecStart={PROGRAM} run --config /etc/s3spool/s3spool.toml" in unit
    assert "SystemCallFilter=@system-service" in unit
    assert (tmp_path / "var/spool/s3spool").stat().st_mode & 0o7777 == 0o3770
    assert 'directory = "/var/spool/s3spool"' in (tmp_path / CONFIG).read_text()
    assert "wrote /etc/systemd/system/s3spool.service" in said
    assert any("systemctl enable --now s3spool" in line for line in said)


def test_uninstall_leaves_nothing(tmp_path: Path) -> None:
    """Nobody used it: all that install has made is gone again, parents included."""
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "var").mkdir()
    before = tree(tmp_path)

    put_in(tmp_path)
    take_out(tmp_path)

    assert tree(tmp_path) == before


def test_uninstall_keeps_what_people_have_put_there(tmp_path: Path) -> None:
    """Files in the folder and a configuration with a bucket in it are theirs, and it says that they stay."""
    put_in(tmp_path)
    (tmp_path / "var/spool/s3spool/a").write_text("unsent")
    (tmp_path / CONFIG).write_text('[destination]\nbucket = "b"\n')

    said = take_out(tmp_path)

    assert (tmp_path / "var/spool/s3spool/a").read_text() == "unsent"
    assert "bucket" in (tmp_path / CONFIG).read_text()
    assert not (tmp_path / UNIT).exists()
    assert "/var/spool/s3spool stays: Directory not empty" in said
    assert "/etc/s3spool/s3spool.toml stays: it was changed after it was made" in said


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    """A folder and a configuration that install has found are not its own, not even unchanged and empty."""
    (tmp_path / "srv/drop").mkdir(parents=True)
    (tmp_path / "etc/s3spool").mkdir(parents=True)
    (tmp_path / CONFIG).write_text('[watch]\ndirectory = "/srv/drop"\n')

    put_in(tmp_path)
    unit = (tmp_path / UNIT).read_text()
    take_out(tmp_path)

    assert "ReadWritePaths=/srv/drop" in unit, "the folder is the configuration's"
    assert (tmp_path / "srv/drop").is_dir()
    assert (tmp_path / CONFIG).exists()


def test_installing_again_remembers(tmp_path: Path) -> None:
    """An upgrade rewrites the unit; what the first installation has made is still taken back."""
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    before = tree(tmp_path)
    put_in(tmp_path)

    said = put_in(tmp_path, program=Path("/usr/bin/sort"))

    assert "rewrote /etc/systemd/system/s3spool.service" in said
    assert "ExecStart=/usr/bin/sort run" in (tmp_path / UNIT).read_text()
    take_out(tmp_path)
    assert tree(tmp_path) == before


def test_instance_has_its_own_of_everything(tmp_path: Path) -> None:
    """Two services on one machine share no file; one leaves without the other."""
    put_in(tmp_path)
    put_in(tmp_path, name="two")
    unit = (tmp_path / "etc/systemd/system/s3spool@two.service").read_text()

    take_out(tmp_path)

    assert "run --config /etc/s3spool/two.toml" in unit
    assert "StateDirectory=s3spool-%i\n" in unit
    assert 'directory = "/var/spool/s3spool-two"' in (tmp_path / "etc/s3spool/two.toml").read_text()
    assert (tmp_path / "var/spool/s3spool-two").is_dir()
    assert not (tmp_path / UNIT).exists()


@pytest.mark.parametrize(
    ("folder", "lines"),
    [
        ("/var/spool/other", []),
        ("/srv/a b", ['ReadWritePaths="/srv/a b"']),
        ("/srv/100%", ["ReadWritePaths=/srv/100%%"]),
        ('/srv/"x"', [r'ReadWritePaths="/srv/\"x\""']),
        ("/home/alice/out", ["ProtectHome=tmpfs", "BindPaths=/home/alice/out"]),
        ("/root/out", ["ProtectHome=tmpfs", "BindPaths=/root/out"]),
    ],
)
def test_folder_elsewhere_is_let_in(tmp_path: Path, folder: str, lines: list[str]) -> None:
    """The sandbox opens for this folder alone, and only as far as needed."""
    put_in(tmp_path, Path(folder))

    unit = (tmp_path / UNIT).read_text().splitlines()
    kept = [line for line in unit if line.startswith(("ReadWritePaths=", "ProtectHome=", "BindPaths="))]
    assert kept == ["ReadWritePaths=/var/spool", "ProtectHome=yes", *lines], "the last ProtectHome= counts"
    assert "ProtectSystem=strict" in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("folder", ["/home/al ice/100%", "/srv/drop"])
def test_written_unit_is_understood_and_as_safe(tmp_path: Path, folder: str) -> None:
    """systemd reads each line of it, and rates it like the shipped one."""
    put_in(tmp_path, Path(folder), name="two")
    unit = tmp_path / "etc/systemd/system/s3spool@two.service"

    verified = finished("systemd-analyze", "verify", "--man=no", unit)
    rated = finished("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit)

    assert "s3spool" not in verified.stderr
    assert rated.returncode == 0, rated.stdout


def packaged(root: Path) -> Path:
    """The units and the program of a package; returns the program."""
    for name in ("s3spool.service", "s3spool@.service"):
        place = root / "usr/lib/systemd/system" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(units.shipped(name))
    program = root / "usr/bin/s3spool"
    program.parent.mkdir()
    program.touch()
    return program


def test_package_gets_an_instance_without_a_unit(tmp_path: Path) -> None:
    """Where a package has installed unit and program, only a drop-in is added, and goes again."""
    program = packaged(tmp_path)
    before = tree(tmp_path)

    put_in(tmp_path, Path("/srv/drop"), name="two", program=program)
    drop_in = (tmp_path / "etc/systemd/system/s3spool@two.service.d/service-install.conf").read_text()
    unit_there = (tmp_path / "etc/systemd/system/s3spool@two.service").exists()
    take_out(tmp_path, name="two")

    assert drop_in.endswith("\n[Service]\nReadWritePaths=/srv/drop\n")
    assert not unit_there
    assert {path for path in tree(tmp_path) if not path.startswith("etc")} == set(before)


def test_other_programs_package_is_not_overruled(tmp_path: Path) -> None:
    """A unit in /etc would silently replace the package's."""
    packaged(tmp_path)
    before = tree(tmp_path)

    with pytest.raises(S3SpoolError, match=r"s3spool\.service: is the unit of a package, for another program"):
        put_in(tmp_path)

    assert tree(tmp_path) == before


def test_unit_that_hides_the_packages_is_named_as_ours(tmp_path: Path) -> None:
    """The package came after `service install`: the error says so, and the command that it names helps."""
    put_in(tmp_path)
    program = packaged(tmp_path)

    with pytest.raises(
        S3SpoolError, match=r"was written by this command .* remove it with `s3spool service uninstall`"
    ):
        put_in(tmp_path, program=program)
    take_out(tmp_path)

    assert "rewrote" not in "".join(put_in(tmp_path, program=program))


def test_uninstall_finds_its_drop_in_beside_a_unit_of_others(tmp_path: Path) -> None:
    """A unit that somebody wrote later stays; the drop-in of the installation goes."""
    program = packaged(tmp_path)
    put_in(tmp_path, program=program)
    (tmp_path / UNIT).write_text("[Service]\nExecStart=/bin/true\n")

    said = take_out(tmp_path)

    assert (tmp_path / UNIT).exists()
    assert not (tmp_path / f"{UNIT}.d").exists()
    assert "removed /etc/systemd/system/s3spool.service.d/service-install.conf" in said


@pytest.mark.parametrize("foreign", ["file", "mask"])
def test_unit_of_others_is_left_alone(tmp_path: Path, foreign: str) -> None:
    """Neither a unit that somebody wrote nor a mask (a link to /dev/null) is replaced or removed."""
    unit = tmp_path / UNIT
    unit.parent.mkdir(parents=True)
    if foreign == "file":
        unit.write_text("[Service]\nExecStart=/bin/true\n")
    else:
        unit.symlink_to("/dev/null")

    with pytest.raises(S3SpoolError, match="was not written by this command"):
        put_in(tmp_path)
    with pytest.raises(S3SpoolError, match="nothing here was written by"):
        take_out(tmp_path)

    assert os.path.lexists(unit)
    assert not (tmp_path / CONFIG).exists()


@pytest.mark.parametrize("name", ["../x", "a.b", "a b", "-x", "s3spool", "x" * 65, "ü"])
def test_name_that_cannot_be_is_refused(name: str) -> None:
    """It becomes part of paths, and a dot could meet the ledger's own files."""
    with pytest.raises(S3SpoolError, match="--name"):
        service_of(name)


@pytest.mark.parametrize(
    "folder", ["drop", "/", "/srv/../etc", f"{TEMPORARY}/x", f"/var{TEMPORARY}/x", "/srv/a\nb", "/home/a:b"]
)
def test_folder_that_cannot_be_is_refused(tmp_path: Path, folder: str) -> None:
    """One line that names it, and nothing is touched."""
    with pytest.raises(S3SpoolError, match="--directory"):
        put_in(tmp_path, Path(folder))

    assert tree(tmp_path) == {}


@pytest.mark.parametrize("user", ["root", "nobody-of-this-name"])
def test_user_that_cannot_be_is_refused(tmp_path: Path, user: str) -> None:
    """root would be too much, and others than s3spool are not made."""
    with pytest.raises(S3SpoolError, match=f"--user {user}"):
        list(Installation(service_of(""), program=PROGRAM, root=tmp_path).install(None, user))

    assert tree(tmp_path) == {}


def test_configuration_that_is_there_decides(tmp_path: Path) -> None:
    """It may name no other folder than the one asked for, it must name one, and it must be valid."""
    (tmp_path / "etc/s3spool").mkdir(parents=True)
    config = tmp_path / CONFIG

    config.write_text('[watch]\ndirectory = "/srv/drop"\n')
    with pytest.raises(S3SpoolError, match=r"--directory /srv/x: /etc/s3spool/s3spool\.toml says /srv/drop"):
        put_in(tmp_path, Path("/srv/x"))
    config.write_text('[destination]\nbucket = "bucket"\n')
    with pytest.raises(S3SpoolError, match=r"names no watch\.directory"):
        put_in(tmp_path)
    config.write_text("[watch]\nnonsense = 1\n")
    with pytest.raises(ConfigError, match=r"watch\.nonsense"):
        put_in(tmp_path)

    assert not (tmp_path / "etc/systemd").exists()


@pytest.mark.parametrize(
    "where", ["/home/alice/venv/bin/s3spool", "/root/.local/bin/s3spool", f"{TEMPORARY}/venv/s3spool"]
)
def test_program_that_the_service_cannot_see_is_refused(tmp_path: Path, where: str) -> None:
    """A venv in a home directory would be an exit code 203 for ever."""
    with pytest.raises(S3SpoolError, match=r"the service cannot run it; install s3spool elsewhere"):
        put_in(tmp_path, program=Path(where))

    assert tree(tmp_path) == {}


def test_program_in_a_closed_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's user has to be able to reach it."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "s3spool").touch()
    monkeypatch.setattr(units, "_TEMPORARY", ())  # where tests keep their files

    with pytest.raises(S3SpoolError, match="where other users may not look"):
        put_in(tmp_path / "root", program=closed / "s3spool")


def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, not a traceback from the middle of it."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    ended = CliRunner().invoke(cli, ["service", "install"])

    assert ended.exit_code == 1
    assert "root: run it with sudo" in ended.output


def test_without_systemd_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a container, or with another init."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(install, "_RUNNING", tmp_path / "absent")

    with pytest.raises(S3SpoolError, match="systemd does not run here"):
        Installation(service_of(""), program=PROGRAM)


def test_command_line_installs_and_uninstalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options reach the installation, and the answer is a line for each thing done."""
    monkeypatch.setattr(install, "this_program", lambda: PROGRAM)
    root = ["--root", str(tmp_path), "--name", "two"]

    there = CliRunner().invoke(cli, ["service", "install", *root, "--directory", "/srv/drop"])
    gone = CliRunner().invoke(cli, ["service", "uninstall", *root])
    nothing = CliRunner().invoke(cli, ["service", "uninstall", *root])

    assert there.exit_code == 0, there.output
    assert "made /srv/drop\n" in there.output
    assert gone.exit_code == 0, gone.output
    assert "removed /etc/systemd/system/s3spool@two.service\n" in gone.output
    assert nothing.exit_code == 1
    assert "nothing here was written by" in nothing.output


def test_check_takes_the_place_of_the_daemon(tmp_path: Path) -> None:
    """Drop-ins count, the last ExecStart= decides, and the running daemon's socket outlives the check."""
    shown = (
        units.shipped("s3spool@.service")
        + "\n# a drop-in\n[Service]\nExecStart=\nExecStart=/opt/s run -x run --config f\n"
    )

    text = check_unit(shown, tmp_path / "out")

    assert text.startswith(shown)
    added = text.removeprefix(shown)
    assert "ExecStart=\nExecStart=/opt/s run -x check --config f\n" in added
    assert "RuntimeDirectoryPreserve=yes\n" in added
    with pytest.raises(S3SpoolError, match="no ExecStart="):
        check_unit("[Service]\nExecStart=/opt/other\n", tmp_path / "out")


def test_race_a_link_takes_the_place_of_the_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns the directory above is quick: neither owner nor mode of what the link leads to are changed."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    before = victim.stat()
    mkdir = os.mkdir

    def swapped(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        if name == "outbox":
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)

    with pytest.raises(S3SpoolError, match="outbox: is a symbolic link"):
        put_in(tmp_path, Path("/srv/outbox"))

    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_ctime_ns) == (before.st_mode, before.st_uid, before.st_ctime_ns)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can become another user")
def test_a_link_above_the_folder(tmp_path: Path) -> None:
    """Another user's directory above it leads elsewhere: nothing is made, or written, there or anywhere."""
    victim, theirs = tmp_path / "etc/victim", tmp_path / "srv/theirs"
    victim.mkdir(parents=True)
    theirs.mkdir(parents=True)
    os.chown(theirs, DROPPER, DROPPER)
    (theirs / "link").symlink_to("../../etc/victim")
    os.chown(theirs / "link", DROPPER, DROPPER, follow_symlinks=False)
    before = tree(tmp_path)

    with pytest.raises(S3SpoolError, match="/srv/theirs/link: is a symbolic link; name the directory"):
        put_in(tmp_path, Path("/srv/theirs/link/outbox"))

    assert tree(tmp_path) == before
    assert list(victim.iterdir()) == []


def test_a_link_that_came_before_uninstall(tmp_path: Path) -> None:
    """Previously root removed an empty directory that the link led to."""
    put_in(tmp_path, Path("/srv/theirs/outbox"))
    victim = tmp_path / "etc/victim"
    (victim / "outbox").mkdir(parents=True)
    (tmp_path / "srv/theirs").rename(tmp_path / "srv/away")
    (tmp_path / "srv/theirs").symlink_to(victim)

    said = take_out(tmp_path)

    assert (victim / "outbox").is_dir()
    assert "/srv/theirs/outbox stays: /srv/theirs: is a symbolic link; name the directory that it leads to" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who owns credentials")
def test_credentials_that_others_may_read_are_named(tmp_path: Path) -> None:
    """The check says so, with the command that mends it; a machine with a role has no such file."""
    credentials = tmp_path / "credentials"
    assert secret_is_private(credentials) is None
    credentials.touch(mode=0o640)
    finding = secret_is_private(credentials)
    assert finding is not None
    assert f"chmod 600 {credentials}" in finding.text
    credentials.chmod(0o600)
    assert secret_is_private(credentials) is None
    os.chown(credentials, 1, 0)
    assert secret_is_private(credentials) is not None


def test_help_does_not_load_it() -> None:
    """`s3spool --help` answers at once: installing is imported only where it is used."""
    code = "import sys, s3spool.cli.commands; print([m for m in sys.modules if m == 's3spool.systemd.install'])"

    # The interpreter by its real name: the fixture above has hidden it.
    loaded = finished(
        Path("/proc/self/exe").readlink(), "-c", code, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )

    assert loaded.stdout.strip() == "[]", loaded.stderr
