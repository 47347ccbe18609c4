"""Root creates and removes directories inside other users' directories: no symbolic link is followed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from s3spool.errors import S3SpoolError

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make(root: Path, path: Path, *, owner: tuple[int, int] | None, mode: int) -> None:
    """Create the directory; its parent exists. Raises S3SpoolError, OSError."""
    with opened(root, path.parent) as parent, contextlib.ExitStack() as stack:
        os.mkdir(path.name, 0o700, dir_fd=parent)
        fd = _open(path, parent)
        stack.callback(os.close, fd)
        if os.fstat(fd).st_uid != os.geteuid():
            raise S3SpoolError(f"{path}: the owner of its parent has replaced it; nothing more was done")
        if owner:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)


@contextlib.contextmanager
def opened(root: Path, path: Path) -> Iterator[int]:
    """A descriptor of the directory `path` below `root`. Raises S3SpoolError, OSError."""
    with contextlib.ExitStack() as stack:
        fd = os.open(root, _FLAGS & ~os.O_NOFOLLOW)
        stack.callback(os.close, fd)
        for at in (*reversed(path.parents), path):
            fd = _open(at, fd) if at.name else os.dup(fd)
            stack.callback(os.close, fd)
        yield fd


def _open(path: Path, parent: int) -> int:
    try:
        return os.open(path.name, _FLAGS, dir_fd=parent)
    except NotADirectoryError as exc:  # the error for a link as well: O_DIRECTORY comes before O_NOFOLLOW
        link = Path(f"/proc/self/fd/{parent}", path.name).is_symlink()
        problem = "is a symbolic link; name the directory that it leads to" if link else "is not a directory"
        raise S3SpoolError(f"{path}: {problem}") from exc
