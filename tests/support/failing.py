"""Functions that fail, for a while or for ever, and a ledger whose disk is slow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any
from unittest import mock

import pytest

from s3spool.ledger.store import Ledger


def fails(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *errors: BaseException, times: int = 1) -> None:
    """The next calls of `owner.name` raise these errors, `times` each; then it works again."""
    works, left = getattr(owner, name), chain.from_iterable(repeat(errors, times))

    def call(*arguments: Any, **options: Any) -> Any:
        for error in left:
            raise error
        return works(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


FOR_EVER = 1_000_000


@contextmanager
def held(ledger: Ledger) -> Iterator[threading.Event]:
    """Nothing becomes durable until the event is set, or the block ends."""
    go_on, commit = threading.Event(), ledger._commit_until_done

    def waits(group: Any) -> bool:
        assert go_on.wait(60)
        return commit(group)

    with mock.patch.object(ledger, "_commit_until_done", waits):
        try:
            yield go_on
        finally:
            go_on.set()
            assert ledger.flush(10)
