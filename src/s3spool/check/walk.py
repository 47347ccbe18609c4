"""Walks the watched folder as a scan would, for commands that say what a daemon would do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Literal, NamedTuple

from s3spool.config.schema import Config
from s3spool.folder.filters import FileFilter
from s3spool.folder.rules import FileRules
from s3spool.s3.keys import too_deep


class Found(NamedTuple):
    """`path` is relative; that of a directory ends with a slash, and is empty for the folder itself."""

    kind: Literal["file", "left out", "directory", "excluded", "too deep", "unreadable"]
    path: str
    error: str = ""


def walk(config: Config, *, in_order: bool = False) -> Iterator[Found]:
    """Regular files, also those that the patterns leave out, and directories; links and FIFOs are passed over.

    `in_order` sorts by name, which takes memory for each entry of a directory.
    """
    watch = config.watch
    no_room = partial(too_deep, prefixes=FileRules(config).prefixes)
    names = FileFilter(watch.include, watch.exclude)
    pending = [""]
    while pending:
        directory = pending.pop()
        below: list[str] = []
        try:
            with os.scandir(watch.directory / directory) as entries:
                yield Found("directory", directory)
                for entry in sorted(entries, key=attrgetter("name")) if in_order else entries:
                    path = f"{directory}{entry.name}"
                    with suppress(OSError):
                        if entry.is_file(follow_symlinks=False):
                            yield Found("file" if names.accepts_file(path) else "left out", path)
                        elif watch.recursive and entry.is_dir(follow_symlinks=False):
                            if not names.enters_directory(path):
                                yield Found("excluded", f"{path}/")
                            elif no_room(path):
                                yield Found("too deep", f"{path}/")
                            else:
                                below.append(f"{path}/")
        except OSError as exc:
            yield Found("unreadable", directory, exc.strerror or str(exc))
        pending += reversed(below)
