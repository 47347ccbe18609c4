"""Directories that are too deep: said once each, forgotten when they are gone."""

from __future__ import annotations

from s3spool.discovery.deep_directories import LIMIT, DeepDirectories
from support.lines import Lines


def test_each_is_logged_once_while_it_is_there(lines: Lines) -> None:
    """Each scan meets it again; the line comes again only for one that was gone between."""
    deep = DeepDirectories()
    for _ in range(3):
        deep.note("a/b")
        deep.end_scan()
    assert [line["path"] for line in lines.named("directory.too_deep")] == ["a/b"]

    deep.end_scan()
    assert deep.paths() == []
    deep.note("a/b")

    assert len(lines.named("directory.too_deep")) == 2


def test_what_an_event_notes_during_a_scan_stays_until_the_next(lines: Lines) -> None:
    """The scan in progress may have passed its parent already."""
    deep = DeepDirectories()
    deep.end_scan()
    deep.note("late")

    deep.end_scan()

    assert deep.paths() == ["late"]


def test_no_more_than_a_hundred_are_kept_and_logged(lines: Lines) -> None:
    """A tree that somebody makes on purpose must not fill memory or log."""
    deep = DeepDirectories()

    for number in range(LIMIT + 5):
        deep.note(str(number))

    assert len(deep.paths()) == LIMIT == len(lines.named("directory.too_deep"))
    deep.note("3")
    assert len(lines.named("directory.too_deep")) == LIMIT
