"""The package as a file: the same from the same source, and to Debian's taste."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from system.building import REPOSITORY, download
from system.conftest import GIVEN

if TYPE_CHECKING:
    from pathlib import Path

    from system.building import Builder
    from system.conftest import Build
    from system.machine import Machine


@pytest.mark.skipif(bool(GIVEN), reason="SYSTEM_TESTS_DEB: nothing is built")
def test_two_builds_are_the_same_bytes(machine: Machine, deb: Path, again: Build) -> None:
    """In another directory and time zone: whoever builds a release again can tell whether it is the published one."""
    second = again.deb()

    assert second != deb
    assert second.name == deb.name
    assert second.read_bytes() == deb.read_bytes()


def test_the_same_releases_are_there_for_arm64(builder: Builder, tmp_path: Path) -> None:
    """Of all that the package carries the lock knows a wheel for that machine; one has none and is compiled."""
    lock = REPOSITORY / "packaging/requirements.lock"

    done = download(lock, python=builder.python, machine="aarch64", target=tmp_path / "wheels")

    assert done.returncode == 0, done.stderr
    found = [path.suffix for path in (tmp_path / "wheels").iterdir()]
    assert len(found) == len(re.findall(r"(?m)^[\w-]+==", lock.read_text()))
    assert len(found) - found.count(".whl") == 1


def test_lintian_finds_no_error(builder: Builder, deb: Path) -> None:
    """What Debian's own checker calls an error is one."""
    done = builder.run("lintian", "--allow-root", "--fail-on", "error", deb, shared=(deb.parent,))

    assert done.returncode == 0, done.stdout
