"""The directories that a scan has still to list."""

from __future__ import annotations

from collections.abc import Container


class PendingDirectories:
    """Directories found and not listed yet; a million of them take little more memory than their names."""

    CHUNK = 1000

    def __init__(self) -> None:
        self._chunks: list[tuple[str, bytes]] = []  # a directory, and names in it
        self._names: list[str] = []  # of the last chunk
        self._directory = ""

    def add(self, directory: str, names: list[str]) -> None:
        if names:
            self._chunks.append((directory, "/".join(names).encode(errors="surrogateescape")))

    def pop(self, apart: Container[str] = ()) -> str | None:
        """Remove and return one ("" or "a/b/"), deepest first, except those in `apart`; None when none is left."""
        while True:
            if self._names:
                name = self._names.pop()
                directory = f"{self._directory}{name}/" if name else ""
                if directory not in apart:
                    return directory
            elif self._chunks:
                self._directory, names = self._chunks.pop()
                self._names = names.decode(errors="surrogateescape").split("/")
            else:
                return None
