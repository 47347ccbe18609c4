"""Recognises unchanged hard links: the removal of one name changes the ctime of all names of an inode."""

from __future__ import annotations

import os
from typing import NamedTuple

from s3spool.ledger.rows import Identity

KEPT = 1000  # inodes; a forgotten one is checked like any other file


class _Span(NamedTuple):
    """Between these two ctimes only our removals have changed the inode."""

    first_ns: int
    last_ns: int


class HardLinks:
    """The ctime changes that our own removals caused. One thread calls `note`, any thread `same`.

    Without it, each removal would cause a check of all other names: half a million checks for a thousand names.
    """

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int], _Span] = {}

    def same(self, sent: Identity, found: Identity) -> bool:
        """Whether the file is the one that was sent; a ctime that our removals have changed does not count."""
        if found == sent:
            return True
        span = self._spans.get(sent[:2])
        return (
            span is not None
            and found[:4] == sent[:4]
            and found.ctime_ns == span.last_ns
            and span.first_ns <= sent.ctime_ns <= span.last_ns
        )

    def note(self, found: Identity, after: os.stat_result) -> None:
        """One name was removed; the inode was `found` before the removal and is `after` now."""
        key = found[:2]
        before = self._spans.pop(key, None)
        now = Identity.of(after)
        if after.st_nlink == 0 or now[:4] != found[:4]:
            return
        first_ns = before.first_ns if before is not None and before.last_ns == found.ctime_ns else found.ctime_ns
        self._spans[key] = _Span(first_ns, now.ctime_ns)
        if len(self._spans) > KEPT:
            del self._spans[next(iter(self._spans))]
