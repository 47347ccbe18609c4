"""A hidden file in the folder by which other nodes know that this daemon sees the same folder. It is never uploaded."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from s3spool.ledger.rows import Node

MARKER = ".s3spool-node."
_LONGEST = 100  # bytes of the content that are read


class FolderMarker:
    """`content` is random, and new with each start: an old file of the same name proves nothing."""

    def __init__(self, root: Path, node: str, destination: str = "") -> None:
        """Write it; where that fails, `content` is empty. Without the name of a node there is none."""
        self._root = root
        self._destination = destination
        self._path = root / marker_name(node)
        self.content = ""
        if node:
            content = secrets.token_hex(16)
            with suppress(OSError):  # a folder may be read-only for an uploader that keeps its files
                self._write(content)
                self.content = content

    def sees_all(self, nodes: Sequence[Node]) -> bool:
        """Whether the markers of all nodes of this destination are in this folder."""
        here = [node for node in nodes if node.destination == self._destination and node.load.marker]
        names = Counter(node.name for node in here)  # daemons of one name overwrite each other's marker
        return all(
            names[node.name] > 1 or _content(self._root / marker_name(node.name)) == node.load.marker for node in here
        )

    def remove(self) -> None:
        """Unless another daemon of the same name has written its own."""
        if self.content and _content(self._path) == self.content:
            with suppress(OSError):
                self._path.unlink()

    def _write(self, content: str) -> None:
        # A new file: the name may be a link that another user has made.
        new = self._path.with_name(f"{MARKER}{content}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "w") as file:
            file.write(f"{content}\n")
        new.rename(self._path)


def marker_name(node: str) -> str:
    return MARKER + quote(node, safe=" ")


def markers(root: Path) -> dict[str, str]:
    """The content of each marker, by its file name. Raises OSError."""
    with os.scandir(root) as entries:
        return {entry.name: _content(Path(entry.path)) for entry in entries if entry.name.startswith(MARKER)}


def _content(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _LONGEST).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
