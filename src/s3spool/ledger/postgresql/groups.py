"""What the ledger's thread has to do, in groups: neighbours of one kind go to the database as one statement."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from s3spool.ledger.protocol import Committed, Lost

GROUP_S = 0.005  # the first row of a group waits for more rows, so that one statement serves them all
BUSY_GROUP_S = 0.75  # the same after a group of at least CROWD rows; claims do not wait for it
CROWD = 8
GROUP_ROWS = 1000
ANNOUNCE_S = 2.0  # how often readers see in a crowd that there is something new
Rows = list[tuple[Any, ...]]


class Work(NamedTuple):
    """One call of a writing method: a row, paths, or other arguments."""

    statements: tuple[str, ...]
    row: dict[str, Any] | None = None
    paths: Sequence[str] = ()
    arguments: Mapping[str, Any] = {}
    path: str = ""  # of a row that is stored only with a claim
    committed: Committed | None = None
    lost: Lost | None = None
    taken: Callable[[Rows], None] | None = None  # called with the rows that came back

    @property
    def kind(self) -> object:
        return id(self) if self.arguments or not (self.row or self.paths) else self.statements

    @property
    def size(self) -> int:
        return len(self.paths) or 1

    @property
    def key(self) -> object:
        """One statement stores one row per key: the last."""
        row = self.row or {}
        return row.get("path") or (row["upload_id"], row["number"])


WAKE = Work(())  # the ledger's thread looks at what else there is to do


def gathered(inbox: queue.SimpleQueue[Work | None], first: Work) -> tuple[list[Work], bool]:
    """A group that begins with `first`, and whether the end of the queue has come."""
    group = [] if first is WAKE else [first]
    while len(group) < GROUP_ROWS and not inbox.empty():
        work = inbox.get_nowait()
        if work is None:
            return group, True
        if work is not WAKE:
            group.append(work)
    return group, False
