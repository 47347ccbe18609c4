"""`s3spool service install` and `uninstall`: render the unit, write it, note in it what was made, remove the same.

The notes stand in the unit, which only root can write: the service's user must not decide what root removes.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import s3spool
from s3spool.config import loader as configuration
from s3spool.errors import S3SpoolError
from s3spool.logs.text import shown
from s3spool.systemd import directories, units
from s3spool.systemd.units import Service

USER = "s3spool"
_PACKAGED = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_UNITS = Path("/etc/systemd/system")
_FOLDER_MODE = 0o3770  # as in systemd/s3spool.tmpfiles.conf, which says why


class Installation:
    """One service on this machine, or below `root`, where no command runs and no owner changes."""

    def __init__(self, service: Service, *, program: Path | None = None, root: Path = Path("/")) -> None:
        """Raises S3SpoolError without root, and without systemd."""
        self._service, self._root, self._live = service, root, root == Path("/")
        self._program = program
        self._unit = _UNITS / service.unit
        self._drop_in = _UNITS / f"{service.unit}.d" / "service-install.conf"
        if self._live and os.geteuid() != 0:
            raise S3SpoolError("writes to /etc/systemd/system, which takes root: run it with sudo")
        if self._live and not _RUNNING.is_dir():
            raise S3SpoolError("systemd does not run here: let what starts services here start `s3spool run`")

    def install(self, folder: Path | None, user: str = USER) -> Iterator[str]:
        """Yields a line per change. Everything that can be wrong is checked before the first change."""
        service, program = self._service, self._program or this_program()
        packaged = self._is_packaged(program)
        account = _account(user, packaged=packaged)
        if not packaged:
            _check_program(program)
        place = self._place(packaged=packaged)
        folder = self._folder(folder)
        config = units.sample(folder)
        paths = (*reversed(folder.parents), folder, service.config.parent)
        missing = {path: "" for path in paths if not self._at(path).exists()}
        if not self._at(service.config).exists():
            missing[service.config] = units.digest(config)
        if packaged:
            text = units.drop_in(folder)
        else:
            group = grp.getgrgid(account.pw_gid).gr_name if account else user
            version = re.search(r"\d+", _run("systemctl", "--version")) if self._live else None
            text = units.whole(service, program, user, group, folder, systemd_version=int(version[0]) if version else 0)

        yield self._write(place, units.with_notes(text, (self._notes(place) or {}) | missing))
        if self._live and not account:
            lines = units.shipped("s3spool.sysusers.conf").splitlines()
            _run("systemd-sysusers", "--inline", *(line for line in lines if line and not line.startswith("#")))
            account = pwd.getpwnam(user)
            yield f"made user and group {user}"
        for path, digest in missing.items():
            if not digest and not self._at(path).exists():
                owner = (account.pw_uid, account.pw_gid) if account and path == folder and self._live else None
                directories.make(self._root, path, owner=owner, mode=_FOLDER_MODE if path == folder else 0o755)
                yield f"made {path}"
        if service.config in missing:
            yield self._write(service.config, config)
        if self._live:
            _run("systemctl", "daemon-reload")
        yield from self._next(program, folder)

    def uninstall(self) -> Iterator[str]:
        """Remove what `install` made, unless it was changed since; yields a line per removal and per rest."""
        service = self._service
        found = ((place, self._notes(place)) for place in (self._unit, self._drop_in))
        place, made = next(((place, made) for place, made in found if made is not None), (None, {}))
        if place is None:
            raise S3SpoolError(f"{service.unit}: nothing here was written by `s3spool service install`")
        if self._live:
            _run("systemctl", "disable", "--now", service.unit)
        self._at(place).unlink()
        if place == self._drop_in:
            with suppress(OSError):  # other drop-ins are beside it
                self._at(place.parent).rmdir()
        yield f"stopped {service.unit} and removed {place}" if self._live else f"removed {place}"
        yield from filter(None, (self._remove(path, digest) for path, digest in reversed(made.items())))
        if self._live:
            _run("systemctl", "daemon-reload")
        if self._at(service.state).exists():
            yield f"{service.state} stays: its ledger knows what was uploaded"
        if place == self._unit:
            yield "the user stays: files may belong to it"

    def _is_packaged(self, program: Path) -> bool:
        """Whether a package has installed the unit, and this program with it."""
        there = (directory / self._service.template for directory in _PACKAGED)
        unit = next((path for path in there if self._at(path).exists()), None)
        if unit is None:
            return False
        found = re.search(r"^ExecStart=(\S+)", self._at(unit).read_text(encoding="utf-8"), re.MULTILINE)
        if not found or os.path.realpath(self._at(Path(found[1]))) != os.path.realpath(program):
            raise S3SpoolError(f"{unit}: is the unit of a package, for another program than {program}; use its s3spool")
        return True

    def _place(self, *, packaged: bool) -> Path:
        """Our unit, or our drop-in for a package's unit. Raises S3SpoolError for what must not be overwritten."""
        place = self._drop_in if packaged else self._unit
        for path in (self._unit, place):
            if os.path.lexists(self._at(path)) and self._notes(path) is None:
                raise S3SpoolError(f"{path}: is there already and was not written by this command; move it away")
        if packaged and os.path.lexists(self._at(self._unit)):
            raise S3SpoolError(
                f"{self._unit}: was written by this command for a program without a package, and hides the package's"
                " unit; remove it with `s3spool service uninstall`"
            )
        return place

    def _notes(self, place: Path) -> dict[Path, str] | None:
        path = self._at(place)
        return units.notes(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None

    def _folder(self, wanted: Path | None) -> Path:
        """The folder asked for, else the configuration's, else the usual one."""
        service, named = self._service, None
        if self._at(service.config).exists():
            places = {"HOME": str(service.state), "STATE_DIRECTORY": str(service.state)}
            named = configuration.load(self._at(service.config), environ=places).watch.directory
            if named == Path("tmp").absolute():
                hint = f'add to it: [watch] directory = "{wanted or service.folder}"'
                raise S3SpoolError(f"{service.config}: names no watch.directory; {hint}")
        folder = wanted or named or service.folder
        text, why = str(folder), units.hidden(folder)
        problem = ""
        if named and folder != named:
            problem = f"{service.config} says {shown(str(named))}; change one"
        elif not folder.is_absolute() or ".." in folder.parts or not text.isprintable() or len(folder.parts) <= 1:
            problem = "must be an absolute path, without .. and control characters"
        elif "PrivateTmp" in why or (why and ":" in text):
            problem = f"is {why}, which the service does not see; choose another one"
        if problem:
            raise S3SpoolError(f"--directory {shown(text)}: {problem}")
        if not self._at(folder).is_dir():
            with suppress(FileNotFoundError), directories.opened(self._root, folder):  # refuses links on the way
                pass
        return folder

    def _write(self, path: Path, content: str) -> str:
        at = self._at(path)
        at.parent.mkdir(parents=True, exist_ok=True)
        verb = "rewrote" if at.exists() else "wrote"
        at.write_text(content, encoding="utf-8")
        at.chmod(0o644)
        return f"{verb} {path}"

    def _remove(self, path: Path, digest: str) -> str:
        """Remove an empty directory or an unchanged file; "" if it is gone."""
        at = self._at(path)
        try:
            if not digest:
                with directories.opened(self._root, path.parent) as parent:
                    os.rmdir(path.name, dir_fd=parent)
            elif units.digest(at.read_text(encoding="utf-8", errors="replace")) != digest:
                return f"{path} stays: it was changed after it was made"
            else:
                at.unlink()
        except FileNotFoundError:
            return ""
        except (S3SpoolError, OSError) as exc:
            return f"{path} stays: {getattr(exc, 'strerror', exc)}"
        return f"removed {path}"

    def _next(self, program: Path, folder: Path) -> Iterator[str]:
        service = self._service
        name = f" --name {service.name}" if service.name else ""
        yield "next:"
        yield f"  write the bucket's name into {service.config}"
        yield f"  put AWS credentials, if this machine has no role, into {service.credentials} (owner root, mode 0600)"
        yield f"  {program} service check{name}    says whether it would work"
        yield f"  systemctl enable --now {service.unit.removesuffix('.service')}"
        yield f"  drop files into {folder}"

    def _at(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


def this_program() -> Path:
    """The path of the running s3spool, for ExecStart=."""
    called = Path(sys.argv[0])
    program = called if called.name == "s3spool" and called.is_file() else Path(sys.executable).with_name("s3spool")
    program = program.absolute()
    if not os.access(program, os.X_OK):
        raise S3SpoolError(f"{program}: is not there, so no unit can name it; install s3spool with pip or pipx")
    return program


def _check_program(program: Path) -> None:
    """The service's user must reach the program, its interpreter and its modules from inside the sandbox."""
    parts = {program, Path(sys.executable), Path(sys.base_prefix), Path(s3spool.__file__)}
    for path in sorted(parts | {Path(os.path.realpath(part)) for part in parts}):
        closed = next((at for at in (path, *path.parents) if not _is_open_to_all(at)), None)
        why = units.hidden(path) or (f"below {closed}, where other users may not look" if closed else "")
        if why:
            raise S3SpoolError(
                f"{path}: is {why}, so the service cannot run it; "
                "install s3spool elsewhere, for instance into a virtual environment in /opt/s3spool"
            )


def _is_open_to_all(path: Path) -> bool:
    """Whether all users may search the directory or read the file; true if it is missing."""
    try:
        return bool(path.stat().st_mode & (0o001 if path.is_dir() else 0o004))
    except FileNotFoundError:
        return True


def _account(user: str, *, packaged: bool) -> pwd.struct_passwd | None:
    """None if the user does not exist yet. Raises S3SpoolError for a user that the service must not run as."""
    if packaged and user != USER:
        raise S3SpoolError(f"--user {shown(user)}: the package's units run as {USER}; change it with a drop-in")
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        if user == USER:
            return None
        raise S3SpoolError(f"--user {shown(user)}: there is no such user; make it, or leave the option out") from None
    if account.pw_uid == 0:
        raise S3SpoolError(f"--user {shown(user)}: the service does not run as root; leave the option out")
    return account


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own words
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise S3SpoolError(f"{' '.join(command[:3])}: {reason}")
    return done.stdout
