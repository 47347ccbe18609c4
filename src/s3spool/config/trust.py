"""Which configuration file counts: not one in the current directory that another user could have written."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from s3spool.errors import ConfigError

HERE = Path("s3spool.toml")


def choose(found: list[Path], watched: Callable[[], Iterable[Path]], tell: Callable[[str], object]) -> Path | None:
    """The first of these files; the one of the current directory counts only if it is trusted.

    Anyone may drop files into the `watched` folders. `tell` gets a line if a file is passed over.
    Raises ConfigError if that leaves no file.
    """
    if not found or found[0] != HERE or not (why := untrusted_reason(HERE) or _dropped(watched())):
        return found[0] if found else None
    if len(found) == 1:
        raise ConfigError(str(HERE), None, f"{why}, so it does not count; name a file with --config")
    tell(f"{HERE}: {why}; passed over, {found[1]} is taken")
    return found[1]


def is_inside(path: Path, directory: Path) -> bool:
    """Whether `path` is `directory` or below it, once symbolic links are followed; neither has to exist."""
    # Path.resolve raises for loops and over-long names.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _dropped(watched: Iterable[Path]) -> str:
    inside = next((folder for folder in watched if is_inside(HERE.absolute(), folder)), None)
    return f"is inside the watched folder {inside}" if inside else ""


def untrusted_reason(path: Path) -> str:
    """Why another user could have written or placed the file, in a few words; else "".

    Only regular files are checked: the user always names a pipe or device.
    """
    try:
        file, link, directory = os.stat(path), os.lstat(path), os.stat(path.parent)
    except OSError:
        return ""  # the loader reports the error
    if not stat.S_ISREG(file.st_mode):
        return ""
    where = path.parent.absolute()
    for status, place in ((link, ""), (file, ""), (directory, f"{where} ")):
        if status.st_uid not in {0, os.geteuid()}:
            return f"{place}belongs to {_name(status.st_uid)}"
        if status is not link and _others_can_write(status):
            return f"others can write to {place.removesuffix(' ') or 'it'}"
    return ""


def _others_can_write(status: os.stat_result) -> bool:
    by_group = bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid)
    return by_group or bool(status.st_mode & stat.S_IWOTH)


def _is_private(group: int) -> bool:
    """Whether it is the group of this user alone, which many systems make and umask 002 relies on."""
    try:
        found, user = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return found.gr_name == user.pw_name and found.gr_gid == user.pw_gid and set(found.gr_mem) <= {user.pw_name}


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"uid {user}"
