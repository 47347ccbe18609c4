"""Which configuration file counts: not one in the current directory that another user may have written."""

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
    """The first of these files; the one of the current directory only where it is trusted.

    `watched` are the folders into which anyone may drop one; `tell` gets the line that says why it was passed over.
    Raises ConfigError where there is no other.
    """
    if not found or found[0] != HERE or not (why := doubt(HERE) or _dropped(watched())):
        return found[0] if found else None
    if len(found) == 1:
        raise ConfigError(str(HERE), None, f"{why}, so it does not count; name a file with --config")
    tell(f"{HERE}: {why}; passed over, {found[1]} is taken")
    return found[1]


def is_inside(path: Path, directory: Path) -> bool:
    """Whether it is, or is the same, once symbolic links are followed; neither has to exist."""
    # Path.resolve raises for loops and over-long names.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def _dropped(watched: Iterable[Path]) -> str:
    inside = next((folder for folder in watched if is_inside(HERE.absolute(), folder)), None)
    return f"is inside the watched folder {inside}" if inside else ""


def doubt(path: Path) -> str:
    """Why others could have written the file or put it there, in a few words; "" where they could not.

    Only regular files are checked: a pipe or device is always named by the user.
    """
    try:
        file, link, directory = os.stat(path), os.lstat(path), os.stat(path.parent)
    except OSError:
        return ""  # reading it reports the error
    if not stat.S_ISREG(file.st_mode):
        return ""
    user = os.geteuid()
    for status in (link, file):
        if status.st_uid not in {0, user}:
            return f"belongs to {_name(status.st_uid)}"
    if _others_can_write(file):
        return "others can write to it"
    where = path.parent.absolute()
    if directory.st_uid not in {0, user}:
        return f"{where} belongs to {_name(directory.st_uid)}"
    return f"others can write to {where}" if _others_can_write(directory) else ""


def _others_can_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid)


def _is_private(group: int) -> bool:
    """Whether it is the group that many systems make for each user, which umask 002 relies on."""
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
