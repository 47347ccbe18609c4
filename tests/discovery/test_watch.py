"""Watching with real inotify: every way to arrive gives a hint, and misses are owned up to."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from watchdog.observers import inotify_c
from watchdog.observers.inotify_c import InotifyFD

from s3spool.config.schema import WatchConfig
from s3spool.daemon import watch_manager
from s3spool.daemon.watch_manager import WatchManager
from s3spool.discovery import directory_watches, inotify, watch
from s3spool.discovery.inotify import Inotify
from s3spool.discovery.watch import Watch, WatchUnavailableError
from s3spool.folder.directories import NotAFileError, listed, opened_directory
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import REMOVING
from s3spool.folder.mounts import remote_file_system
from s3spool.queue.item import Item
from s3spool.queue.settle import SettleReason
from support.disks import mounted
from support.failing import FOR_EVER, fails
from support.house import Build
from support.lines import Lines
from support.trees import deep_tree
from support.users import DAEMON, open_place
from support.waiting import eventually


def wait(event: threading.Event) -> None:
    """Hold the caller up until the test lets it go on."""
    assert event.wait(60)


class Watched:
    """A watch over a folder, and what it said."""

    def __init__(self, root: Path, *, recursive: bool = True, names: FileFilter | None = None) -> None:
        self.root = root
        self.hints: list[tuple[str, SettleReason]] = []
        self.rescans: list[str] = []
        self.losses = 0
        self.hung: set[str] = set()  # listers that are not waited for
        self.before_hint: Callable[[str], None] = lambda _: None
        self.watch = Watch(
            root,
            names or FileFilter(["*"], [".*", "*.part"]),
            recursive=recursive,
            hint=self.hint,
            rescan=self.rescans.append,
            lost=self.lost,
        )

    def hint(self, path: str, quiet: SettleReason) -> None:
        self.before_hint(path)
        self.hints.append((path, quiet))

    def lost(self) -> None:
        self.losses += 1

    def paths(self) -> set[str]:
        return {path for path, _ in list(self.hints)}

    def expect(self, *paths: str) -> None:
        """Wait for hints about these, and about no others."""
        eventually(lambda: set(paths) <= self.paths(), message=f"hints for {paths}, not only {self.paths()}")
        self.catch_up()
        assert self.paths() == set(paths)

    def catch_up(self) -> None:
        """Wait until all that has happened so far has been handled: events come in order."""
        marker = self.root / "marker"
        marker.touch()
        eventually(lambda: ("marker", SettleReason.CHANGED) in list(self.hints))
        for lister in {"_lister", "_mounts_lister", "_recent_lister"} - self.hung:
            eventually(getattr(self.watch, lister).idle)
        marker.unlink()
        self.hints[:] = [hint for hint in self.hints if hint[0] != "marker"]

    def forget(self) -> None:
        self.catch_up()
        self.hints.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "spool"
    root.mkdir()
    return root


@pytest.fixture
def as_another_user() -> Iterator[Path]:
    """A place for this thread, and those that it starts, as a user whom the modes of files concern."""
    with open_place() as place:
        place.chmod(0o777)
        libc, change = ctypes.CDLL(None), os.geteuid() == 0
        if change:
            libc.setfsuid(DAEMON)
        try:
            yield place
        finally:
            if change:
                libc.setfsuid(0)


@pytest.fixture
def watched(root: Path) -> Iterator[Watched]:
    watched = Watched(root)
    watched.watch.start()
    yield watched
    watched.watch.stop()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    return outside


def tree(top: Path) -> Path:
    (top / "x" / "y").mkdir(parents=True)
    for name in ("1", "x/2", "x/y/3"):
        (top / name).write_text(name)
    return top


# Ways to arrive


def test_directories_that_may_be_read_only_later(as_another_user: Path) -> None:
    """`cp -a` makes each with mode 0700: as soon as others may read them, their files and all later ones are seen."""
    watched = Watched(as_another_user)
    watched.watch.start()
    directories = [as_another_user / f"copied/{number}" for number in range(200)]
    try:
        directories[0].parent.mkdir()
        for directory in directories:
            directory.mkdir(0)
        (as_another_user / "good").touch()
        watched.expect("good")
        for directory in directories:
            directory.chmod(0o755)
            (directory / "a").touch()
        watched.expect("good", *(f"copied/{number}/a" for number in range(200)))
        for directory in directories:
            directory.chmod(0o700)
            (directory / "later").touch()
        watched.expect("good", *(f"copied/{number}/{name}" for number in range(200) for name in ("a", "later")))
    finally:
        watched.watch.stop()
    assert not watched.rescans


@pytest.mark.parametrize("name", ["a", "two\nlines", os.fsdecode(b"latin-\xff"), "ü", " "])
def test_a_file_that_is_written(watched: Watched, root: Path, name: str) -> None:
    """The close is what counts: it says that the file has changed."""
    (root / name).write_text("content")

    watched.expect(name)
    assert watched.hints[-1] == (name, SettleReason.CHANGED)


def test_a_file_that_is_being_written_is_only_announced(watched: Watched, root: Path) -> None:
    """An open file is a name that appeared, no more; its close comes as a change."""
    with (root / "a").open("w") as file:
        eventually(lambda: watched.hints == [("a", SettleReason.CREATED)])
        file.write("content")

    eventually(lambda: watched.hints == [("a", SettleReason.CREATED), ("a", SettleReason.CHANGED)])


def moved_in(root: Path, outside: Path) -> None:
    (outside / "a").write_text("content")
    (outside / "a").rename(root / "a")


def renamed_inside(root: Path, outside: Path) -> None:
    (root / "a.part").write_text("content")
    (root / "a.part").rename(root / "a")


def hard_linked(root: Path, outside: Path) -> None:
    (outside / "a").write_text("content")
    os.link(outside / "a", root / "a")


@pytest.mark.parametrize(
    ("arrive", "reason"),
    [
        (moved_in, SettleReason.CHANGED),  # no close, and complete at once
        (renamed_inside, SettleReason.CHANGED),  # the best way to drop: one hint, at the end
        (hard_linked, SettleReason.CREATED),  # makes only a create event
    ],
)
def test_a_file_that_is_not_written_there(
    watched: Watched, root: Path, outside: Path, arrive: Callable[[Path, Path], None], reason: SettleReason
) -> None:
    """One hint, whatever the way."""
    arrive(root, outside)

    watched.expect("a")
    assert watched.hints == [("a", reason)]


def test_a_tree_that_is_moved_in(watched: Watched, root: Path, outside: Path) -> None:
    """Its files make no events of their own; and it is watched from then on."""
    tree(outside / "t").rename(root / "t")

    watched.expect("t/1", "t/x/2", "t/x/y/3")
    watched.forget()
    (root / "t/x/y/new").touch()
    watched.expect("t/x/y/new")


def test_a_file_in_a_directory_made_a_moment_ago(watched: Watched, root: Path) -> None:
    """mkdir -p and a file in it at once, faster than any watch can be armed."""
    for number in range(20):
        deep = root / str(number) / "a" / "b" / "c"
        deep.mkdir(parents=True)
        (deep / "file").write_text("content")

    watched.expect(*(f"{number}/a/b/c/file" for number in range(20)))


def test_600_files_in_a_fresh_directory(watched: Watched, root: Path) -> None:
    """Whichever of them came before the watch was armed: none is missing."""
    (root / "fresh").mkdir()
    for number in range(600):
        (root / "fresh" / str(number)).touch()

    watched.expect(*(f"fresh/{number}" for number in range(600)))


def test_what_was_there_before_is_the_scans(root: Path) -> None:
    """At start the root is armed and nothing is hinted at; the scan arms the directories as it comes to them."""
    tree(root / "t")
    watched = Watched(root)

    watched.watch.start()

    assert len(watched.watch.watches.table) == 1
    for directory in ("t/", "t/x/", "t/x/y/"):
        watched.watch.watches.ensure(directory)
    assert len(watched.watch.watches.table) == 4
    (root / "t/x/y/new").touch()
    watched.expect("t/x/y/new")
    watched.watch.stop()


def test_a_rewritten_file(watched: Watched, root: Path) -> None:
    """A file that is sent already and written again is a change."""
    (root / "a").write_text("one")
    watched.forget()

    with (root / "a").open("a") as file:
        file.write("two")

    watched.expect("a")
    assert watched.hints == [("a", SettleReason.CHANGED)]


# Directories come and go


def test_a_renamed_directory_has_new_paths(watched: Watched, root: Path) -> None:
    """Its files are hinted at under the new name, and so are those that come later, at every depth."""
    tree(root / "old")
    watched.forget()

    (root / "old").rename(root / "new")

    watched.expect("new/1", "new/x/2", "new/x/y/3")
    watched.forget()
    (root / "new/x/y/later").touch()
    (root / "new/later").touch()
    watched.expect("new/x/y/later", "new/later")
    assert len(watched.watch.watches.table) == 4


def test_two_directories_swap_names(watched: Watched, root: Path) -> None:
    """Log rotation by directories: each hint carries the name of now."""
    (root / "a").mkdir()
    (root / "b").mkdir()
    watched.forget()

    (root / "a").rename(root / "c")
    (root / "b").rename(root / "a")
    (root / "c").rename(root / "b")
    watched.forget()
    (root / "a/was-b").touch()
    (root / "b/was-a").touch()

    watched.expect("a/was-b", "b/was-a")


def test_a_directory_that_is_moved_out_is_not_watched(watched: Watched, root: Path, outside: Path) -> None:
    """What happens elsewhere is not hinted at, at no depth."""
    tree(root / "t")
    watched.forget()

    (root / "t").rename(outside / "t")
    watched.catch_up()
    (outside / "t/x/y/new").touch()
    (outside / "t/new").touch()

    watched.expect()
    assert len(watched.watch.watches.table) == 1


def test_a_deleted_directory_is_forgotten_and_may_come_again(watched: Watched, root: Path) -> None:
    """Watches do not pile up, and the same name is watched anew."""
    for _ in range(3):
        tree(root / "t")
        watched.forget()
        assert len(watched.watch.watches.table) == 4
        shutil.rmtree(root / "t")
        eventually(lambda: len(watched.watch.watches.table) == 1)
    tree(root / "t")

    watched.expect("t/1", "t/x/2", "t/x/y/3")
    assert watched.losses == 0


def test_a_directory_renamed_over_another(watched: Watched, root: Path) -> None:
    """The empty directory that was there is gone; the one in its place is watched."""
    (root / "a").mkdir()
    (root / "b").mkdir()
    watched.forget()

    (root / "b").rename(root / "a")
    watched.forget()
    (root / "a/new").touch()

    watched.expect("a/new")
    assert len(watched.watch.watches.table) == 2
    assert watched.losses == 0


def test_a_directory_made_anew_while_the_old_one_is_in_use(watched: Watched, root: Path) -> None:
    """A shell still stands in the deleted directory, so its watch lives on; the new one has to have its own."""
    (root / "a").mkdir()
    watched.forget()
    in_use = os.open(root / "a", os.O_RDONLY)

    (root / "a").rmdir()
    (root / "a").mkdir()
    (root / "a/early").touch()
    watched.expect("a/early")
    watched.forget()
    os.close(in_use)
    (root / "a/later").touch()

    watched.expect("a/later")
    assert len(watched.watch.watches.table) == 2


def test_an_excluded_directory_is_not_watched(watched: Watched, root: Path, outside: Path) -> None:
    """Neither what is made, nor what is moved in, nor what lies below it."""
    tree(root / ".git")
    tree(outside / "t").rename(root / ".t")
    (root / "ok" / ".hidden").mkdir(parents=True)
    (root / "ok" / ".hidden" / "a").touch()

    watched.expect()
    assert len(watched.watch.watches.table) == 2


def test_a_directory_whose_new_name_is_excluded_is_left(watched: Watched, root: Path) -> None:
    """Hiding a directory takes it out; naming it openly again takes it up with all that is in it."""
    tree(root / "t")
    watched.forget()

    (root / "t").rename(root / ".t")
    watched.catch_up()
    hidden = len(watched.watch.watches.table)
    (root / ".t").rename(root / "t")

    watched.expect("t/1", "t/x/2", "t/x/y/3")
    assert hidden == 1


def test_a_new_list_of_names_counts_from_the_next_event(watched: Watched, root: Path) -> None:
    """A reload exchanges the patterns."""
    watched.watch.apply(FileFilter(["*.csv", "marker"], []))

    for name in ("a.csv", "a.txt"):
        (root / name).touch()

    watched.expect("a.csv")


def test_symlinked_directories_are_not_followed(watched: Watched, root: Path, outside: Path) -> None:
    """A symlink leads out of the folder or in circles."""
    tree(outside / "t")
    (root / "link").symlink_to(outside / "t")
    (root / "sub").mkdir()
    (root / "sub" / "circle").symlink_to(root)
    watched.catch_up()
    watched.hints.clear()  # a symlink's name may be hinted at; the worker refuses it

    (outside / "t/new").touch()
    (outside / "t/x/new").touch()
    watched.watch.watches.ensure("link/")
    (outside / "t/newer").touch()

    watched.expect()
    assert len(watched.watch.watches.table) == 2


def test_not_recursive(root: Path, outside: Path) -> None:
    """Without `recursive` only the folder itself is watched."""
    tree(root / "before")
    watched = Watched(root, recursive=False)
    watched.watch.start()

    tree(root / "after")
    tree(outside / "t").rename(root / "moved")
    (root / "before/x/new").touch()
    (root / "a").touch()

    watched.expect("a")
    assert len(watched.watch.watches.table) == 1
    watched.watch.stop()


def test_a_tree_deeper_than_the_stack(watched: Watched, root: Path) -> None:
    """1,200 directories one in another are watched like any others."""
    with deep_tree(root, levels=1200) as path:
        eventually(lambda: path in watched.paths(), timeout_s=60)

        assert watched.rescans == []


def test_ensure_heals_a_missing_watch(watched: Watched, root: Path) -> None:
    """What the events did not tell of is armed by the scan, once; what is gone is no error."""
    (root / "sub").mkdir()
    watched.forget()
    watched.watch.watches.forget("sub/")
    assert len(watched.watch.watches.table) == 1

    for directory in ("", "sub/", "sub/", "missing/"):
        watched.watch.watches.ensure(directory)

    (root / "sub/a").touch()
    watched.expect("sub/a")
    assert len(watched.watch.watches.table) == 2


def test_what_is_mounted_over_a_directory_is_watched_from_the_next_scan_on(watched: Watched, root: Path) -> None:
    """No event tells of a mount; that it goes again is told, and asks for a scan. What it covers is not watched."""
    (root / "sub/covered").mkdir(parents=True)
    watched.forget()

    with mounted(root / "sub"):
        for directory in ("", "sub/"):
            watched.watch.watches.ensure(directory)
        assert len(watched.watch.watches.table) == 2
        (root / "sub/mounted").touch()
        watched.expect("sub/mounted")
    eventually(lambda: watched.rescans == ["unmounted"])
    watched.watch.watches.ensure("sub/")
    watched.forget()
    (root / "sub/below").touch()

    watched.expect("sub/below")


def test_race_the_scan_ensures_a_renamed_directory_first(watched: Watched, root: Path) -> None:
    """The scan comes to the new name before the rename's events are handled: it stays watched."""
    tree(root / "old")
    watched.forget()
    held, go_on = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if path == "held":
            held.set()
            go_on.wait(10)

    watched.before_hint = hold
    (root / "held").touch()
    assert held.wait(10)
    (root / "old").rename(root / "new")

    watched.watch.watches.ensure("new/")
    watched.watch.watches.ensure("new/x/")
    go_on.set()
    watched.forget()
    for name in ("new/later", "new/x/later", "new/x/y/later"):
        (root / name).touch()

    watched.expect("new/later", "new/x/later", "new/x/y/later")
    assert watched.rescans == []
    assert len(watched.watch.watches.table) == 4


