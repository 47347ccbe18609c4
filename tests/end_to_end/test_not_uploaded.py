"""What must never leave the folder: excluded names, everything that is no regular file, and what is sent already."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from support.daemon import Daemon
from support.faulty import FaultyS3
from support.odd_files import make_odd
from support.waiting import eventually

pytestmark = pytest.mark.integration

SECRET = b"what lies behind is nobody's business"

EXCLUDED = (".hidden", "x.part", "x.partial", "x.tmp", "x.crdownload", "x~", ".git/config", "a.part/deep/file")
KINDS = ("directory", "symlink", "dangling symlink", "fifo", "socket", *(["device"] if os.geteuid() == 0 else []))


def lay_all(place: Path, outside: Path) -> None:
    """Everything that is not to be sent."""
    for name in EXCLUDED:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(SECRET)
    for kind in KINDS:
        make_odd(place / kind, kind, outside / "secret" if kind == "symlink" else Path("nowhere"))
    for name, target in {"inside": place / "x.part", "directory outside": outside, "loop": place}.items():
        (place / name).symlink_to(target)
    (place / ".link").symlink_to(outside / "secret")
    (place / ".link").rename(place / "moved over")


def test_no_request_is_sent_for_it(tmp_path: Path, faulty: FaultyS3) -> None:
    """Neither the scan at start nor the watch takes it, and with `delete` it stays where and what it is."""
    daemon = Daemon(tmp_path, faulty, watch={"rescan_s": 3600}, after={"action": "delete"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)

    lay_all(daemon.folder / "found", outside)
    with daemon:
        daemon.wait_event("scan.finished")
        lay_all(daemon.folder / "watched", outside)
        laid = entries(daemon.folder)
        daemon.drop("watched/last")
        daemon.wait_event("file.uploaded", path="watched/last")
        daemon.signal(signal.SIGHUP)  # reads the configuration again, and the folder
        eventually(lambda: len(daemon.events("scan.finished")) == 2)
        assert daemon.stop() == 0

    assert [request.line for request in faulty.requests] == ["PUT watched/last"]
    assert entries(daemon.folder) == laid
    assert (outside / "secret").read_bytes() == SECRET
    assert not daemon.events("file.failed")


def entries(folder: Path) -> dict[str, int]:
    """Every name below, and what kind it is."""
    return {str(path): stat.S_IFMT(path.lstat().st_mode) for path in folder.rglob("*")}


def nothing(file: Path) -> None:
    pass


def chmod(file: Path) -> None:
    file.chmod(0o640)


def hard_link_elsewhere(file: Path) -> None:
    file.with_name(f".{file.name}").hardlink_to(file)


def renamed_and_back(file: Path) -> None:
    file.rename(file.with_name(f".{file.name}")).rename(file)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_what_was_sent_is_not_sent_again_after_a_restart(end: str, tmp_path: Path, faulty: FaultyS3) -> None:
    """In keep mode the receipt speaks for the file, as long as its content is the same."""
    daemon = Daemon(tmp_path, faulty, watch={"rescan_s": 3600})
    touches = (nothing, chmod, hard_link_elsewhere, renamed_and_back)
    with daemon:
        daemon.wait_ready()
        for touch in touches:
            daemon.drop(f"{touch.__name__} small", b"s")
            daemon.drop(f"{touch.__name__} large", b"l" * 300_000)
        eventually(lambda: daemon.receipts() == 2 * len(touches))
        daemon.stop() if end == "stopped" else daemon.kill()

        for touch in touches:
            touch(daemon.folder / f"{touch.__name__} small")
            touch(daemon.folder / f"{touch.__name__} large")
        daemon.start()
        daemon.wait_event("scan.finished", files=2 * len(touches))
        daemon.drop("last")
        daemon.wait_event("file.uploaded", path="last")
        assert daemon.stop() == 0

    sent = [f"PUT {touch.__name__} {size}" for touch in touches for size in ("small", "large")]
    assert sorted(request.line for request in faulty.requests) == sorted([*sent, "PUT last"])
