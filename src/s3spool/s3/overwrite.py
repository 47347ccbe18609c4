"""`destination.overwrite = "never"`: what keeps objects from being replaced at this server."""

from __future__ import annotations

import threading
from enum import Enum
from urllib.parse import urlsplit

import structlog

# AWS documents conditional writes for all its buckets but those on Outposts.
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")
log = structlog.get_logger()


class Condition(Enum):
    """What this server does with `If-None-Match: *`."""

    UNKNOWN = "unknown"  #: nothing has shown it yet
    HONOURED = "honoured"  #: it refuses to replace an object: AWS, or a server that answered 412
    IGNORED = "ignored"  #: it has replaced an object all the same


class OverwriteGuard:
    """Decides whether an upload has to ask with HEAD first. Thread-safe.

    The server is tried once with an object that this process has just written: the same request again. A server
    that ignores the condition then replaces the object with itself.
    """

    def __init__(self, *, never: bool, url: str) -> None:
        self.never = never
        self.condition = Condition.HONOURED if is_aws(url) else Condition.UNKNOWN
        self._trial = threading.Lock()

    @property
    def asks_first(self) -> bool:
        return self.never and self.condition is not Condition.HONOURED

    @property
    def wants_trial(self) -> bool:
        return self.never and self.condition is Condition.UNKNOWN

    def begin_trial(self) -> bool:
        """Whether the calling thread is to try it; `end_trial` has to follow."""
        return self.wants_trial and self._trial.acquire(blocking=False)

    def end_trial(self, status: int) -> None:
        """`status`: HTTP's, of the second request."""
        if status == 412:  # noqa: PLR2004 - Precondition Failed
            self.refused()
        elif status == 200:  # noqa: PLR2004 - OK
            self.condition = Condition.IGNORED
            log.warning("destination.condition_ignored")
        self._trial.release()

    def refused(self) -> None:
        """The server has answered 412 to a request of ours."""
        self.condition = Condition.HONOURED


def is_aws(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.endswith(_AWS_HOSTS) and ".s3-outposts." not in host
