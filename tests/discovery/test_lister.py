"""New directories are listed on a thread of their own; what it cannot do is left to a scan."""

from __future__ import annotations

import threading

import pytest

from s3spool.discovery import lister
from s3spool.discovery.lister import Lister
from support.failing import fails
from support.waiting import eventually


def test_directories_beyond_the_limit_are_left_to_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that waits already takes no second place."""
    monkeypatch.setattr(lister, "LIMIT", 2)
    go_on = threading.Event()
    listed: list[str] = []
    rescans: list[str] = []

    def list_directory(directory: str) -> None:
        listed.append(directory)
        assert go_on.wait(60)

    new = Lister("watch-new", list_directory, rescans.append)
    new.add("a/")
    eventually(lambda: listed)
    assert not new.idle()

    for directory in ("b/", "c/", "c/", "d/"):
        new.add(directory)

    assert rescans == ["full"]
    assert not new.idle()
    go_on.set()
    eventually(new.idle)
    assert listed == ["a/", "b/", "c/"]
    new.close()


def test_without_a_thread_a_directory_waits_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for the scan that is asked for: it may come first."""
    listed: list[str] = []
    rescans: list[str] = []
    fails(monkeypatch, threading.Thread, "start", RuntimeError("can't start new thread"))
    new = Lister("watch-new", listed.append, rescans.append)

    new.add("a/")
    assert rescans == ["error"]
    new.add("b/")

    eventually(lambda: listed == ["a/", "b/"])
    assert rescans == ["error"]
    new.close()
