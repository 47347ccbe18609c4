"""`s3spool service install` and `uninstall`: the units for a program that came with pip, and more instances for all.

What was made is noted in the unit (or drop-in) itself, which only root can write: the state directory belongs to the
service's user, and what a user can write must not tell root what to remove.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import s3spool
from s3spool.config import loader as configuration
from s3spool.errors import S3SpoolError
from s3spool.logs.text import shown
from s3spool.systemd import directories, units
from s3spool.systemd.units import Made, Service

USER = "s3spool"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_OURS = Path("/etc/systemd/system")
_DROP_IN = "service-install.conf"
_FOLDER_MODE = 0o3770  # as in systemd/s3spool.tmpfiles.conf, which says why


def service_of(name: str) -> Service:
    """Raises S3SpoolError for what cannot be a name."""
    if name and (not _NAME.fullmatch(name) or name == "s3spool"):
        raise S3SpoolError(f"--name {shown(name)}: must be letters, digits, _ and -, at most 64, and not s3spool")
    return Service(name=name)


class Installation:
    """One service on this machine, or below `root`, where nothing is run and nobody is made owner."""

    def __init__(self, service: Service, *, program: Path | None = None, root: Path = Path("/")) -> None:
        """Raises S3SpoolError where nobody could install or uninstall."""
        self._service = service
        self._given = program
        self._root = root
        self._live = root == Path("/")
        if self._live and os.geteuid() != 0:
            raise S3SpoolError("writes to /etc/systemd/system, which takes root: run it with sudo")
        if self._live and not _RUNNING.is_dir():
            raise S3SpoolError("systemd does not run here: let what starts services here start `s3spool run`")

    def install(self, folder: Path | None, user: str = USER) -> Iterator[str]:
        """Says what it does, a line each. Nothing is touched before everything that can be wrong was looked at."""
        service = self._service
        packaged = self._packaged()
        group = self._group(user, packaged=packaged)
        if not packaged:
            self._check_program()
        place = self._unit_place(packaged=packaged)
        before = self._noted(place) or []
        folder = self._folder(folder)
        config = units.sample(folder)
        made = [*before, *(each for each in self._missing(folder, config) if each not in before)]

        if packaged:
            yield self._write(place, units.drop_in(folder, made))
        else:
            yield self._write(
                place,
                units.whole(
                    service,
                    program=self._program,
                    user=user,
                    group=group,
                    folder=folder,
                    made=made,
                    systemd=systemd_version() if self._live else 0,
                ),
            )
            if self._live and user == USER and not _exists(user):
                self._run("systemd-sysusers", "--inline", *_sysusers_lines())
                yield f"made user and group {user}"
        for each in made:
            if each.kind == "directory" and not self._at(each.path).exists():
                self._make_directory(each.path, user, group, ours=each.path == folder)
                yield f"made {each.path}"
        if not self._at(service.config).exists():
            yield self._write(service.config, config)
        if self._live:
            self._run("systemctl", "daemon-reload")
        yield from self._next(folder)

    def uninstall(self) -> Iterator[str]:
        """The reverse, for what is still as it was made; says what stays."""
        service = self._service
        place = next((each for each in self._places() if os.path.lexists(self._at(each))), None)
        made = self._noted(place) if place else None
        if place is None or made is None:
            raise S3SpoolError(f"{service.unit}: nothing here was written by `s3spool service install`")
        if self._live:
            self._run("systemctl", "disable", "--now", service.unit)
        self._at(place).unlink()
        if place.name == _DROP_IN:
            with suppress(OSError):  # other drop-ins are beside it
                self._at(place.parent).rmdir()
        yield f"stopped {service.unit} and removed {place}" if self._live else f"removed {place}"
        for each in reversed(made):
            yield from self._take_back(each)
        if self._live:
            self._run("systemctl", "daemon-reload")
        if self._at(service.state).exists():
            yield f"{service.state} stays: its ledger knows what was uploaded"
        if place.name != _DROP_IN:
            yield "the user stays: files may belong to it"

    @cached_property
    def _program(self) -> Path:
        return self._given or this_program()

    # What could be wrong

    def _packaged(self) -> bool:
        """Whether a package has installed the unit, and this program with it."""
        for directory in _PACKAGED:
            unit = directory / self._service.template
            if self._at(unit).exists():
                found = re.search(r"^ExecStart=(\S+)", self._at(unit).read_text(encoding="utf-8"), re.MULTILINE)
                if not found or os.path.realpath(self._at(Path(found[1]))) != os.path.realpath(self._program):
                    raise S3SpoolError(
                        f"{unit}: is the unit of a package, for another program than {self._program}; use its s3spool"
                    )
                return True
        return False

    def _places(self) -> tuple[Path, Path]:
        """Where our unit is, or our drop-in for a package's unit."""
        return _OURS / self._service.unit, _OURS / f"{self._service.unit}.d" / _DROP_IN

    def _unit_place(self, *, packaged: bool) -> Path:
        unit, drop_in = self._places()
        for place in (unit,) if not packaged else (unit, drop_in):
            if os.path.lexists(self._at(place)) and ((packaged and place == unit) or self._noted(place) is None):
                raise S3SpoolError(f"{place}: is there already and was not written by this command; move it away")
        return drop_in if packaged else unit

    def _noted(self, place: Path) -> list[Made] | None:
        path = self._at(place)
        return units.made_by(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None

    def _check_program(self) -> None:
        """The service's user has to reach the program, its interpreter and its modules from inside the sandbox."""
        parts = {self._program, Path(sys.executable), Path(sys.base_prefix), Path(s3spool.__file__)}
        for path in sorted(parts | {Path(os.path.realpath(part)) for part in parts}):
            why = units.hidden(path)
            if not why and (closed := next((at for at in (path, *path.parents) if not _open_to_all(at)), None)):
                why = f"below {closed}, where other users may not look"
            if why:
                raise S3SpoolError(
                    f"{path}: is {why}, so the service cannot run it; "
                    "install s3spool elsewhere, for instance into a virtual environment in /opt/s3spool"
                )

    def _group(self, user: str, *, packaged: bool) -> str:
        if packaged and user != USER:
            raise S3SpoolError(f"--user {shown(user)}: the package's units run as {USER}; change it with a drop-in")
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            if user == USER:
                return USER
            raise S3SpoolError(
                f"--user {shown(user)}: there is no such user; make it, or leave the option out"
            ) from None
        if entry.pw_uid == 0:
            raise S3SpoolError(f"--user {shown(user)}: the service does not run as root; leave the option out")
        return grp.getgrgid(entry.pw_gid).gr_name

    def _folder(self, wanted: Path | None) -> Path:
        """What is asked for, else what the configuration says, else the usual one."""
        service = self._service
        named = None
        if self._at(service.config).exists():
            places = {"HOME": str(service.state), "STATE_DIRECTORY": str(service.state)}
            named = configuration.load(self._at(service.config), environ=places).watch.directory
            if named == Path("tmp").absolute():
                hint = f'add to it: [watch] directory = "{wanted or service.folder}"'
                raise S3SpoolError(f"{service.config}: names no watch.directory; {hint}")
        if wanted and named and wanted != named:
            raise S3SpoolError(
                f"--directory {shown(str(wanted))}: {service.config} says {shown(str(named))}; change one"
            )
        folder = wanted or named or service.folder
        text = str(folder)
        if not folder.is_absolute() or ".." in folder.parts or not text.isprintable() or len(folder.parts) <= 1:
            raise S3SpoolError(
                f"--directory {shown(text)}: must be an absolute path, without .. and control characters"
            )
        why = units.hidden(folder)
        if "PrivateTmp" in why or (why and ":" in text):
            raise S3SpoolError(
                f"--directory {shown(text)}: is {why}, which the service does not see; choose another one"
            )
        if not self._at(folder).is_dir():
            directories.refuse_links(self._root, folder)
        return folder

    # What is made

    def _missing(self, folder: Path, config: str) -> Iterator[Made]:
        """What is not there yet, from the outside inwards."""
        for path in (*reversed(folder.parents), folder):
            if not self._at(path).exists() and path != Path("/"):
                yield Made("directory", path)
        if not self._at(self._service.config).exists():
            if not self._at(self._service.config.parent).exists():
                yield Made("directory", self._service.config.parent)
            yield Made("file", self._service.config, units.digest(config))

    def _make_directory(self, path: Path, user: str, group: str, *, ours: bool) -> None:
        owner = (pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid) if ours and self._live else None
        directories.make(self._root, path, owner=owner, mode=_FOLDER_MODE if ours else 0o755)

    def _write(self, path: Path, content: str) -> str:
        at = self._at(path)
        at.parent.mkdir(parents=True, exist_ok=True)
        there = at.exists()
        at.write_text(content, encoding="utf-8")
        at.chmod(0o644)
        return f"{'rewrote' if there else 'wrote'} {path}"

    def _take_back(self, made: Made) -> Iterator[str]:
        at = self._at(made.path)
        if made.kind == "directory":
            with suppress(FileNotFoundError):
                try:
                    directories.remove(self._root, made.path)
                except S3SpoolError as exc:
                    yield f"{made.path} stays: {exc}"
                except OSError as exc:
                    yield f"{made.path} stays: {exc.strerror}"
                else:
                    yield f"removed {made.path}"
        elif at.is_file() and units.digest(at.read_text(encoding="utf-8", errors="replace")) == made.digest:
            at.unlink()
            yield f"removed {made.path}"
        elif at.exists():
            yield f"{made.path} stays: it was changed after it was made"

    def _next(self, folder: Path) -> Iterator[str]:
        service = self._service
        name = f" --name {service.name}" if service.name else ""
        yield "next:"
        yield f"  write the bucket's name into {service.config}"
        yield f"  put AWS credentials, if this machine has no role, into {service.credentials} (owner root, mode 0600)"
        yield f"  {self._program} service check{name}    says whether it would work"
        yield f"  systemctl enable --now {service.unit.removesuffix('.service')}"
        yield f"  drop files into {folder}"

    def _at(self, path: Path) -> Path:
        return self._root / path.relative_to("/")

    @staticmethod
    def _run(*command: str) -> None:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own words
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise S3SpoolError(f"{' '.join(command[:3])}: {said}")


def this_program() -> Path:
    """The s3spool that runs, as a unit can name it."""
    called = Path(sys.argv[0])
    program = called if called.name == "s3spool" and called.is_file() else Path(sys.executable).with_name("s3spool")
    program = program.absolute()
    if not os.access(program, os.X_OK):
        raise S3SpoolError(f"{program}: is not there, so no unit can name it; install s3spool with pip or pipx")
    return program


def systemd_version() -> int:
    """0 where it does not say."""
    done = subprocess.run(["systemctl", "--version"], check=False, capture_output=True, text=True)  # noqa: S607 - PATH is root's
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else 0


def _sysusers_lines() -> list[str]:
    return [line for line in units.shipped("s3spool.sysusers.conf").splitlines() if line and not line.startswith("#")]


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _open_to_all(path: Path) -> bool:
    """Whether others may search the directory, or read the file; what is not there is not in the way."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    return bool(mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH))
