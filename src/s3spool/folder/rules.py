"""Which [[rule]] a file falls under: one compiled matcher for all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from s3spool.config.schema import Config, DestinationConfig
from s3spool.folder.filters import pattern_of

_EXTENSION = re.compile(r"\*(\.[^*?\[/.]+)")  # "*.html"


class FirstMatch:
    """The index of the first of several lists of patterns that matches a path. Immutable, so thread-safe.

    Patterns are read as `watch.include` reads them.
    """

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        self._none = len(lists)
        self._extensions: dict[str, int] = {}
        others: dict[int, list[str]] = {}
        for index, patterns in enumerate(lists):
            for pattern in patterns:
                if found := _EXTENSION.fullmatch(pattern):
                    self._extensions.setdefault(found[1], index)
                else:
                    others.setdefault(index, []).append(pattern)
        self._indexes = [*others]  # of the groups below
        alternatives = "|".join(f"({pattern_of(patterns)})" for patterns in others.values())
        self._others = re.compile(rf"(?:{alternatives})\Z", re.DOTALL) if others else None

    def __call__(self, path: str) -> int:
        """-1: none."""
        first = self._extensions.get(path[path.rfind(".") :], self._none)
        if self._others is not None and (found := self._others.match(path)) is not None:
            first = min(first, self._indexes[found.lastindex - 1]) if found.lastindex else first
        return first if first < self._none else -1


class FileRules:
    """The rules of a configuration. Immutable, so thread-safe."""

    def __init__(self, config: Config) -> None:
        rules, destination = config.rules, config.destination
        self.index = FirstMatch([rule.match for rule in rules]) if rules else lambda _: -1
        self._names = [f"rule {number} ({rule.name})" for number, rule in enumerate(rules, 1)]
        #: of each rule; the last one is that of files without a rule
        self.destinations = [*(replace(destination, **rule.destination) for rule in rules), destination]
        self._actions = [*(rule.after or config.after.action for rule in rules), config.after.action]

    @property
    def prefixes(self) -> set[str]:
        return {destination.prefix for destination in self.destinations}

    def destination(self, path: str) -> DestinationConfig:
        return self.destinations[self.index(path)]

    def action(self, path: str) -> str:
        """keep, delete or archive."""
        return self._actions[self.index(path)]

    def number(self, path: str) -> int | None:
        """From 1; None: no rule."""
        return self.index(path) + 1 or None

    def name(self, path: str) -> str:
        """`rule 2 (*.html, *.htm)`, or ""."""
        index = self.index(path)
        return self._names[index] if index >= 0 else ""
