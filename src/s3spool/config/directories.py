"""The paths a configuration names: whether the daemon can use them, and those that are ours to make."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from pathlib import Path
from typing import NamedTuple

from s3spool.config.schema import Config
from s3spool.errors import ConfigError

_OURS = "for the user that s3spool runs as"
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))  # of no mode at all under ProtectHome=yes


def check_directories(config: Config) -> None:
    """See that the daemon can use every path it was given, then make the directories that are ours to make.

    Nothing is made if anything is wrong. Raises ConfigError.
    """
    watch, state, after, ca_bundle = config.watch, config.state, config.after, config.destination.ca_bundle
    ours: list[tuple[str, Path, int]] = []
    if watch.directory == Path("tmp").absolute() and not os.path.lexists(watch.directory):
        ours.append(("watch.directory", watch.directory, 0o777))
    else:
        _require("watch.directory", watch.directory, os.R_OK | os.X_OK, "readable")
        if after.action != "keep":
            _require("watch.directory", watch.directory, os.W_OK, f'writable, for after.action = "{after.action}",')
    ours.append(("state.directory", state.directory, 0o700))
    archive = after.archive_directory if after.action == "archive" else None
    if archive:
        ours.append(("after.archive_directory", archive, 0o777))
    for name, path, _ in ours:
        _require_or_makeable(name, path)
    if archive:
        _require_same_mount(archive, watch.directory)
    socket = config.service.control_socket
    if socket.parent != state.directory:
        _require("service.control_socket", socket, os.W_OK | os.X_OK, "in a directory writable", path=socket.parent)
    if os.path.lexists(socket) and not socket.is_socket():
        raise ConfigError(
            "service.control_socket", str(socket), "is something else than a socket; name a path that is free"
        )
    if ca_bundle and not os.access(ca_bundle, os.R_OK):
        raise ConfigError("destination.ca_bundle", str(ca_bundle), "does not exist or is not readable")
    for name, path, mode in ours:
        _make(name, path, mode)


class _Mount(NamedTuple):
    device: int
    number: str


def _require(name: str, value: Path, access: int, adjective: str, *, path: Path | None = None) -> None:
    """`path` is what is looked at, where that is not the value itself."""
    path = path or value
    at = "" if path is value else f"{path} "
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError as exc:
        raise ConfigError(
            name, str(value), f"{at}does not exist; make it with: mkdir -p {shlex.quote(str(path))}"
        ) from exc
    except OSError as exc:
        raise ConfigError(name, str(value), f"{at}cannot be reached: {exc.strerror}{sandbox(path)}") from exc
    if not is_directory:
        raise ConfigError(name, str(value), f"{at}is not a directory")
    if not os.access(path, access):
        raise ConfigError(name, str(value), f"must be {adjective} {_OURS}{sandbox(path)}")


def _require_or_makeable(name: str, path: Path) -> None:
    nearest = _nearest(path)
    if nearest == path:
        _require(name, path, os.W_OK | os.X_OK, "writable")
    elif not nearest.is_dir():
        raise ConfigError(name, str(path), f"cannot be made: {nearest} is not a directory")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(name, str(path), f"does not exist and cannot be made: {nearest} is not writable {_OURS}")


def sandbox(path: Path) -> str:
    """What cannot be seen from a shell: how a unit's settings keep the daemon from `path`. Empty if they do not."""
    for home in _HOMES:
        if path.is_relative_to(home) and home.is_dir() and not stat.S_IMODE(home.stat().st_mode):
            return f"; the unit hides it: a drop-in has to say ProtectHome=tmpfs and BindPaths={path}"
    with contextlib.suppress(OSError):  # who asks has said already what is wrong with it
        if os.statvfs(_nearest(path)).f_flag & os.ST_RDONLY:
            return f"; it is read-only here: for a service a drop-in has to say ReadWritePaths={path}"
    return ""


def same_mount(one: Path, other: Path) -> bool:
    """Whether files can be renamed from one to the other: rename(2) does not cross mounts, not even of one disk."""
    return _mount(_nearest(one)) == _mount(_nearest(other))


def _require_same_mount(archive: Path, watched: Path) -> None:
    if not same_mount(archive, watched):
        problem = "is on another file system or mount than watch.directory; files can only be renamed within one"
        raise ConfigError("after.archive_directory", str(archive), problem)


def _mount(path: Path) -> _Mount:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        text = ""
        with contextlib.suppress(PermissionError):  # a process that hides its memory, before Linux 5.14
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
        found = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
        return _Mount(os.fstat(fd).st_dev, found[1] if found else "")
    finally:
        os.close(fd)


def _nearest(path: Path) -> Path:
    """The path, or the nearest of its parents that there is."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _make(name: str, path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(name, str(path), f"cannot be made a directory: {exc.strerror}") from exc
