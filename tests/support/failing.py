"""Functions that fail, for a while or for ever."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import pytest


def fails(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *errors: BaseException, times: int = 1) -> None:
    """The next calls of `owner.name` raise these errors, `times` each; then it works again."""
    works, left = getattr(owner, name), chain.from_iterable(repeat(errors, times))

    def call(*arguments: Any, **options: Any) -> Any:
        for error in left:
            raise error
        return works(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


FOR_EVER = 1_000_000
