"""The last step: what is durable is kept, deleted or archived, and nothing else is touched."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3spool.folder.folder import SpecialBitsError
from s3spool.ledger.rows import Receipt
from s3spool.queue.item import Item
from s3spool.upload import post_upload
from s3spool.upload.post_upload import MAX_DIRECTORIES, Sent, WarningLimit
from s3spool.upload.receipt_marks import PREFIX, ReceiptMarks
from s3spool.upload.stats import COMPLETION_BOUNDS_S, UPLOAD_BOUNDS_S
from support.failing import FOR_EVER, fails
from support.house import Build, House
from support.leaks import live_threads
from support.lines import Lines
from support.odd_files import make_odd
from support.rows import a_receipt
from support.users import DAEMON, DROPPER, as_user, everybodys, open_place
from support.waiting import eventually


@pytest.fixture
def house(build: Build) -> House:
    house = build(size=3)
    return house.start(house.after)


def receipt_of(house: House, path: str, after: str) -> Receipt:
    house.after.apply(action=after, archive=house.archive)
    return a_receipt(path, identity=house.identity(path), after=after)


def committed(house: House, receipt: Receipt, *, attempt: int = 2) -> None:
    """As a worker and the ledger would: the path is in flight, the receipt durable."""
    assert house.inbox.claim(receipt.path)
    house.after.receipt_committed(Sent(receipt, 0.5, attempt))


def done(house: House) -> None:
    eventually(lambda: house.inbox.counts() == (0, 0))


def removed(house: House, path: str) -> None:
    """Dropped, sent and, if that is possible, removed."""
    house.drop(path)
    committed(house, receipt_of(house, path, "delete"))
    done(house)


@contextlib.contextmanager
def no_removal(error: OSError, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        fails(patch, os, "unlink", error, times=FOR_EVER)
        yield


DENIED = PermissionError(13, "Permission denied", "a")


@pytest.mark.parametrize("after", ["keep", "delete", "archive"])
def test_after_a_receipt(house: House, lines: Lines, after: str) -> None:
    """One line says that it was sent; then the file is where it should be, and nowhere else, without any mark."""
    file = house.drop("sub/a", b"hello")
    changed_at = house.identity("sub/a").ctime_ns / 1e9

    committed(house, receipt_of(house, "sub/a", after)._replace(uploaded_at=changed_at + 2))
    done(house)

    archived = house.archive / "sub/a"
    assert file.exists() is (after == "keep")
    assert archived.exists() is (after == "archive")
    if after != "delete":
        names = os.listxattr(file if after == "keep" else archived)
        assert not [name for name in names if name.startswith(PREFIX)]
    (line,) = lines
    assert line == {
        "event": "file.uploaded",
        "level": "info",
        "path": "sub/a",
        "key": "in/sub/a",
        "bucket": "memory",
        "bytes": 5,
        "duration_s": 0.5,
        "attempt": 2,
        "etag": a_receipt().etag,
        "checksum": a_receipt().checksum,
        "version_id": "v1",
    }
    assert (house.stats.uploaded, house.stats.bytes_uploaded) == (1, 5)
    assert sum(house.stats.completion_s.counts) == 1
    assert house.stats.completion_s.total == pytest.approx(2, abs=0.001)


@pytest.mark.parametrize("bounds", [UPLOAD_BOUNDS_S, COMPLETION_BOUNDS_S], ids=["upload", "completion"])
def test_the_bounds_of_a_histogram_ascend(bounds: tuple[float, ...]) -> None:
    """They are searched by bisection, and Prometheus refuses others."""
    assert list(bounds) == sorted(set(bounds))


@pytest.mark.parametrize("after", ["keep", "delete", "archive"])
def test_what_was_sent_by_an_earlier_process_is_finished(house: House, lines: Lines, after: str) -> None:
    """The removal that a crash prevented is made up for, silently and without counting an upload."""
    file = house.drop("a")
    assert house.inbox.claim("a")

    house.after.finish(receipt_of(house, "a", after))
    done(house)

    assert file.exists() is (after == "keep")
    assert lines == []
    assert house.stats.uploaded == 0


@pytest.mark.parametrize("after", ["delete", "archive"])
def test_a_changed_file_stays_and_is_sent_again(house: House, lines: Lines, after: str) -> None:
    """What was written to between upload and removal is not what S3 has."""
    file = house.drop("a")
    receipt = receipt_of(house, "a", after)
    house.drop("a", b"changed", mtime_ns=2 * 10**18)

    committed(house, receipt)
    done(house)

    assert file.read_bytes() == b"changed"
    assert house.settle.knows(["a"]) == {"a"}
    assert [line["event"] for line in lines] == ["file.uploaded", "file.changed"]


@pytest.mark.parametrize("after", ["keep", "delete"])
def test_what_was_offered_again_meanwhile_is_looked_at_again(house: House, after: str) -> None:
    """An event during the upload is remembered until here, and then starts the way anew."""
    house.drop("a")
    receipt = receipt_of(house, "a", after)
    assert house.inbox.claim("a")
    house.inbox.offer([Item("a")])

    house.after.receipt_committed(Sent(receipt, 0.5, 1))
    done(house)

    eventually(lambda: house.settle.knows(["a"]) == {"a"})


def test_no_room_to_settle_asks_for_a_scan(house: House) -> None:
    """What has to be looked at again but finds no room must not be forgotten."""
    house.drop("a")
    receipt = receipt_of(house, "a", "delete")
    house.drop("a", b"changed", mtime_ns=2 * 10**18)
    for number in range(3):
        house.settle.add(str(number))

    committed(house, receipt)

    eventually(lambda: house.rescans == ["full"])


@pytest.mark.parametrize("what", ["gone", "symlink", "dangling symlink", "directory", "parent is a symlink"])
@pytest.mark.parametrize("after", ["delete", "archive"])
def test_what_is_no_longer_the_file_is_left_alone(house: House, tmp_path: Path, after: str, what: str) -> None:
    """Somebody else has removed or replaced it: nothing is removed in its place."""
    file = house.drop("sub/a")
    receipt = receipt_of(house, "sub/a", after)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.link(file, elsewhere / "a")
    file.unlink()
    if what == "parent is a symlink":
        file.parent.rmdir()
        file.parent.symlink_to(elsewhere)
    elif what != "gone":
        make_odd(file, what, elsewhere / "a" if what == "symlink" else Path("nowhere"))

    committed(house, receipt)
    done(house)

    assert (elsewhere / "a").exists()
    assert os.path.lexists(file) is (what != "gone")
    assert house.after.alive()


def test_a_removal_that_fails_says_what_to_do(house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """No right to remove: the file stays, a line and the status tell, the next file goes on."""
    with no_removal(DENIED, monkeypatch):
        removed(house, "a")

    assert (house.root / "a").exists()
    (line,) = lines.named("file.failed")
    assert (line["error_code"], line["operation"]) == ("PermissionError", "delete")
    assert "write access" in line["hint"]
    assert house.stats.last_error == "delete a: Permission denied"
    removed(house, "b")
    assert not (house.root / "b").exists()


@pytest.mark.parametrize(
    ("after", "error", "advice"),
    [
        ("delete", DENIED, "give the daemon write access to its directory"),
        ("archive", DENIED, "give the daemon write access to its directory and after.archive_directory"),
        ("archive", SpecialBitsError(1, "has a sticky bit"), "its owner can run: chmod u-s,g-s,-t FILE"),
        ("archive", OSError(errno.ENOSPC, "No space left on device"), "free disk space there"),
    ],
    ids=["directory", "both directories", "special bits", "disk"],
)
def test_the_advice_fits_the_error(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch, after: str, error: OSError, advice: str
) -> None:
    """What a person has to do depends on what failed, and on where the file was to go."""
    fails(monkeypatch, house.folder, "unlink_if_same" if after == "delete" else "move_if_same", error)
    house.drop("a")
    committed(house, receipt_of(house, "a", after))
    done(house)

    (line,) = lines.named("file.failed")
    assert line["hint"] == f"the file is in S3 and stays here, the next scan tries again: {advice}"


def test_files_that_cannot_be_marked_are_one_warning(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's sentence, without the descriptor, which differs from file to file."""
    fails(monkeypatch, os, "setxattr", *(OSError(errno.ENOSPC, "No space left on device", fd) for fd in (7, 8)))
    house.after._marks = ReceiptMarks("xattr", house.folder, house.ledger, "memory")
    for name in "ab":
        house.drop(name)
        committed(house, receipt_of(house, name, "keep"))
        done(house)

    failed = [(line["path"], line["level"], line["error"]) for line in lines.named("file.failed")]
    assert failed == [("a", "warning", "No space left on device"), ("b", "debug", "No space left on device")]


