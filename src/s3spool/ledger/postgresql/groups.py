"""What the ledger's thread has to do, in groups: rows of one kind go to the database as one statement."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, NamedTuple

from s3spool.ledger.protocol import Committed

GROUP_ROWS = 1000


class Work(NamedTuple):
    """One call of a writing method."""

    statements: tuple[str, ...]
    row: dict[str, Any] | None  # one of many rows of the same statement
    arguments: dict[str, Any]
    path: str = ""  # of a row that is stored only with a claim
    committed: Committed | None = None
    taken: Callable[[list[tuple[Any, ...]]], None] | None = None  # called with the rows that came back

    @property
    def kind(self) -> object:
        return self.statements if self.row is not None else id(self)

    @property
    def key(self) -> object:
        """One statement stores one row per key: the last."""
        row = self.row or {}
        return row.get("path") or (row["upload_id"], row["number"])


def gathered(inbox: queue.SimpleQueue[Work | None], first: Work) -> tuple[list[Work], bool]:
    """A group that begins with `first`, and whether the end of the queue has come."""
    group = [first]
    while len(group) < GROUP_ROWS and not inbox.empty():
        work = inbox.get_nowait()
        if work is None:
            return group, True
        group.append(work)
    return group, False
