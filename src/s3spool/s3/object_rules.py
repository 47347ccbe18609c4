"""Which options an object gets: the headers of [destination], prepared once for each content type."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from s3spool.s3.content_types import content_type_of
from s3spool.s3.keys import Prefix
from s3spool.s3.options import Headers, ObjectOptions, retain_until

_RETAIN_UNTIL = "x-amz-object-lock-retain-until-date"


class PreparedOptions:
    """Options with their headers made. Thread-safe."""

    def __init__(self, options: ObjectOptions) -> None:
        self.options = options
        self.prefix = Prefix(options.prefix)
        self._auto = options.content_type == "auto"
        self._headers = options.headers
        self._by_type = {"": self._headers}  # at most as many as content_types has types

    def headers(self, path: str, body: bytes | None) -> Headers:
        """What the object of this file carries; `body` is its content, if that is in memory."""
        kind = content_type_of(path, body) if self._auto else ""
        found = self._by_type.get(kind)
        if found is None:
            found = self._by_type[kind] = (("Content-Type", kind), *self._headers)
        if self.options.object_lock_mode:
            return (*found, (_RETAIN_UNTIL, retain_until(self.options.object_lock_days, time.time())))
        return found


class ObjectRules:
    """The options of each path. Immutable but for what is prepared, so thread-safe."""

    def __init__(self, options: Sequence[ObjectOptions], index: Callable[[str], int] = lambda _: -1) -> None:
        """`options` of each rule, and of [destination] at the end; `index`: a path's rule, -1 for none."""
        self.options = options
        self._prepared = [PreparedOptions(each) for each in options]
        self._index = index

    def of(self, path: str) -> PreparedOptions:
        return self._prepared[self._index(path)]

    @property
    def grants(self) -> list[str]:
        """The permissions that uploads with any of these options take."""
        return list(dict.fromkeys(grant for each in self.options for grant in each.grants))
