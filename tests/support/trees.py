"""Directory trees that are awkward to make and to remove."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def deep_tree(root: Path, *, levels: int) -> Iterator[str]:
    """A file below so many directories; its relative path. Removed again, as Python's own rmtree recurses."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        yield "d/" * levels + "file"
    finally:
        subprocess.run(["rm", "-rf", "--", root / "d"], check=True)
