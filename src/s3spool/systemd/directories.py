"""Directories made and removed by root below directories that others may own: no symbolic link is followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from s3spool.errors import S3SpoolError

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def refuse_links(root: Path, path: Path) -> None:
    """Raises S3SpoolError where `path`, as far as it is there below `root`, leads through a link or a file."""
    with contextlib.suppress(FileNotFoundError), _opened(root, path):
        pass


def make(root: Path, path: Path, *, owner: tuple[int, int] | None = None, mode: int = 0o755) -> None:
    """Create the directory; its parent exists. Raises S3SpoolError, OSError."""
    with _opened(root, path.parent) as parent:
        os.mkdir(path.name, 0o700, dir_fd=parent)
        fd = _open(path.name, path, parent)
    try:
        # The owner of the parent may have replaced it meanwhile.
        if os.fstat(fd).st_uid != os.geteuid():
            raise S3SpoolError(f"{path}: somebody has replaced it while it was made; nothing more was done")
        if owner:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove(root: Path, path: Path) -> None:
    """Remove an empty directory. Raises S3SpoolError, OSError."""
    with _opened(root, path.parent) as parent:
        os.rmdir(path.name, dir_fd=parent)


@contextlib.contextmanager
def _opened(root: Path, path: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        at = Path("/")
        for part in path.relative_to("/").parts:
            at /= part
            below = _open(part, at, fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _open(name: str, path: Path, parent: int) -> int:
    try:
        return os.open(name, _FLAGS, dir_fd=parent)
    except OSError as exc:
        if exc.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        link = stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        problem = "is a symbolic link; name the directory that it leads to" if link else "is not a directory"
        raise S3SpoolError(f"{path}: {problem}") from exc
