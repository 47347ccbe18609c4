"""Whether only we have touched an inode that has other names: removing one of them changes the ctime of all."""

from __future__ import annotations

import os
from typing import NamedTuple

from s3spool.ledger.rows import Identity

KEPT = 1000  # inodes; one that was forgotten is looked at as closely as any other file


class _Span(NamedTuple):
    """Whatever ctime in between the inode had, nobody but us has touched it."""

    first_ns: int
    last_ns: int


class HardLinks:
    """Without it a thousand names of one inode would be looked at half a million times: each removal spoils all others.

    One thread notes, any may ask.
    """

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int], _Span] = {}

    def same(self, sent: Identity, found: Identity) -> bool:
        """Whether this is what was sent, but for what our own removals have changed."""
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
        """One of its names was removed: it was found so before, and is so now."""
        key = found[:2]
        before = self._spans.pop(key, None)
        now = Identity.of(after)
        if after.st_nlink == 0 or now[:4] != found[:4]:
            return
        first_ns = before.first_ns if before is not None and before.last_ns == found.ctime_ns else found.ctime_ns
        self._spans[key] = _Span(first_ns, now.ctime_ns)
        if len(self._spans) > KEPT:
            del self._spans[next(iter(self._spans))]
