"""Which options an object gets: the headers of [destination], prepared once for each content type."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from s3spool.config.schema import DestinationConfig
from s3spool.s3.content import Content
from s3spool.s3.content_types import content_type_of
from s3spool.s3.file_metadata import FileMetadata
from s3spool.s3.keys import Prefix
from s3spool.s3.options import META, Headers, grants_of, headers_of, mtime_text, retain_until

_MTIME = f"{META}mtime"
_RETAIN_UNTIL = "x-amz-object-lock-retain-until-date"


class PreparedOptions:
    """Options with their headers made. Thread-safe."""

    def __init__(self, options: DestinationConfig) -> None:
        self.options = options
        self.prefix = Prefix(options.prefix)
        self._auto = options.content_type == "auto"
        self.metadata = FileMetadata(options.metadata)
        constant = ((f"{META}{name}", value) for name, value in self.metadata.constant.items() if value)
        self._headers = (*headers_of(options), *constant)
        self._depends = bool(options.object_lock_mode or self.metadata.any)  # on the file or the time
        self._by_type: dict[str, Headers] = {}  # at most as many as content_types has types

    def headers(self, content: Content) -> list[tuple[str, str]]:
        """What the object of this file carries, without checksum and condition. Raises UploadError (permanent)."""
        constant = self._headers
        if self._auto:
            kind = content_type_of(content.path, content.body)
            constant = self._by_type.get(kind) or self._with_type(kind)
        headers = [*constant, (_MTIME, mtime_text(content.identity.mtime_ns))]
        if self._depends:
            headers += self.metadata.headers(content)
            if self.options.object_lock_mode:
                headers.append((_RETAIN_UNTIL, retain_until(self.options.object_lock_days, time.time())))
        return headers

    def _with_type(self, kind: str) -> Headers:
        found = self._by_type[kind] = (("Content-Type", kind), *self._headers)
        return found


class ObjectRules:
    """The options of each path. Immutable but for what is prepared, so thread-safe."""

    def __init__(self, options: Sequence[DestinationConfig], index: Callable[[str], int] = lambda _: -1) -> None:
        """`options` of each rule, and of [destination] at the end; `index`: a path's rule, -1 for none."""
        self.options = options
        self._prepared = [PreparedOptions(each) for each in options]
        self._index = index
        #: whether any of them takes something from the file that is not in its name or identity
        self.wants_attributes = any(each.metadata.attributes for each in self._prepared)

    def of(self, path: str) -> PreparedOptions:
        return self._prepared[self._index(path)]

    @property
    def grants(self) -> list[str]:
        """The permissions that uploads with any of these options take."""
        return list(dict.fromkeys(grant for each in self.options for grant in grants_of(each)))
