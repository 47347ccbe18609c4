"""Touching files safely: no symlink, FIFO or race leads anywhere else, and what changed is left alone."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3spool.folder import directories, rename
from s3spool.folder.directories import NotAFileError
from s3spool.folder.folder import Folder
from s3spool.folder.lease import Lease, release_lease, take_lease
from s3spool.ledger.rows import Identity
from support.failing import FOR_EVER, fails
from support.odd_files import OtherProcess, descriptors_kept, make_odd
from support.waiting import eventually


@pytest.fixture(autouse=True)
def _ignore_sigio() -> Iterator[None]:
    """A lease that is broken sends SIGIO, whose default action is death; the daemon ignores it as well."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "spool"
    root.mkdir()
    return root


@pytest.fixture
def folder(root: Path) -> Iterator[Folder]:
    folder = Folder(root)
    yield folder
    folder.close()


def read(folder: Folder, path: str) -> bytes:
    fd, status = folder.open(path)
    try:
        assert Identity.of(os.fstat(fd)) == Identity.of(status)
        return os.read(fd, 100)
    finally:
        os.close(fd)


def identity(path: Path) -> Identity:
    return Identity.of(path.stat())


def test_a_root_that_is_missing_or_no_directory(tmp_path: Path) -> None:
    """What is no directory is an OSError, for the configuration to explain."""
    (tmp_path / "file").touch()

    for name, error in {"missing": FileNotFoundError, "file": NotADirectoryError}.items():
        with pytest.raises(error):
            Folder(tmp_path / name)


def test_a_symlinked_root_is_resolved(root: Path, tmp_path: Path) -> None:
    """The person may name the folder by a symlink; inotify needs the real path."""
    (tmp_path / "link").symlink_to(root)
    (root / "a").write_bytes(b"A")

    folder = Folder(tmp_path / "link")

    assert folder.root == root
    assert read(folder, "a") == b"A"
    folder.close()


