"""Every error s3spool raises on purpose, and what its *scope* means for the files behind it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum

EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
NOTHING_LEFT = "this process has no file descriptor or memory left: raise LimitNOFILE= in the unit (ulimit -n)"
_SHOWN = 300  # characters of a wrong name or value


class Scope(Enum):
    """Whom an upload error concerns; decides who waits for it."""

    FILE = "file"  #: this file backs off or is parked, the others go on
    DESTINATION = "destination"  #: nothing can be sent: the destination is paused, no file is blamed


class S3SpoolError(Exception):
    """Base of all our errors; `str()` is one line a person can act on."""

    exit_code = 1


class ConfigError(S3SpoolError):
    """A setting is wrong; exit code 78 (EX_CONFIG in sysexits.h), so that systemd does not restart on it."""

    exit_code = 78

    def __init__(self, field: str, value: object, problem: str) -> None:
        """`field` is dotted ("upload.workers"); `value` as the person wrote it, None where there is none."""
        self.field = field
        shown = "" if value is None else f" = {_literal(value)}"
        super().__init__(f"{_cut(field)}{shown}: {problem}")


class LedgerError(S3SpoolError):
    """The ledger file cannot be used; exit code 78, because a restart does not mend it."""

    exit_code = 78


class LedgerUnavailableError(LedgerError):
    """It cannot be used now: the disk is full or broken, or another program has it locked. A restart may do better."""

    exit_code = 1


class AlreadyRunningError(S3SpoolError):
    """Another daemon holds the state directory."""

    exit_code = 1


@dataclass(slots=True)
class UploadError(S3SpoolError):
    """One attempt to send a file failed.

    `code` is S3's error code ("AccessDenied"), else libcurl's or errno's name; `cause` the sentence that came
    with it; `permanent` means that trying again unchanged cannot succeed; `retry_after_s` is the server's wish;
    `sudden` means that one occurrence says enough to pause the destination, without waiting for a streak;
    `slow_down` that the server asks for fewer requests; not `answered` that no server was heard at all; `status` is
    that of HTTP, 0 where there is none; `mended` that its cause is out of the way already: once more will do, and only
    the second time is it what it says; `proven` that more than this one answer shows it to be the file's own.
    """

    operation: str
    path: str
    code: str
    cause: str
    scope: Scope = Scope.FILE
    permanent: bool = False
    hint: str = ""
    retry_after_s: float | None = None
    sudden: bool = True
    slow_down: bool = False
    answered: bool = True
    status: int = 0
    mended: bool = False
    proven: bool = False

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.operation} {self.path}: {self.code}: {self.cause}{hint}"

    @property
    def short(self) -> str:
        """Two words for a line that has no room: "403 AccessDenied"."""
        return f"{self.status} {self.code}" if self.status and str(self.status) not in self.code else self.code


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = _cut(value).replace("\\", "\\\\").replace('"', '\\"')
        # A terminal obeys more than line feeds.
        printable = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in escaped)
        return f'"{"".join(printable)}"'
    try:
        text = str(value)
    except ValueError:  # a number of more than 4,300 digits
        text = "a huge number"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
