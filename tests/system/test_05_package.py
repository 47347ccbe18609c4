"""The package as a file: the same from the same source, and to Debian's taste."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from system.conftest import build_deb

if TYPE_CHECKING:
    from pathlib import Path

    from system.machine import Machine


@pytest.mark.skipif("SYSTEM_TESTS_DEB" in os.environ, reason="SYSTEM_TESTS_DEB: nothing is built")
def test_two_builds_are_the_same_bytes(machine: Machine, deb: Path, tmp_path: Path) -> None:
    """Whoever builds a release again can tell whether it is what was published."""
    again = build_deb(tmp_path)

    assert again.name == deb.name
    assert again.read_bytes() == deb.read_bytes()


def test_lintian_finds_no_error(machine: Machine, deb: Path) -> None:
    """What Debian's own checker calls an error is one."""
    lintian = shutil.which("lintian")
    assert lintian, "lintian: not found (Debian: apt install lintian)"
    command = [lintian, "--allow-root", "--fail-on", "error", str(deb)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