def test_race_a_directory_is_watched_again_while_its_watch_is_removed(
    watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inotify gives both the same descriptor: the removal must not take the new watch along."""
    (root / "sub").mkdir()
    watched.forget()
    again = threading.Thread(target=watched.watch.watches.ensure, args=("sub/",))
    remove = Inotify.remove

    def beside(inotify: Inotify, wds: list[inotify_c.WatchDescriptor]) -> None:
        again.start()
        again.join(0.5)  # it waits, or it has watched the directory by now
        remove(inotify, wds)

    with monkeypatch.context() as patched:
        patched.setattr(Inotify, "remove", beside)
        watched.watch.watches.forget("sub/")
        again.join(10)

    (root / "sub/a").touch()
    watched.expect("sub/a")


# What goes wrong


@contextlib.contextmanager
def overflowing(watched: Watched) -> Iterator[None]:
    """What happens in the block is lost: the kernel has no room for its events. Then the watch goes on."""
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    go_on = threading.Event()
    watched.before_hint = lambda _: wait(go_on)
    try:
        for number in range(room + inotify_c.DEFAULT_NUM_EVENTS * 2):
            # The same event twice in a row would be one.
            os.close(os.open(watched.root / "ab"[number % 2], os.O_WRONLY | os.O_CREAT))
        yield
    finally:
        go_on.set()
    eventually(lambda: watched.rescans == ["overflow"])


def test_an_overflow_asks_for_a_scan(
    watched: Watched, root: Path, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    """When the kernel drops events, because we were too slow, we say so; and go on. All watches stay."""
    (root / "sub").mkdir()
    watched.forget()
    with overflowing(watched):
        (root / "lost").touch()

    eventually(lambda: "lost" in watched.paths(), message="the scan may come minutes later")

    assert watched.watch.overflows == 1
    assert len(lines.named("watch.overflowed")) == 1
    assert not [record for record in caplog.records if "overflow" in record.getMessage()], "it is told once"
    watched.hints.clear()
    for name in ("after", "sub/after"):
        (root / name).touch()
    eventually(lambda: {"after", "sub/after"} <= watched.paths())


def walk(watched: Watched, apart: str = "") -> None:
    """Visit each directory as a scan does; `apart` has a walk of its own."""
    watched.watch.watches.begin_walk()
    for directory in directories(watched.root):
        if not apart or not directory.startswith(apart):
            watched.watch.watches.ensure(directory)
    watched.watch.watches.end_walk()


def directories(root: Path) -> list[str]:
    """ "" and "a/b/" below it."""
    return [f"{top}/".removeprefix(f"{root}/") for top, _, _ in os.walk(root)]


def renamed(root: Path, outside: Path) -> None:
    (root / "t").rename(root / "new")


def moved_down(root: Path, outside: Path) -> None:
    (root / "below").mkdir()
    (root / "t").rename(root / "below/t")


def renamed_and_another_in_its_place(root: Path, outside: Path) -> None:
    (root / "t").rename(root / "new")
    tree(root / "t")


def swapped(root: Path, outside: Path) -> None:
    (root / "t").rename(root / "new")
    (root / "u").rename(root / "t")
    (root / "new").rename(root / "u")


def moved_out(root: Path, outside: Path) -> None:
    (root / "t").rename(outside / "t")


def moved_out_and_another_in_its_place(root: Path, outside: Path) -> None:
    (root / "t").rename(outside / "t")
    tree(root / "t")


def replaced_by_a_symlink(root: Path, outside: Path) -> None:
    (root / "t").rename(outside / "t")
    (root / "t").symlink_to(outside / "t")


def removed(root: Path, outside: Path) -> None:
    shutil.rmtree(root / "t")


def removed_and_made_anew(root: Path, outside: Path) -> None:
    # The new directories often get the inode numbers of the old ones.
    shutil.rmtree(root / "t")
    tree(root / "t")


def test_permissions_of_a_watched_tree_are_of_no_interest_after_an_overflow(as_another_user: Path) -> None:
    """One 0700 directory beside it is enough to be told of all: to watch thousands anew would overflow again."""
    watched = Watched(as_another_user)
    watched.watch.start()
    tree = as_another_user / "tree"
    try:
        (as_another_user / "private").mkdir(0)
        for number in range(1000):
            (tree / str(number)).mkdir(parents=True)
        eventually(lambda: len(watched.watch.watches.table) == 1002)
        watched.catch_up()
        watched.watch.on_queue_overflow()
        before = set(watched.watch.watches.table._of)

        for _ in range(100):
            os.utime(tree)
        watched.catch_up()

        assert set(watched.watch.watches.table._of) == before
    finally:
        watched.watch.stop()


@pytest.mark.parametrize(
    "lost",
    [
        renamed,
        moved_down,
        renamed_and_another_in_its_place,
        swapped,
        moved_out,
        moved_out_and_another_in_its_place,
        replaced_by_a_symlink,
        removed,
        removed_and_made_anew,
    ],
)
def test_watches_are_right_after_an_overflow_and_a_scan(
    watched: Watched, root: Path, outside: Path, lost: Callable[[Path, Path], None]
) -> None:
    """The events of directories are lost: after a scan each is watched under its name, and nothing else is."""
    for name in ("t", "u"):
        tree(root / name)
    watched.forget()
    with overflowing(watched):
        lost(root, outside)

    walk(watched)
    watched.forget()
    expected = [f"{directory}later" for directory in directories(root)]
    for top in (root, outside):
        for directory in directories(top):
            (top / directory / "later").touch()

    watched.expect(*expected)
    eventually(lambda: len(watched.watch.watches.table) == len(expected))
    assert not watched.watch.watches._unverified


def test_a_renamed_tree_keeps_its_watches_after_an_overflow(
    watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that is removed makes an event: 100,000 of them are the next overflow."""
    tree(root / "t")
    watched.forget()
    removals: list[inotify_c.WatchDescriptor] = []
    monkeypatch.setattr(Inotify, "remove", lambda _, wds: removals.extend(wds))

    with overflowing(watched):
        (root / "t").rename(root / "new")
    walk(watched)

    assert not removals
    assert {"new/", "new/x/", "new/x/y/"} <= set(watched.watch.watches.table._wd_of)
    assert len(watched.watch.watches.table) == 4


@pytest.mark.parametrize("first", ["the scan", "the mount"])
def test_a_mount_during_an_overflow(watched: Watched, root: Path, first: str) -> None:
    """Its own walk watches it, before the scan's walk ends or later; what it covers is no longer watched."""
    tree(root / "t")
    watched.forget()

    def walk_the_mount() -> None:
        for directory in ("t/", "t/x/"):
            watched.watch.watches.ensure(directory)

    with contextlib.ExitStack() as stack:
        with overflowing(watched):
            stack.enter_context(mounted(root / "t"))
            (root / "t/x").mkdir()
        if first == "the mount":
            walk_the_mount()
        walk(watched, apart="t/")
        if first == "the scan":
            walk_the_mount()
        watched.forget()
        for name in ("t/later", "t/x/later"):
            (root / name).touch()

        watched.expect("t/later", "t/x/later")
        eventually(lambda: len(watched.watch.watches.table) == 3)


def test_a_mount_before_an_overflow(watched: Watched, root: Path) -> None:
    """Directories renamed and removed on it: its own walk watches all of it again."""
    with mounted(root / "t"):
        for directory in ("t/", "t/old/", "t/gone/"):
            (root / directory).mkdir(exist_ok=True)
            watched.watch.watches.ensure(directory)
        with overflowing(watched):
            (root / "t/old").rename(root / "t/new")
            (root / "t/gone").rmdir()
        walk(watched, apart="t/")
        for directory in ("t/", "t/new/"):
            watched.watch.watches.ensure(directory)
        watched.forget()
        (root / "t/new/later").touch()

        watched.expect("t/new/later")
        assert len(watched.watch.watches.table) == 3


def test_a_walk_that_began_before_an_overflow_removes_no_watch(watched: Watched, root: Path) -> None:
    """It may have passed a directory before it was renamed: only the walk that follows has met them all."""
    tree(root / "t")
    watched.forget()

    watched.watch.watches.begin_walk()
    for directory in directories(root):
        watched.watch.watches.ensure(directory)
    watched.watch.on_queue_overflow()
    watched.watch.watches.end_walk()

    assert len(watched.watch.watches.table) == 4
    walk(watched)
    assert len(watched.watch.watches.table) == 4


def test_a_directory_made_again_after_an_overflow_is_watched(watched: Watched, root: Path) -> None:
    """Its removal was lost and its inode number is the same: the event that it was made counts."""
    (root / "t").mkdir()
    watched.forget()
    with overflowing(watched):
        (root / "t").rmdir()
    (root / "t").mkdir()
    watched.forget()
    (root / "t/new").touch()

    watched.expect("t/new")


def test_directories_that_left_during_an_overflow_make_room(
    watched: Watched, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of memory is reached: after the scan others are watched in their place."""
    for name in ("t", "u"):
        tree(root / name)
    watched.forget()
    monkeypatch.setattr(directory_watches, "WATCHED_BYTES", watched.watch.watches.table.bytes - 1)
    with overflowing(watched):
        moved_out_and_another_in_its_place(root, outside)
        (root / "u").rename(root / "v")

    walk(watched)
    eventually(lambda: watched.watch.watches.exhausted)
    walk(watched)

    assert not watched.watch.watches.exhausted
    assert set(watched.watch.watches.table._wd_of) == set(directories(root))


def test_at_the_memory_limit_directories_stay_watched_after_an_overflow(
    watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the new one has no room, though the scan meets it first."""
    for name in ("t", "u"):
        tree(root / name)
    watched.forget()
    known = directories(root)
    monkeypatch.setattr(directory_watches, "WATCHED_BYTES", watched.watch.watches.table.bytes - 1)
    with overflowing(watched):
        (root / "new").mkdir()

    watched.watch.watches.begin_walk()
    for directory in ("new/", *known):
        watched.watch.watches.ensure(directory)
    watched.watch.watches.end_walk()

    assert set(watched.watch.watches.table._wd_of) == set(known)


def test_a_root_that_cannot_be_opened_after_an_overflow_stays_watched(
    watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left for a moment: the root is never in doubt."""
    with monkeypatch.context() as patched:
        error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        fails(patched, directory_watches, "opened_directory", error, times=FOR_EVER)
        watched.watch.on_queue_overflow()
        walk(watched)
    (root / "new").touch()

    watched.expect("new")


def test_a_moved_directory_says_nothing_once_another_has_its_name(watched: Watched, root: Path, outside: Path) -> None:
    """After an overflow the scan watches the other one: what happens in the moved one must not end that."""
    tree(root / "t")
    watched.forget()
    with overflowing(watched):
        moved_out_and_another_in_its_place(root, outside)

    watched.watch.watches.begin_walk()
    for directory in directories(root):
        watched.watch.watches.ensure(directory)
    (outside / "t/x").rename(outside / "x")
    (outside / "t/elsewhere").touch()
    watched.forget()
    (root / "t/x/later").touch()

    watched.expect("t/x/later")


def test_race_a_directory_is_renamed_and_the_queue_overflows_while_it_is_added(
    watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan has opened it under its old name: it must not be watched as that."""
    tree(root / "t")
    watched.forget()
    watched.watch.watches.forget("t/")
    monkeypatch.setattr(watched.watch, "on_event", lambda _: None)
    opened = directory_watches._identity

    def rename(fd: int) -> tuple[int, int]:
        if (root / "t").exists():
            (root / "t").rename(root / "new")
            watched.watch.on_queue_overflow()
        return opened(fd)

    monkeypatch.setattr(directory_watches, "_identity", rename)

    watched.watch.watches.ensure("t/")

    assert len(watched.watch.watches.table) == 1


def test_a_listing_that_hangs_holds_no_event_up(watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory whose listing takes for ever: files elsewhere are told of, and files made in it now."""
    go_on = threading.Event()

    def hang(fd: int) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
        wait(go_on)
        return listed(fd)

    monkeypatch.setattr("s3spool.discovery.watch.listed", hang)
    watched.hung = {"_lister"}
    try:
        (root / "hung").mkdir()
        watched.catch_up()
        (root / "hung/new").touch()
        (root / "other").touch()

        watched.expect("hung/new", "other")
    finally:
        go_on.set()


def test_a_listing_does_not_wait_for_slow_and_large_files(
    build: Build, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These may wait in the inbox for hours; the listing of a new directory waits for untried files alone."""
    monkeypatch.setattr(watch_manager, "LISTED", 1)
    house = build()
    house.start(house.ledger, house.settle_thread)
    house.components.slow.note_slow_file("slow/file", 2.0)
    house.inbox.offer([Item("slow/file"), Item("medium", body=True), Item("large", large=True)])
    config = WatchConfig(directory=house.root)
    manager = WatchManager(house.folder, house.scan, house.settle, house.inbox, house.stats, config, wake=lambda: None)
    manager.start()
    try:
        (outside / "file").touch()
        outside.rename(house.root / "new")

        eventually(lambda: house.inbox.state_of("new/file") == "queued")
        assert house.inbox.counts() == (4, 0)
        assert not manager._has_room(), "the file of the new directory is untried itself"
    finally:
        manager.stop()


def test_a_mount_that_hangs_holds_no_other_directory_up(
    watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory made on it cannot even be opened: the events' thread does not try, nor does the one for the rest."""
    go_on = threading.Event()
    tried = threading.Event()

    def hang(top: str | bytes | Path, directory: str) -> contextlib.AbstractContextManager[int]:
        if directory == "mount/hung/":
            tried.set()
            wait(go_on)
        return opened_directory(top, directory)

    with mounted(root / "mount"):
        watched.watch.watches.ensure("mount/")
        watched.forget()
        for module in ("watch", "directory_watches"):
            monkeypatch.setattr(f"s3spool.discovery.{module}.opened_directory", hang)
        watched.hung = {"_mounts_lister"}
        try:
            (root / "mount/hung").mkdir()
            assert tried.wait(10)
            for _ in range(2):
                tree(root / "local")
                watched.expect("local/1", "local/x/2", "local/x/y/3")
                shutil.rmtree(root / "local")
                watched.forget()
        finally:
            go_on.set()
        eventually(lambda: "mount/hung/" in watched.watch.watches.table)
        (root / "mount/hung/file").touch()

        watched.expect("mount/hung/file")


def test_what_watches_take_is_counted(watched: Watched, root: Path) -> None:
    """Directories come, are renamed and go: no watch, no name and no byte stays behind."""
    before = watched.watch.watches.table.bytes
    for number in range(20):
        tree(root / f"a {number}")
    watched.catch_up()
    for number in range(20):
        (root / f"a {number}").rename(root / f"b {number}")
    watched.catch_up()
    eventually(lambda: len(watched.watch.watches.table) == 61)
    for number in range(20):
        shutil.rmtree(root / f"b {number}")

    eventually(lambda: len(watched.watch.watches.table) == 1)
    assert watched.watch.watches.table.bytes == before
    assert not watched.watch.watches.table._below


def test_what_is_counted_is_what_watches_take(root: Path) -> None:
    """The memory limit holds for watchdog's part as well."""
    directories = [f"{number}/" for number in range(5000)]
    for directory in directories:
        (root / directory).mkdir()
    watched = Watched(root)
    watched.watch.start()
    tracemalloc.start()
    try:
        for directory in directories:
            watched.watch.watches.ensure(directory)
        taken, _ = tracemalloc.get_traced_memory()
        assert len(watched.watch.watches.table) == 5001
        assert taken < 1.3 * watched.watch.watches.table.bytes
    finally:
        tracemalloc.stop()
        watched.watch.stop()


def test_watches_take_a_limited_amount_of_memory(watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is said, the other directories stay watched, and a scan after some are gone watches again."""
    monkeypatch.setattr(directory_watches, "WATCHED_BYTES", 10 * 300)
    for number in range(20):
        (root / f"{number}").mkdir()

    eventually(lambda: watched.rescans == ["limit"])
    watched.catch_up()
    assert 5 < len(watched.watch.watches.table) < 15
    assert watched.watch.watches.exhausted.endswith("directories are watched, more would take too much memory")
    (root / "0/a").touch()
    eventually(lambda: "0/a" in watched.paths())
    for number in range(15):
        shutil.rmtree(root / f"{number}")
    watched.catch_up()
    watched.watch.watches.begin_walk()
    for number in range(15, 20):
        watched.watch.watches.ensure(f"{number}/")
    watched.watch.watches.end_walk()
    assert not watched.watch.watches.exhausted
    assert len(watched.watch.watches.table) == 6


def test_an_exception_in_a_hint_does_not_end_the_watching(watched: Watched, root: Path, lines: Lines) -> None:
    """One event that cannot be handled costs a rescan, not the thread."""

    def fail(path: str) -> None:
        if path == "bad":
            raise RuntimeError(path)

    watched.before_hint = fail
    (root / "bad").touch()
    eventually(lambda: watched.rescans)

    (root / "good").touch()

    watched.expect("good")
    assert watched.watch.alive()
    assert set(watched.rescans) == {"error"}


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_root_that_goes_is_reported(watched: Watched, root: Path, how: str) -> None:
    """The folder itself is deleted or moved away: inotify says nothing more, so this has to be noticed."""
    if how == "deleted":
        root.rmdir()
    else:
        root.rename(root.with_name("away"))

    eventually(lambda: watched.losses)


def test_our_own_removals_are_read_together(watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not wake for each file that was sent."""
    gathering, enough = threading.Event(), threading.Event()
    reads: list[bytes] = []
    read = Inotify._read_event_buffer

    def gather(_seconds: float) -> None:
        gathering.set()
        wait(enough)

    def counted(self: Inotify, size: int) -> bytes:
        reads.append(read(self, size))
        return reads[-1]

    monkeypatch.setattr(inotify, "time", SimpleNamespace(sleep=gather))
    monkeypatch.setattr(Inotify, "_read_event_buffer", counted)
    for number in range(100):
        (root / f"{number}").touch()
    watched.forget()
    for number in range(100):
        (root / f"{number}").rename(root / f"{REMOVING}{number}")
        wait(gathering)
    reads.clear()
    enough.set()
    (root / "next").touch()

    watched.expect("next")
    assert len(reads) <= 20  # 100 renames, and the files of this test


def test_stop_leaves_nothing_behind(root: Path) -> None:
    """Thread and descriptors are gone after stop, and a second stop is no error."""
    tree(root / "t")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    for number in range(3):
        watched = Watched(root)
        watched.watch.start()
        assert watched.watch.alive()
        (root / str(number)).mkdir()
        watched.watch.on_queue_overflow()
        watched.catch_up()

        watched.watch.stop()
        watched.watch.stop()

        assert not watched.watch.alive()
        assert len(watched.watch.watches.table) == 0
        watched.watch.watches.ensure("t/")
        watched.watch.watches.forget("t/")
        assert watched.rescans == ["overflow"]

    eventually(lambda: threading.active_count() == threads)
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) == descriptors)


def test_a_root_that_cannot_be_watched(root: Path) -> None:
    """No directory, no watch; and no thread stays behind."""
    threads = threading.active_count()
    watched = Watched(root / "missing")

    with pytest.raises(WatchUnavailableError, match="missing cannot be watched"):
        watched.watch.start()

    assert threading.active_count() == threads


def test_no_inotify_instance_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of instances is named with the sysctl that raises it."""
    fails(monkeypatch, InotifyFD, "__init__", OSError(errno.EMFILE, "inotify instance limit reached"))

    with pytest.raises(WatchUnavailableError, match=r"fs\.inotify\.max_user_instances"):
        Watched(root).watch.start()


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, r"fs\.inotify\.max_user_watches"), (errno.ENOMEM, "inotify: Cannot allocate memory")],
)
def test_no_watch_left(root: Path, code: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of watches, which watchdog's Observer passes over, is reported, at start and later."""
    late = Watched(root)
    late.watch.start()
    fails(monkeypatch, Inotify, "add", OSError(code, os.strerror(code)), times=FOR_EVER)

    with pytest.raises(WatchUnavailableError, match=hint):
        Watched(root).watch.start()
    (root / "sub").mkdir()
    eventually(lambda: late.rescans == ["limit"])
    assert late.watch.watches.exhausted
    fails(monkeypatch, Inotify, "add", AssertionError("asked again before the next walk"))
    late.watch.watches.ensure("sub/")
    late.watch.stop()
    assert late.rescans == ["limit"]


@pytest.mark.parametrize("user", [directory_watches, watch], ids=["watched", "listed"])
def test_no_descriptor_left_asks_for_a_scan(
    user: ModuleType, watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that cannot be opened now is left to the next scan, which nobody else would ask for."""
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    fails(monkeypatch, user, "opened_directory", error, times=FOR_EVER)

    (root / "late").mkdir()

    eventually(lambda: watched.rescans == ["error"])


@pytest.mark.parametrize("error", [NotAFileError("now a file"), FileNotFoundError(errno.ENOENT, "gone")])
def test_race_a_directory_goes_while_its_tree_is_listed(
    error: Exception, watched: Watched, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are listed all the same, and nobody has to scan."""
    for name in "abc":
        (outside / "t" / name).mkdir(parents=True)
        (outside / "t" / name / "file").touch()
    gone: list[str] = []

    def opened(folder: bytes, directory: str) -> AbstractContextManager[int]:
        if directory != "t/" and not gone:
            gone.append(directory)
            raise error
        return opened_directory(folder, directory)

    monkeypatch.setattr(watch, "opened_directory", opened)

    (outside / "t").rename(root / "t")

    eventually(lambda: gone and watched.paths() == {f"t/{name}/file" for name in "abc"} - {f"{gone[0]}file"})
    assert watched.rescans == []


def test_a_directory_that_may_not_be_read(watched: Watched, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EACCES leaves the other directories watched."""
    real = inotify_c.inotify_add_watch

    def add(fd: int, path: bytes, mask: int) -> inotify_c.WatchDescriptor:
        if "secret" in str(Path(os.fsdecode(path)).readlink()):
            ctypes.set_errno(errno.EACCES)
            return inotify_c.WatchDescriptor(-1)
        return real(fd, path, mask)

    monkeypatch.setattr(inotify_c, "inotify_add_watch", add)
    for name in ("secret 1", "secret 2", "open"):
        (root / name).mkdir()
    watched.catch_up()
    watched.watch.watches.ensure("secret 1/")

    (root / "open/a").touch()

    eventually(lambda: "open/a" in watched.paths())
    assert watched.rescans == []
    assert len(watched.watch.watches.table) == 2


# Where inotify is blind


@pytest.mark.parametrize(
    ("root", "kind"),
    [
        ("/", ""),
        ("/data/spool", ""),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/spool", "nfs4"),
        ("/mnt/shared", ""),
        ("/mnt/share/local", ""),
        ("/mnt/with space", "cifs"),
        ("/mnt/fuse", "fuse.sshfs"),
        ("/mnt/\u65e5\u672c/x", "9p"),
    ],
)
def test_remote_file_systems_are_recognised(root: str, kind: str, tmp_path: Path) -> None:
    """What others do on a network share makes no events here, so the mount below the folder decides."""
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(
        b"1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        b"2 1 0:30 / /mnt/share rw,relatime shared:7 - nfs4 server:/x rw\n"
        b"3 2 8:2 / /mnt/share/local rw - xfs /dev/sdb rw\n"
        b"4 1 0:31 / /mnt/with\\040space rw - cifs //s/x rw\n"
        b"5 1 0:32 / /mnt/fuse rw - fuse.sshfs s:/x rw\n"
        b"6 1 0:33 / /mnt/\xe6\x97\xa5\xe6\x9c\xac rw - 9p x rw\n"
    )

    assert remote_file_system(Path(root), mounts) == kind


def test_this_machines_own_mounts_can_be_read(tmp_path: Path) -> None:
    """The kernel's real list is understood."""
    assert remote_file_system(tmp_path) == ""
