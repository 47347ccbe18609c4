"""Drop prepared files into the watched folder as fast as one process can; prints when the first one went."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def main(how: str, prepared: str, folder: str) -> None:
    moves = [(path, os.path.join(folder, path.name)) for path in sorted(Path(prepared).iterdir())]
    first_drop_s = time.monotonic()
    if how == "rename":
        for source, target in moves:
            os.rename(source, target)
    else:
        for source, target in moves:
            Path(target).write_bytes(source.read_bytes())
    print(repr(first_drop_s), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