def test_what_took_the_place_of_a_kept_file_is_not_marked(house: House, lines: Lines) -> None:
    """It is no failure: the file that was sent is gone."""
    house.after._marks = ReceiptMarks("xattr", house.folder, house.ledger, "memory")
    file = house.drop("a")
    receipt = receipt_of(house, "a", "keep")
    file.unlink()
    file.symlink_to("/dev/null")

    committed(house, receipt)
    done(house)

    assert not lines.named("file.failed")


def test_a_removal_that_hangs_holds_up_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the removal of other files nor, once the daemon stops, the end of the process."""
    monkeypatch.setattr(post_upload, "SLOW_CLOSE_S", 0.0)
    unlink, go_on = house.folder.unlink_if_same, threading.Event()
    monkeypatch.setattr(
        house.folder, "unlink_if_same", lambda path, sent: (path == "b" or go_on.wait()) and unlink(path, sent)
    )
    house.components.slow.note_slow_file("slow/a", 2.0)
    slow, quick = house.drop("slow/a"), house.drop("b")
    try:
        for path in ("slow/a", "b"):
            committed(house, receipt_of(house, path, "delete"))
        eventually(lambda: not quick.exists(), timeout_s=30)

        assert house.after.close(10)
        assert "after-slow" not in {thread.name for thread in live_threads()}
        assert slow.exists()
    finally:
        go_on.set()


def test_what_could_not_be_removed_for_want_of_descriptors(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a removal works again the others do not wait for the periodic scan."""
    with no_removal(OSError(errno.EMFILE, "Too many open files", "a"), monkeypatch):
        removed(house, "a")
    assert house.rescans == []
    (line,) = lines.named("file.failed")
    assert "LimitNOFILE" in line["hint"]

    for name in "bc":
        removed(house, name)

    assert house.rescans == ["full"]


