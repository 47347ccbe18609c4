"""Whether the daemon can use the paths of a configuration; creates the directories that s3spool owns."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from s3spool.config.schema import Config
from s3spool.errors import ConfigError, raise_config_errors

_USER = "for the user that s3spool runs as"
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # without any permission under ProtectHome=yes


def check_directories(config: Config) -> None:
    """See that the daemon can use every path, then create missing directories; creates none if a path is wrong.

    Raises ConfigError, or CombinedConfigError with all errors.
    """
    raise_config_errors(wrong_paths(config))
    for name, (path, mode) in _created(config).items():
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(name, path, f"cannot be made a directory: {exc.strerror}") from exc


def wrong_paths(config: Config) -> list[ConfigError]:
    """An error for each path that the daemon cannot use."""
    created = _created(config)
    problems = [(name, path, _not_creatable(path)) for name, (path, _) in created.items()]
    problems += _problems(config, "watch.directory" in created)
    return [ConfigError(name, path, problem) for name, path, problem in problems if problem]


def _created(config: Config) -> dict[str, tuple[Path, int]]:
    """The directories that s3spool makes if they are missing, with their modes."""
    watched, archive = config.watch.directory, config.after.archive_directory
    created = {"state.directory": (config.state.directory, 0o700)}
    if watched == Path("tmp").absolute() and not os.path.lexists(watched):
        created["watch.directory"] = (watched, 0o777)
    if archive and "archive" in config.actions:
        created["after.archive_directory"] = (archive, 0o777)
    return created


def _problems(config: Config, creates_folder: bool) -> Iterator[tuple[str, Path, str]]:
    watched, actions, archive = config.watch.directory, config.actions, config.after.archive_directory
    problem = ""
    if not creates_folder:
        problem = _unusable(watched, os.R_OK | os.X_OK, "readable")
        if removing := next((action for action in ("delete", "archive") if action in actions), ""):
            problem = problem or _unusable(watched, os.W_OK, f'writable, for after.action = "{removing}",')
        yield "watch.directory", watched, problem
    is_used = archive and "archive" in actions and not problem and not _not_creatable(archive)
    if archive and is_used and not same_mount(archive, watched):
        problem = (
            "is on another file system or mount than watch.directory; files can only be renamed within one"
            " (for a service: one ReadWritePaths= above both)"
        )
        yield "after.archive_directory", archive, problem
    socket, bundle = config.service.control_socket, config.destination.ca_bundle
    if socket.parent != config.state.directory:
        problem = _unusable(socket.parent, os.W_OK | os.X_OK, "writable")
        yield "service.control_socket", socket, problem and f"{socket.parent} {problem}"
    if os.path.lexists(socket) and not socket.is_socket():
        yield "service.control_socket", socket, "is something else than a socket; name a path that is free"
    if bundle and not os.access(bundle, os.R_OK):
        yield "destination.ca_bundle", bundle, "does not exist or is not readable"


def _unusable(path: Path, access: int, adjective: str) -> str:
    """Why it is not a directory with this access; else ""."""
    try:
        path.stat()
    except FileNotFoundError:
        return f"does not exist; make it with: mkdir -p {shlex.quote(str(path))}"
    except OSError as exc:
        return f"cannot be reached: {exc.strerror}{sandbox(path)}"
    if not path.is_dir():
        return "is not a directory"
    return "" if os.access(path, access) else f"must be {adjective} {_USER}{sandbox(path)}"


def _not_creatable(path: Path) -> str:
    """Why it is neither a writable directory nor can become one; else ""."""
    there = nearest(path)
    if there == path:
        return _unusable(path, os.W_OK | os.X_OK, "writable")
    if not there.is_dir():
        return f"cannot be made: {there} is not a directory"
    may_write = os.access(there, os.W_OK | os.X_OK)
    return "" if may_write else f"does not exist and cannot be made: {there} is not writable {_USER}"


def sandbox(path: Path) -> str:
    """How the settings of a unit keep the daemon from `path`, which a shell does not show; else ""."""
    for home in _HOMES:
        if path.is_relative_to(home) and home.is_dir() and not home.stat().st_mode & 0o7777:
            return f"; the unit hides it: a drop-in has to say ProtectHome=tmpfs and BindPaths={path}"
    with contextlib.suppress(OSError):  # the caller has reported the error
        if os.statvfs(nearest(path)).f_flag & os.ST_RDONLY:
            return f"; it is read-only here: for a service a drop-in has to say ReadWritePaths={path}"
    return ""


def same_mount(one: Path, other: Path) -> bool:
    """Whether rename(2) can move files from one to the other: it never crosses mounts, not even of one disk."""
    return _mount(nearest(one)) == _mount(nearest(other))


def _mount(path: Path) -> tuple[int, str]:
    """The device, and the number of the mount if /proc tells it."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        text = ""
        with contextlib.suppress(PermissionError):  # a process that hides its memory, before Linux 5.14
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        found = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
        return os.fstat(fd).st_dev, found[1] if found else ""
    finally:
        os.close(fd)


def nearest(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))
