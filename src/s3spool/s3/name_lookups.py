"""How old an answer of DNS may be: not older than the last connection that could not be made."""

from __future__ import annotations

CACHE_S = 5  # libcurl's default is a minute, for which a dead answer would go on after the name is right again


class NameLookups:
    """Shared by all connections to one endpoint. Thread-safe: a count that is lost means one more look-up."""

    def __init__(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        """A connection could not be made: the next one of each handle looks its name up."""
        self._failures += 1

    def cache_s(self, seen: int) -> tuple[int, int]:
        """(seconds for libcurl to keep an answer, what to pass as `seen` for the next request)."""
        return (CACHE_S if seen == self._failures else 0), self._failures
