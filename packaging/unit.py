"""Prints a unit for the systemd that the package is built for: `unit.py FILE VERSION`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from s3spool.systemd.units import for_systemd


def main(file: str, version: str) -> None:
    number = int(re.findall(r"\d+", version)[0])  # of 257~rc1 too
    sys.stdout.write(for_systemd(Path(file).read_text(encoding="utf-8"), number))


if __name__ == "__main__":
    main(*sys.argv[1:])
