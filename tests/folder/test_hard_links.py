"""One removal changes the ctime of all names of an inode: that is no change of the content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3spool.folder import hard_links
from s3spool.folder.hard_links import HardLinks
from s3spool.ledger.rows import Identity


def remove(path: Path, links: HardLinks) -> None:
    found, fd = Identity.of(path.stat()), os.open(path, os.O_RDONLY)
    path.unlink()
    links.note(found, os.fstat(fd))
    os.close(fd)


def test_files_with_one_name_take_no_room_from_those_with_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Almost all files have one name; a forgotten inode costs a checksum for each of its names."""
    monkeypatch.setattr(hard_links, "KEPT", 1)
    links, (first, second, other) = HardLinks(), (tmp_path / name for name in ("first", "second", "other"))
    for path in (first, other):
        path.touch()
    second.hardlink_to(first)
    sent = Identity.of(second.stat())

    for path in (first, other):
        remove(path, links)

    assert links.same(sent, Identity.of(second.stat()))


def test_a_limited_number_of_inodes_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten first."""
    monkeypatch.setattr(hard_links, "KEPT", 1)
    links = HardLinks()
    for name in ("old", "new"):
        (tmp_path / name).touch()
        (tmp_path / f"{name}.link").hardlink_to(tmp_path / name)
    sent = Identity.of((tmp_path / "new").stat())

    for name in ("old", "new"):
        remove(tmp_path / f"{name}.link", links)

    assert links.same(sent, Identity.of((tmp_path / "new").stat()))
    assert list(links._spans) == [sent[:2]]