@pytest.mark.parametrize("name", ["a", "x/y/z", "two\nlines", os.fsdecode(b"latin-\xff/\xfe"), "ü", " ", "-rf", "*"])
def test_files_of_any_name(folder: Folder, root: Path, name: str) -> None:
    """A file is opened, identified and removed under whatever name it has."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"content")

    with descriptors_kept():
        assert read(folder, name) == b"content"
        assert folder.identity_of(name) == identity(file)
        assert folder.unlink_if_same(name, identity(file))

    assert not file.exists()


def test_what_is_not_there(folder: Folder, root: Path) -> None:
    """Gone is gone, with or without the directory it was in."""
    (root / "sub").mkdir()

    with descriptors_kept():
        for name in ("a", "sub/a", "missing/a", "missing/deep/a"):
            assert folder.identity_of(name) is None
            with pytest.raises(FileNotFoundError):
                folder.open(name)
            with pytest.raises(FileNotFoundError):
                folder.unlink_if_same(name, Identity(0, 0, 0, 0, 0))


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "fifo", "socket", "directory", "device"])
def test_what_is_no_regular_file_is_never_opened(folder: Folder, root: Path, kind: str) -> None:
    """Nothing but a regular file is ours; a FIFO without a writer does not hold anybody up."""
    (root / "target").write_bytes(b"secret")
    make_odd(root / "odd", kind, root / "target" if kind == "symlink" else Path("nowhere"))

    with descriptors_kept():
        assert folder.identity_of("odd") is None
        with pytest.raises((NotAFileError, PermissionError)):
            folder.open("odd")


def test_a_fifos_writer_is_not_disturbed(folder: Folder, root: Path) -> None:
    """Looking at a FIFO must not let its writer's open through: it would write into nothing."""
    os.mkfifo(root / "fifo")
    code = "import os, sys; print('ready', flush=True); os.write(os.open(sys.argv[1], os.O_WRONLY), b'data')"
    with subprocess.Popen([sys.executable, "-c", code, root / "fifo"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        state = Path(f"/proc/{writer.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "S")

        for _ in range(100):
            with pytest.raises(NotAFileError):
                folder.open("fifo")

        assert writer.poll() is None
        fd = os.open(root / "fifo", os.O_RDONLY | os.O_NONBLOCK)  # the reader it was waiting for
        assert writer.wait(10) == 0
        assert os.read(fd, 100) == b"data"
        os.close(fd)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "nothing"])
def test_race_swapped_between_the_look_and_the_open(
    folder: Folder, root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was a regular file a moment ago is looked at once more when it is open."""
    (root / "a").write_bytes(b"A")
    look = os.stat

    def looked_then_swapped(name: str, **where: Any) -> os.stat_result:
        status = look(name, **where)
        (root / "a").unlink()
        if kind != "nothing":
            make_odd(root / "a", kind, Path("/etc/hostname"))
        return status

    monkeypatch.setattr(os, "stat", looked_then_swapped)

    with descriptors_kept(), pytest.raises(FileNotFoundError if kind == "nothing" else NotAFileError):
        folder.open("a")


def test_a_symlink_swapped_in_for_a_file(folder: Folder, root: Path, tmp_path: Path) -> None:
    """Whoever may write into the folder must not make us send what only we may read."""
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "a").write_bytes(b"A")
    before = identity(root / "a")
    (root / "a").unlink()
    (root / "a").symlink_to(tmp_path / "secret")

    with pytest.raises(NotAFileError):
        folder.open("a")

    assert folder.identity_of("a") is None
    assert not folder.unlink_if_same("a", before)
    assert not folder.unlink_if_same("a", identity(tmp_path / "secret"))
    assert (root / "a").is_symlink()


@pytest.mark.parametrize("level", ["sub", "sub/deep"])
@pytest.mark.parametrize("kernel", ["today's", "older than 5.6"])
def test_a_symlink_swapped_in_for_a_directory(
    folder: Folder, root: Path, tmp_path: Path, level: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory on the way that has become a symlink leads nowhere, neither to read nor to remove."""
    if kernel != "today's":
        monkeypatch.setattr(directories, "_OPENAT2", 100_000)  # no such system call
    (root / "real" / "deep").mkdir(parents=True)
    (root / "real" / "deep" / "a").write_bytes(b"A")
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "a").write_bytes(b"secret")
    (outside / "a").write_bytes(b"secret")
    (root / "sub").mkdir()
    if level == "sub":
        (root / level).rmdir()
    (root / level).symlink_to(outside if level == "sub" else outside / "deep")
    secret = identity(outside / "deep" / "a")

    with descriptors_kept():
        assert read(folder, "real/deep/a") == b"A"
        for act in (
            lambda: folder.open("sub/deep/a"),
            lambda: folder.unlink_if_same("sub/deep/a", secret),
            lambda: folder.move_if_same("sub/deep/a", secret, tmp_path / "archive"),
        ):
            with pytest.raises(NotAFileError):
                act()
        assert folder.identity_of("sub/deep/a") is None

    assert (outside / "deep" / "a").exists()


def test_a_file_in_the_place_of_a_directory(folder: Folder, root: Path) -> None:
    """A directory that has become a file holds no files any more."""
    (root / "sub").write_bytes(b"now a file")

    assert folder.identity_of("sub/a") is None
    with pytest.raises(NotAFileError):
        folder.open("sub/a")


@pytest.mark.parametrize("change", ["append", "rewrite", "replace", "chmod", "touch", "link"])
def test_what_changed_is_neither_removed_nor_moved(folder: Folder, root: Path, tmp_path: Path, change: str) -> None:
    """A file that is not exactly what was sent stays where it is, untouched."""
    file = root / "a"
    file.write_bytes(b"sent")
    os.utime(file, ns=(0, 10**18))
    sent = identity(file)
    match change:
        case "append":
            file.write_bytes(b"sent!")
        case "rewrite":
            file.write_bytes(b"SENT")
        case "replace":
            (root / "b").write_bytes(b"sent")
            os.utime(root / "b", ns=(0, 10**18))
            (root / "b").replace(file)
        case "chmod":
            file.chmod(0o600)
        case "touch":
            os.utime(file)
        case "link":
            os.link(file, root / "other")
    eventually(lambda: identity(file) != sent)
    content = file.read_bytes()

    assert folder.unlink_if_same("a", sent) is False
    assert folder.move_if_same("a", sent, tmp_path / "archive") is None

    assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["a", "sub/a"])
