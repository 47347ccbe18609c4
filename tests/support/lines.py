"""What was logged, whatever an earlier test made of structlog's configuration."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any, NoReturn

import structlog


class Lines(list[dict[str, Any]]):
    """Log lines as dicts, in order; `level` is the method that was called."""

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in list(self) if line["event"] == event]

    def take(self, _logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        self.append({**event, "level": method})
        raise structlog.DropEvent


@contextlib.contextmanager
def recorded() -> Iterator[Lines]:
    """Collect the lines of all s3spool's modules instead of writing them."""
    lines = Lines()
    structlog.reset_defaults()
    structlog.configure(processors=[lines.take])
    for name, module in list(sys.modules.items()):
        if name.startswith("s3spool.") and hasattr(module, "log"):
            # A logger that was used under another configuration may remember it.
            vars(module.log).pop("bind", None)
    try:
        yield lines
    finally:
        structlog.reset_defaults()