def test_one_warning_a_directory_and_minute() -> None:
    """Beside directories where it works: each later warning says for how many files it stands."""
    now = [100.0]
    warnings = WarningLimit(lambda: now[0])

    first = [warnings.files_to_report(f"{directory}/{n}", "read-only") for n in range(3) for directory in ("a", "a/b")]
    warnings.end("c/1")
    now[0] += 59.9
    early = warnings.files_to_report("a/4", "read-only")
    now[0] += 0.1
    later = [warnings.files_to_report("a/5", "read-only"), warnings.files_to_report("a/6", "read-only")]
    other = warnings.files_to_report("a/7", "no space")
    warnings.end("a/8")
    again = warnings.files_to_report("a/9", "no space")

    assert first == [1, 1, 0, 0, 0, 0]
    assert (early, later, other, again) == (0, [4, 0], 2, 1)
    for number in range(2 * MAX_DIRECTORIES):
        warnings.files_to_report(f"{number}/file", "read-only")
    assert len(warnings._warned) == MAX_DIRECTORIES


def test_a_folder_that_became_read_only_is_said_once(
    house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand files that cannot be removed are one line, and another one after it has worked again."""

    def warnings() -> int:
        return len([line for line in lines.named("file.failed") if line["level"] == "warning"])

    with no_removal(DENIED, monkeypatch):
        for name in "abc":
            removed(house, name)
        assert warnings() == 1
    removed(house, "d")
    with no_removal(DENIED, monkeypatch):
        removed(house, "e")

    assert warnings() == 2


def test_who_says_keep_now_keeps_what_was_sent_before(house: House) -> None:
    """Sent under "delete", the process died before the removal, and the person changed the configuration."""
    file = house.drop("a")
    receipt = receipt_of(house, "a", "delete")
    house.after.apply(action="keep", archive=None)
    assert house.inbox.claim("a")

    house.after.finish(receipt)
    done(house)

    assert file.exists()


def test_one_odd_file_does_not_end_the_thread(house: House, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug met by one file costs a line with a traceback; its path is free again and the others go on."""
    fails(monkeypatch, house.folder, "unlink_if_same", ZeroDivisionError())
    removed(house, "a")

    assert [line["event"] for line in lines] == ["file.uploaded", "file.failed"]
    removed(house, "b")
    assert not (house.root / "b").exists()


def test_an_archive_that_is_configured_no_more(house: House) -> None:
    """A file that was to be archived under an earlier configuration is kept where it is."""
    file = house.drop("a")
    receipt = receipt_of(house, "a", "archive")
    house.after.apply(action="archive", archive=None)

    committed(house, receipt)
    done(house)

    assert file.exists()


def test_close_finishes_what_is_durable(house: House) -> None:
    """A shutdown removes what is in S3 already, rather than leaving it for the next start."""
    for name in house.drop_many(50):
        committed(house, receipt_of(house, name, "delete"))

    assert house.after.close(10)

    assert not list(house.root.iterdir())
    assert not house.after.alive()


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1644])
def test_set_id_bits_do_not_survive_in_the_archive(house: House, mode: int) -> None:
    """What runs with its owner's powers in the folder does not do so, for ever, in the archive."""
    house.drop("tool", b"#!").chmod(mode)

    committed(house, receipt_of(house, "tool", "archive"))
    done(house)

    assert oct((house.archive / "tool").stat().st_mode & 0o7777) == oct(mode & 0o777)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can become somebody without rights")
def test_set_id_bits_of_a_stranger_keep_a_file_out_of_the_archive() -> None:
    """They cannot be removed, so it stays where it is, and the error says what its owner can do."""
    everybodys()
    with open_place() as place:
        for directory in ("drop", "archive"):
            (place / directory).mkdir()
            os.chown(place / directory, DAEMON, DAEMON)
        tool = place / "drop" / "tool"
        tool.write_bytes(b"#!")
        os.chown(tool, DROPPER, DROPPER)
        tool.chmod(0o6755)
        script = (
            "import sys; from pathlib import Path; from s3spool.folder.folder import Folder;"
            "here = Path(sys.argv[1]);"
            "folder = Folder(here / 'drop'); folder.move_if_same('tool', folder.identity_of('tool'), here / 'archive')"
        )
        moved = as_user(DAEMON, *everybodys()[:-2], "-c", script, place, check=False)

        assert "SpecialBitsError: [Errno 1] has a set-ID or sticky bit that only its owner may remove" in moved.stderr
        assert tool.exists()
        assert list((place / "archive").iterdir()) == []