def test_race_a_scan_finds_a_file_that_is_being_removed(
    folder: Folder, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reserved name says that a removal has begun: this one, and no process has died."""
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"sent")
    unlink = os.unlink

    def scanned(aside: str, *, dir_fd: int) -> None:
        folder.restore(str(Path(name).with_name(aside)), None)
        unlink(aside, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", scanned)

    assert folder.unlink_if_same(name, identity(root / name))
    assert not os.listdir((root / name).parent)


@pytest.mark.parametrize("how", ["unlinked", "moved"])
def test_the_last_name_of_a_file_is_unchanged(folder: Folder, root: Path, tmp_path: Path, how: str) -> None:
    """Our own removal of the others has changed the ctime, and costs no checksum."""
    (root / "a").write_bytes(b"A")
    for name in "bc":
        (root / name).hardlink_to(root / "a")
    sent = identity(root / "a")

    for name in "ab":
        if how == "unlinked":
            assert folder.unlink_if_same(name, sent)
        else:
            assert folder.move_if_same(name, sent, tmp_path / "archive")

    assert identity(root / "c") != sent
    assert folder.is_same(sent, identity(root / "c"))


def test_move_keeps_the_relative_path_and_never_overwrites(folder: Folder, root: Path, tmp_path: Path) -> None:
    """Archived files of one name stand side by side; none replaces another."""
    archive = tmp_path / "archive"
    file = root / "sub" / "two\nlines"
    targets = []
    for number in range(3):
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(number))
        targets.append(folder.move_if_same("sub/two\nlines", identity(file), archive))

    expected = archive / "sub" / "two\nlines"
    assert targets == [expected, Path(f"{expected}.1"), Path(f"{expected}.2")]
    assert [target.read_text() for target in targets if target] == ["0", "1", "2"]
    assert not file.exists()


def test_move_does_not_follow_a_dangling_symlink_in_the_archive(folder: Folder, root: Path, tmp_path: Path) -> None:
    """A symlink of that name counts as taken, wherever it leads."""
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a").symlink_to("nowhere")
    (root / "a").write_text("A")

    target = folder.move_if_same("a", identity(root / "a"), archive)

    assert target == archive / "a.1"
    assert (archive / "a").is_symlink()


@pytest.mark.parametrize("old", ["file", "dangling symlink"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_move_where_the_kernel_cannot_refuse_to_replace(
    folder: Folder, root: Path, tmp_path: Path, code: int, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems without RENAME_NOREPLACE (NFS, FUSE): looked at first, still nothing is replaced."""
    archive = tmp_path / "archive"
    archive.mkdir()
    if old == "file":
        (archive / "a").write_text("old")
    else:
        (archive / "a").symlink_to("nowhere")
    (root / "a").write_text("new")

    def of_old(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(rename, "_renameat2", of_old)

    target = folder.move_if_same("a", identity(root / "a"), archive)

    assert target == archive / "a.1"
    assert (archive / "a").is_symlink() or (archive / "a").read_text() == "old"
    assert target.read_text() == "new"


def test_an_archive_on_another_file_system_is_an_error(folder: Folder, root: Path) -> None:
    """A rename cannot cross file systems; the error reaches the caller and the file stays."""
    (root / "a").write_text("A")
    elsewhere = next(
        (place for place in map(Path, ["/dev/shm", "/run", "/tmp"]) if _other_file_system(place, root)),  # noqa: S108
        None,
    )
    if elsewhere is None:
        pytest.skip("no second file system to write to")
    archive = Path(tempfile.mkdtemp(dir=elsewhere))
    try:
        with pytest.raises(OSError) as raised:  # noqa: PT011 - the errno is asserted
            folder.move_if_same("a", identity(root / "a"), archive)
    finally:
        shutil.rmtree(archive)

    assert raised.value.errno == errno.EXDEV
    assert (root / "a").read_text() == "A"


def _other_file_system(place: Path, root: Path) -> bool:
    return place.is_dir() and os.access(place, os.W_OK) and place.stat().st_dev != root.stat().st_dev


def test_an_archive_full_of_that_name(
    folder: Folder, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searching for a free name ends some time, with an error and the file in its place."""
    (root / "a").write_text("A")
    fails(monkeypatch, rename, "noreplace", FileExistsError(), times=FOR_EVER)

    with pytest.raises(FileExistsError):
        folder.move_if_same("a", identity(root / "a"), tmp_path)

    assert (root / "a").exists()


# The root


def test_a_replaced_root_is_noticed_and_followed(folder: Folder, root: Path) -> None:
    """Another directory at the same path is not ours until it is reopened; then it is."""
    (root / "a").write_text("old")
    root.rename(root.with_name("moved away"))
    gone = folder.still_there()
    reopened_too_early = folder.reopen()
    root.mkdir()
    (root / "a").write_text("new")
    noticed = folder.still_there()
    before = read(folder, "a")

    with descriptors_kept():
        reopened = folder.reopen()

    assert (gone, reopened_too_early, noticed, reopened) == (False, False, False, True)
    assert folder.still_there()
    assert (before, read(folder, "a")) == (b"old", b"new")


def test_a_root_that_is_deleted(folder: Folder, root: Path) -> None:
    """A deleted root is noticed; its files count as gone."""
    (root / "a").write_text("A")
    shutil.rmtree(root)

    assert not folder.still_there()
    assert folder.identity_of("a") is None
    with pytest.raises(FileNotFoundError):
        folder.open("a")


# Leases


def test_a_lease_sees_another_processs_writer(folder: Folder, root: Path) -> None:
    """Busy while it is open for writing anywhere, under any of its names; free once it is closed."""
    (root / "a").write_bytes(b"begun")
    os.link(root / "a", root / "hard link")
    fd, _ = folder.open("a")
    linked, _ = folder.open("hard link")
    with OtherProcess(root / "a") as writer:
        open_for_writing = [take_lease(fd), take_lease(linked)]
        writer.close()

        closed = take_lease(fd)

    release_lease(fd)
    os.close(fd)
    os.close(linked)
    assert open_for_writing == [Lease.BUSY, Lease.BUSY]
    assert closed is Lease.FREE


def test_a_lease_sees_a_writable_mapping(folder: Folder, root: Path) -> None:
    """Who has mapped the file for writing may change it although no descriptor is open."""
    (root / "a").write_bytes(b"x" * 4096)
    with (root / "a").open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 4096)
    fd, _ = folder.open("a")

    while_mapped = take_lease(fd)
    mapping.close()
    afterwards = take_lease(fd)

    release_lease(fd)
    os.close(fd)
    assert (while_mapped, afterwards) == (Lease.BUSY, Lease.FREE)


def test_a_held_lease_keeps_writers_out(folder: Folder, root: Path) -> None:
    """Between lease and release nobody can begin to write: what is read then is one state of the file."""
    (root / "a").write_bytes(b"whole")
    fd, _ = folder.open("a")
    assert take_lease(fd) is Lease.FREE
    with pytest.raises(BlockingIOError):
        os.open(root / "a", os.O_WRONLY | os.O_NONBLOCK)

    release_lease(fd)

    os.close(os.open(root / "a", os.O_WRONLY | os.O_NONBLOCK))
    os.close(fd)


def test_where_a_lease_is_not_possible(root: Path) -> None:
    """On what cannot be leased the answer is "unknown", not an error: then only time tells."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    answer = take_lease(fd)

    os.close(fd)
    assert answer is Lease.UNKNOWN
