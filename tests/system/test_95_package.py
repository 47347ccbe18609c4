"""The package as a file: the same from the same source, and to Debian's taste."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from system.conftest import GIVEN, REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

    from system.conftest import Build
    from system.machine import Machine


@pytest.mark.skipif(bool(GIVEN), reason="SYSTEM_TESTS_DEB: nothing is built")
def test_two_builds_are_the_same_bytes(machine: Machine, deb: Path, again: Build) -> None:
    """In another directory and time zone: whoever builds a release again can tell whether it is the published one."""
    second = again.deb()

    assert second != deb
    assert second.name == deb.name
    assert second.read_bytes() == deb.read_bytes()


def test_the_same_releases_are_there_for_arm64(machine: Machine, tmp_path: Path) -> None:
    """Of all that the package carries the lock knows a wheel for that machine; one has none and is compiled."""
    lock = (REPOSITORY / "packaging/requirements.lock").read_text()
    wheels = tmp_path / "wheels.lock"
    wheels.write_text(re.sub(r"(?m)^systemd-python==(.*\\\n)*.*\n", "", lock))
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    machines = [f"--platform=manylinux_{glibc}_aarch64" for glibc in ("2_17", "2_28", "2_34")]

    done = subprocess.run(
        [*download, *machines, "--python-version=3.11", f"--dest={tmp_path}/wheels", f"--requirement={wheels}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "wheels").iterdir())) == len(re.findall(r"(?m)^[\w-]+==", lock)) - 1


def test_lintian_finds_no_error(machine: Machine, deb: Path) -> None:
    """What Debian's own checker calls an error is one."""
    lintian = shutil.which("lintian")
    assert lintian, "lintian: not found (Debian: apt install lintian)"
    command = [lintian, "--allow-root", "--fail-on", "error", str(deb)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
