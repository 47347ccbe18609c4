"""What a person calls a file, as its path in the watched folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from s3spool.errors import S3SpoolError
from s3spool.ledger.rows import from_text, to_text
from s3spool.logs.text import shown


def path_in(folder: str, file: str) -> str:
    """The path relative to `folder` (resolved). Raises S3SpoolError.

    `file` is relative to the current directory if that leads into the folder, else to the folder; or spelled as in the
    JSON of `list`. Links on the way are followed, but not the last one: its name counts.
    """
    bases = [folder]
    with contextlib.suppress(FileNotFoundError):  # the current directory is gone
        bases.insert(0, str(Path.cwd()))
    for base in bases:
        if path := _below(folder, os.path.join(base, file)):
            return path
    if file.startswith("//"):
        with contextlib.suppress(UnicodeEncodeError):
            path = from_text(file)
            if to_text(path) == file:
                return path_in(folder, path)
    raise S3SpoolError(f"{shown(file)}: names no file inside the watched folder, {shown(folder)}")


def _below(folder: str, path: str) -> str | None:
    directory, name = os.path.split(path.rstrip("/"))
    if name in {"", ".", ".."}:
        return None
    whole = os.path.join(os.path.realpath(directory), name)
    start = folder.rstrip("/") + "/"
    return whole.removeprefix(start) if whole.startswith(start) else None
