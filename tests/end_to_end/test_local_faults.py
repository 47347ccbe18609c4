"""This machine fails the running daemon (descriptors, inotify, folder, clock, archive), and it heals by itself."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.daemon import Daemon, Make
from support.disks import mount, mounted, remount, unmount
from support.faults import HoldUntil, Status
from support.faulty import FaultyS3
from support.objects import content_of, folder_files
from support.preload import lying
from support.users import unprivileged
from support.waiting import eventually

pytestmark = pytest.mark.integration

DAY_S = 86_400
FILES = 300
RARELY = {"rescan_s": 3600}  # what heals does not heal by the periodic scan
OFTEN = {"rescan_s": 1}


@pytest.fixture
def make(make: Make, tmp_path: Path) -> Make:
    """With as few workers as will do."""
    return functools.partial(make, tmp_path / "home", upload={"workers": 8})


def uploaded(daemon: Daemon, *names: str) -> None:
    for name in names:
        daemon.wait_event("file.uploaded", path=name)


# --- descriptors and inotify


def test_no_descriptor_left(make: Make, faulty: FaultyS3) -> None:
    """Everything waits, with one line and not one a file; no file is blamed; then everything goes."""
    daemon = make(watch=RARELY, retry={"initial_s": 0.1, "max_s": 1, "max_attempts": 2}).start_scanned()
    daemon.drop("before")
    uploaded(daemon, "before")
    names = {f"f{number}" for number in range(50)} | {f"new/deep/f{number}" for number in range(50)}
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, hard))
    try:
        for name in names:
            daemon.drop(name)
        slowed = daemon.wait_event("destination.slowed")
        eventually(lambda: daemon.events("scan.failed"))
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (soft, hard))

    eventually(lambda: set(faulty.contents()) == names | {"before"})
    assert "LimitNOFILE" in slowed["hint"]
    assert len(daemon.events("destination.slowed")) == 1
    bad = ("destination.paused", "file.parked", "file.failed", "file.vanished", "worker.replaced", "daemon.unhealthy")
    for event in bad:
        assert not daemon.events(event)
    assert len(daemon.events("scan.failed")) == 1
    assert daemon.cli("status").returncode == 0
    assert daemon.stop() == 0


@pytest.mark.parametrize("limit", [80, 150])
def test_few_descriptors(make: Make, limit: int) -> None:
    """Fewer workers start, one warning says how many, and all files go out, also those that come later."""
    daemon = make(upload={"workers": 100})
    daemon.program = ("prlimit", f"--nofile={limit}:{limit}", *daemon.program)
    for number in range(FILES):
        daemon.drop(f"file {number}")
    daemon.start_ready()
    (line,) = daemon.events("workers.limited")
    assert 1 <= line["workers"] < line["wanted"] == 100
    daemon.drop("good")
    uploaded(daemon, "good")
    daemon.wait_uploaded(FILES + 1)
    assert not daemon.events("file.parked")


def test_an_idle_daemon_holds_no_connection(make: Make, faulty: FaultyS3) -> None:
    """After some seconds without a file all are closed."""
    daemon = make(upload={"workers": 100}).start_ready()
    for number in range(200):
        daemon.drop(f"file {number}")
    daemon.wait_uploaded(200)

    def connected() -> int:
        established = "01"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[3] == established and int(row[2].split(":")[1], 16) == faulty.port for row in rows)

    eventually(lambda: connected() == 0)


@pytest.mark.parametrize(("limit", "value"), [("watches", 3), ("instances", 0)])
def test_inotifys_limits(limit: str, value: int, make: Make, faulty: FaultyS3) -> None:
    """One line names the sysctl; scanning takes over, and files go, also in directories that are not watched."""
    confined = ("unshare", "--user", "--map-root-user", "sh", "-c")
    set_limit = f"echo {value} > /proc/sys/user/max_inotify_{limit}"
    if subprocess.run([*confined, set_limit], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace with a limit of its own can be made here")
    daemon = make(watch=RARELY)
    daemon.program = (*confined, f'{set_limit} && exec "$@"', "sh", *daemon.program)
    for number in range(6):
        daemon.drop(f"old {number}/a")
    daemon.start_ready()

    polling = daemon.wait_event("watch.polling")
    for number in range(6):
        daemon.drop(f"new {number}/a")
        daemon.drop(f"old {number}/b")

    names = {f"{age} {number}/a" for age in ("old", "new") for number in range(6)}
    names |= {f"old {number}/b" for number in range(6)}
    eventually(lambda: set(faulty.contents()) == names)
    assert f"fs.inotify.max_user_{limit}" in polling["reason"]
    assert len(daemon.events("watch.polling")) == 1
    assert daemon.stop() == 0


def test_more_events_than_the_kernel_keeps(make: Make, faulty: FaultyS3) -> None:
    """The stopped process hears of no file and no renamed directory; a scan makes good for it, and no file is left."""
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    daemon = make(watch=RARELY)
    (daemon.folder / "old").mkdir(parents=True)
    daemon.start_scanned()
    daemon.signal(signal.SIGSTOP)
    fillers = daemon.folder / ".one", daemon.folder / ".other"  # equal events in a row would be one
    for _ in range(kept // 2 + 1):
        for filler in fillers:
            filler.touch()
        for filler in fillers:
            filler.unlink()
    (daemon.folder / "old").rename(daemon.folder / "new")
    names = {*(f"f{number}" for number in range(FILES)), "new/lost"}
    for name in names:
        daemon.drop(name)
    daemon.signal(signal.SIGCONT)

    daemon.wait_event("watch.overflowed")

    eventually(lambda: set(faulty.contents()) == names)
    eventually(lambda: any("overflow" in scan["reason"] for scan in daemon.events("scan.finished")))
    daemon.drop("new/later")
    eventually(lambda: set(faulty.contents()) == {*names, "new/later"})
    assert daemon.stop() == 0


# --- the folder


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def renamed_away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    other = folder.with_name("other")
    other.mkdir()
    folder.rename(folder.with_name("elsewhere"))
    other.rename(folder)


@pytest.mark.parametrize("go", [deleted, renamed_away, replaced], ids=lambda act: act.__name__)
def test_the_folder_goes_and_comes_back(go: Callable[[Path], None], make: Make, faulty: FaultyS3) -> None:
    """One line each when it goes and when it is back; what is in the new one is sent, also what comes later."""
    holding = HoldUntil()
    faulty.script(holding, match="^PUT flight")
    daemon = make(watch=RARELY, after={"action": "delete"}).start_scanned()
    daemon.drop("flight", content_of(300_000))
    eventually(lambda: faulty.count("^PUT flight"))

    go(daemon.folder)
    daemon.wait_event("watch.lost")
    daemon.folder.mkdir(exist_ok=True)
    daemon.drop("sub/first")
    daemon.wait_event("watch.restored")
    uploaded(daemon, "sub/first")
    daemon.drop("sub/then")
    uploaded(daemon, "sub/then")
    holding.release()
    # A file that was deleted meanwhile is no longer what was sent, nor anything that could be sent again.
    daemon.wait_event("file.vanished" if go is deleted else "file.uploaded", path="flight")

    eventually(lambda: folder_files(daemon.folder) == {})
    assert faulty.contents() == {"flight": content_of(300_000), "sub/first": b"content", "sub/then": b"content"}
    assert len(daemon.events("watch.lost")) == len(daemon.events("watch.restored")) == 1
    if go is not deleted:  # what is no longer in the folder is none of ours
        assert set(folder_files(daemon.folder.with_name("elsewhere"))) == {"flight"}
    assert daemon.stop() == 0


def test_the_folder_is_unmounted_and_mounted_again(make: Make, faulty: FaultyS3) -> None:
    """Nobody tells of it: the daemon looks, and goes on with what stands there now."""
    daemon = make(watch=RARELY)
    with mounted(daemon.folder):
        daemon.start_scanned()
        daemon.drop("first")
        uploaded(daemon, "first")

        unmount(daemon.folder)
        daemon.wait_event("watch.restored")
        mount(daemon.folder)
        daemon.drop("second")
        uploaded(daemon, "second")

        assert len(daemon.events("watch.lost")) == len(daemon.events("watch.restored")) == 2
        daemon.drop("third")
        uploaded(daemon, "third")
        assert daemon.stop() == 0
    assert set(faulty.contents()) == {"first", "second", "third"}


def test_a_folder_that_becomes_read_only(make: Make, faulty: FaultyS3) -> None:
    """What was sent cannot be removed: it says so once, tries again, and sends nothing twice."""
    holding = HoldUntil()
    faulty.script(holding, times=None)
    daemon = make(watch=OFTEN, after={"action": "delete"})
    names = {f"f{number}" for number in range(5)}
    with mounted(daemon.folder):
        daemon.start_ready()
        for name in names:
            daemon.drop(name)
        eventually(lambda: faulty.in_flight == len(names))
        remount(daemon.folder, "ro")
        holding.release()
        failed = daemon.wait_event("file.failed", operation="delete")
        scans = daemon.scans()
        eventually(lambda: daemon.scans() > scans + 1)
        assert set(folder_files(daemon.folder)) == names

        remount(daemon.folder, "rw")

        eventually(lambda: folder_files(daemon.folder) == {})
        assert daemon.stop() == 0
    assert "read-only" in failed["hint"]
    assert len(daemon.events("file.failed")) == 1
    assert sorted(request.line for request in faulty.requests) == [f"PUT {name}" for name in sorted(names)]


def test_a_file_that_may_not_be_read(make: Make, faulty: FaultyS3) -> None:
    """It waits and holds nobody up; when it may be read it goes, without a scan and without a person."""
    daemon = make(watch=RARELY)
    daemon.program = (*unprivileged(), *daemon.program)
    daemon.start_scanned()
    hidden = daemon.home / "secret"
    hidden.write_bytes(b"secret")
    hidden.chmod(0)
    os.utime(hidden, (0, 0))  # while it is young, it may be about to get other permissions
    hidden.rename(daemon.folder / "secret")
    failed = daemon.wait_event("file.failed", path="secret")
    daemon.drop("other")
    uploaded(daemon, "other")
    daemon.wait_event("file.failed", path="secret", attempt=2)
    assert "read access" in failed["hint"]
    assert set(faulty.contents()) == {"other"}

    (daemon.folder / "secret").chmod(0o600)

    uploaded(daemon, "secret")
    assert faulty.contents()["secret"] == b"secret"
    assert not daemon.events("file.parked")
    assert daemon.stop() == 0


def test_a_directory_that_may_not_be_read(make: Make, faulty: FaultyS3) -> None:
    """Said once, not at each scan; the others are scanned, and it is too as soon as that is possible."""
    daemon = make(watch=OFTEN)
    daemon.program = (*unprivileged(), *daemon.program)
    daemon.drop("closed/a")
    (daemon.folder / "closed").chmod(0)
    try:
        daemon.start_ready()
        eventually(lambda: daemon.scans() > 2)
        daemon.drop("open/b")
        uploaded(daemon, "open/b")
    finally:
        (daemon.folder / "closed").chmod(0o700)

    uploaded(daemon, "closed/a")
    assert len(daemon.events("scan.failed")) == 1
    assert daemon.stop() == 0


# --- the clock


def test_refused_files_that_change_on_a_slow_disk_go_out_at_last(faulty: FaultyS3, tmp_path: Path) -> None:
    """They change and are refused again while the old failure is due and the new one is not durable yet.

    Once the bucket takes them, none of them waits for the next start.
    """
    faulty.script(Status(code=400, error_code="InvalidRequest"), times=None, match=r"^PUT bad/")
    environment, retry = lying(tmp_path, slow_fsync_ms=300), {"initial_s": 1, "max_s": 3}
    names = [f"{kind}/{number}" for number in range(500) for kind in ("bad", "good")]
    choice = random.Random(1)
    with Daemon(tmp_path, faulty, environment=environment, retry=retry, watch=RARELY) as daemon:
        for _ in range(80):
            daemon.drop_all(dict.fromkeys(choice.sample(names, 300), b"content"))
        daemon.drop_all(dict.fromkeys(names, b"content"))
        faulty.behave()

        def all_stored() -> bool:
            assert daemon.cli("retry", "--all").returncode == 0
            return len(faulty.objects) == len(names)

        eventually(all_stored, timeout_s=60)


def test_the_clock_jumps(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """A file that waits for its retry, one that settles and a new one: none of them waits for a day."""
    clock = tmp_path / "clock"
    environment = lying(tmp_path, clock_offset=clock)

    def set_clock(offset_s: int) -> None:
        faulty.set_date_skew(offset_s)  # S3 sees a right clock all along: only the jump is tested
        clock.with_suffix(".new").write_text(str(offset_s))
        clock.with_suffix(".new").replace(clock)

    set_clock(0)
    faulty.script(Status(code=400, error_code="BadDigest"), times=None, match="^PUT bad")
    daemon = make(environment=environment, watch=RARELY | {"settle_s": 0.5}).start_scanned()
    daemon.drop("bad")
    daemon.wait_event("file.failed", path="bad")
    for number, jump in enumerate((DAY_S, -DAY_S, 0)):
        set_clock(jump)
        attempts = faulty.count("^PUT bad")
        daemon.drop(f"f{number}")
        ahead = daemon.drop(f"ahead{number}")
        os.utime(ahead, (time.time() + 2 * DAY_S,) * 2)
        eventually(lambda before=attempts: faulty.count("^PUT bad") > before + 1)  # type: ignore[misc]
        uploaded(daemon, f"f{number}", f"ahead{number}")
    faulty.behave()

    uploaded(daemon, "bad")
    assert all(event["next_attempt_s"] <= 1 for event in daemon.events("file.failed"))
    assert not daemon.events("destination.paused")
    assert daemon.stop() == 0


# --- the archive

Fault = Callable[[Daemon, Path], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def another_file_system(_: Daemon, archive: Path) -> Iterator[None]:
    with mounted(archive):
        yield


@contextlib.contextmanager
def full(daemon: Daemon, archive: Path) -> Iterator[None]:
    """No directory can be made any more."""
    fillers: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            filler = daemon.folder / f".filler{len(fillers)}"
            filler.touch()
            fillers.append(filler)
    yield
    for filler in fillers:
        filler.unlink()


@contextlib.contextmanager
def read_only(_: Daemon, archive: Path) -> Iterator[None]:
    archive.chmod(0o500)
    yield
    archive.chmod(0o700)


@contextlib.contextmanager
def a_file_in_its_place(_: Daemon, archive: Path) -> Iterator[None]:
    aside = archive.rename(archive.with_name("aside"))
    archive.write_bytes(b"not a directory")
    yield
    archive.unlink()
    aside.rename(archive)


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (another_file_system, "file system"),
        (full, "free disk space"),
        (read_only, "write access"),
        (a_file_in_its_place, "archive_directory"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_archive_cannot_take_it(fault: Fault, hint: str, make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """The file stays, one line says why, nothing is sent twice or replaced; later it is archived after all."""
    with mounted(tmp_path / "home", "1m", "nr_inodes=300"):
        archive = tmp_path / "home" / "archive"
        after = {"action": "archive", "archive_directory": str(archive)}
        daemon = make(watch=OFTEN, after=after)
        daemon.program = (*unprivileged(), *daemon.program)
        (archive / "sub").mkdir(parents=True)
        (archive / "sub/taken").write_bytes(b"older")
        daemon.folder.joinpath("sub").mkdir()
        daemon.folder.joinpath("new").mkdir()
        daemon.drop("sub/warm")
        daemon.start()
        uploaded(daemon, "sub/warm")
        eventually((archive / "sub/warm").exists)
        before = folder_files(archive)
        taken = daemon.folder / "sub/taken"
        taken.with_name(".hidden").write_bytes(b"newer")
        other = daemon.folder / "new/a"
        other.with_name(".hidden").write_bytes(b"a")

        with fault(daemon, archive):
            other.with_name(".hidden").rename(other)
            failed = daemon.wait_event("file.failed", path="new/a", operation="archive")
            scans = daemon.scans()
            eventually(lambda: daemon.scans() > scans + 1)
            assert other.read_bytes() == b"a"
        taken.with_name(".hidden").rename(taken)

        expected = before | {"sub/taken.1": b"newer", "new/a": b"a"}
        eventually(lambda: folder_files(archive) == expected)
        assert hint in failed["hint"]
        assert len(daemon.events("file.failed")) == 1
        assert folder_files(daemon.folder) == {}
        assert sorted(request.line for request in faulty.requests) == ["PUT new/a", "PUT sub/taken", "PUT sub/warm"]
        assert daemon.stop() == 0


def test_the_archive_is_removed(make: Make, faulty: FaultyS3, tmp_path: Path) -> None:
    """It is made again: where to archive was said."""
    archive = tmp_path / "archive"
    daemon = make(after={"action": "archive", "archive_directory": str(archive)}).start_scanned()
    shutil.rmtree(archive)

    daemon.drop("sub/a")

    eventually(lambda: archive.exists() and folder_files(archive) == {"sub/a": b"content"})
    assert not daemon.events("file.failed")
    assert daemon.stop() == 0
