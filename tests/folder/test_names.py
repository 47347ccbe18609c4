"""Which names are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3spool.config.schema import WatchConfig
from s3spool.folder.filters import FileFilter

DEFAULT = WatchConfig(directory=Path()).exclude


TEMPORARY = """
    a.filepart a.download/b a.opdownload a.aria2 a.swp a.swx 4913 ~$a.docx a.upload a.uploading a.inprogress a._COPYING_
    a.!qB a.!ut a.bc! a.db-journal a.db-wal a.db-shm Thumbs.db ehthumbs.db x/desktop.ini lost+found/a @eaDir/a
    $RECYCLE.BIN/x/a
"""
PEOPLES = "a.bak a.lock a.temp #a# a.db 4913.txt x4913 Thumbs.db.txt ~a $a downloads/a upload/a a.swp.txt ü.TXT"


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["a", ".a", "sub/a"], []),
        ("*.csv", ["a.csv", "sub/a.csv", ".csv", "two\nlines.csv"], ["a.csv.gz", "a.CSV", "csv", "a.csv/b"]),
        ("data-?.bin", ["data-1.bin", "x/data-ü.bin"], ["data-.bin", "data-12.bin", "data-/.bin"]),
        ("logs/*", ["logs/a", "logs/a.gz"], ["a", "logs/x/a", "x/logs/a", "logs"]),
        ("logs/**", ["logs/a", "logs/x/a", "logs/x/y/a"], ["a", "x/logs/a", "logsx/a"]),
        ("**/done/*", ["done/a", "x/done/a", "x/y/done/a"], ["done", "undone/a", "done/x/a"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a/bz", "az"]),
        ("[ab].txt", ["a.txt", "b.txt", "x/a.txt"], ["c.txt", "ab.txt"]),
        ("[!z-a]x", ["ax"], ["x", "a/x/"]),
        ("[!ab].txt", ["c.txt", "].txt"], ["a.txt", "b.txt", ".txt"]),
        ("[]a].txt", ["].txt", "a.txt"], ["b.txt"]),
        ("[a-c]x", ["ax", "bx", "cx"], ["dx", "-x"]),
        ("a[", ["a["], ["a"]),
        ("a[]", ["a[]"], ["a"]),
        ("(a|b)+.$", ["(a|b)+.$"], ["a", "b"]),
        ("back\\slash", ["back\\slash"], ["backslash"]),
        ("[\\a]", ["\\", "a"], ["b"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    """A glob without a slash speaks of the last component, one with a slash of the whole path."""
    names = FileFilter([pattern], [])

    assert [path for path in yes if not names.accepts_file(path)] == []
    assert [path for path in no if names.accepts_file(path)] == []


@pytest.mark.parametrize("pattern", ["x[!a]y", "x[+-9]y", "x[/]y", "x?y", "x*y"])
def test_only_two_stars_cross_a_slash(pattern: str) -> None:
    """Neither a wildcard nor a class of characters takes a slash for a character of the name."""
    names = FileFilter([f"top/{pattern}"], [])

    assert not names.accepts_file("top/x/y")


@pytest.mark.parametrize(
    ("pattern", "name"), [("[[]x", "[x"), ("[a&&b]", "&"), ("[a||b]", "|"), ("[a--b]", "b"), ("[^a]", "^")]
)
def test_a_class_of_characters_holds_just_those(pattern: str, name: str) -> None:
    """What Python's regular expressions give a meaning of their own, or a warning, has none in a glob."""
    names = FileFilter([pattern], [])

    assert names.accepts_file(name)


def test_a_class_that_holds_nothing_matches_nothing() -> None:
    """A range that runs backwards is a pattern without matches, not a crash."""
    names = FileFilter(["*.csv", "[z-a]"], [])

    assert names.accepts_file("a.csv")
    assert not names.accepts_file("m")


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("a.txt", True),
        ("sub/a.txt", True),
        (".hidden", False),
        (".git/config", False),
        ("x/.git/objects/ab/cd", False),
        ("a.part", False),
        ("x.partial/a", False),
        ("a.tmp.txt", True),
        ("a~", False),
        ("~a", True),
        ("a.crdownload", False),
        ("\udcff\n", True),
        ("...", False),
        ("..x", False),
        *((name, False) for name in TEMPORARY.split()),
        *((name.upper(), False) for name in TEMPORARY.split()),
        ("System Volume Information/a", False),
        *((name, True) for name in PEOPLES.split()),
    ],
)
def test_default_excludes(path: str, ours: bool) -> None:
    """An exclude without a slash hides any component, so what is below a hidden directory is hidden."""
    names = FileFilter(["*"], DEFAULT)

    assert names.accepts_file(path) is ours


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("A.PART", "*.part"),
        ("x/4913/y", "4913"),
        ("Cache/A", "cache/?"),
        ("Ax1", "[a-b]x[0-9]"),
        ("one.two", "*e.t*"),
        ("two", "***wo"),
        ("a", ""),
    ],
)
def test_the_pattern_that_excludes_is_named(path: str, pattern: str) -> None:
    """Without regard to case, whatever kind of pattern it is."""
    names = FileFilter(["*"], ["*.part", "4913", "cache/?", "[a-b]x[0-9]", "*e.t*", "***wo"])

    assert names.excluded_by(path) == pattern
    assert names.accepts_file(path) is not bool(pattern)


def test_excluding_by_whole_path_hides_what_is_below() -> None:
    """A directory that is excluded by its path is not looked into."""
    names = FileFilter(["*"], ["cache/*", "private"])

    assert not names.enters_directory("cache/x")
    assert not names.accepts_file("cache/x/deep/a")
    assert not names.enters_directory("a/private")
    assert names.enters_directory("cache")
    assert names.enters_directory("other/cache/x")


def test_includes_say_nothing_about_directories() -> None:
    """An include speaks of files: directories are looked into whatever they are called."""
    names = FileFilter(["*.csv"], [])

    assert names.enters_directory("anything")
    assert names.accepts_file("anything/a.csv")
    assert not names.accepts_file("anything/a.txt")


def test_no_include_means_no_file() -> None:
    """Without any pattern nothing is ours."""
    assert not FileFilter([], []).accepts_file("a")


def test_a_tree_deeper_than_the_stack() -> None:
    """Anyone may make 1,500 directories one in another; that must not end a thread."""
    deep = "d/" * 1500 + "file.txt"
    names = FileFilter(["*"], DEFAULT)

    assert names.accepts_file(deep)
    assert names.enters_directory(deep)
    assert not names.accepts_file(f".x/{deep}")
