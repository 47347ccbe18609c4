"""`destination.overwrite = "never"`: whether the server honours If-None-Match, or a HEAD has to come first."""

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

    UNKNOWN = "unknown"  #: no answer has shown it yet
    HONOURED = "honoured"  #: the server refuses to replace an object: AWS, or a server that answered 412
    IGNORED = "ignored"  #: the server replaced an object


class OverwriteGuard:
    """Decides whether an upload needs a HEAD first. Thread-safe.

    The trial repeats a request that was just confirmed: a server that ignores the condition replaces the object with
    an equal one.
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
        """Return whether the calling thread has to repeat its request, and then to call `end_trial`."""
        return self.wants_trial and self._trial.acquire(blocking=False)

    def end_trial(self, status: int) -> None:
        """Take the HTTP status of the repeated request."""
        if status == 412:  # noqa: PLR2004 - Precondition Failed
            self.refused()
        elif status == 200:  # noqa: PLR2004 - OK
            self.condition = Condition.IGNORED
            log.warning("destination.condition_ignored")
        self._trial.release()

    def refused(self) -> None:
        """Note that the server answered 412 to one of our requests."""
        self.condition = Condition.HONOURED


def is_aws(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.endswith(_AWS_HOSTS) and ".s3-outposts." not in host
