"""Every error s3spool raises on purpose, and what its *scope* means for the files behind it."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath

EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
NOTHING_LEFT = "this process has no file descriptor or memory left: raise LimitNOFILE= in the unit (ulimit -n)"
CONNECTION_LOST = {"COULDNT_CONNECT", "GOT_NOTHING", "RECV_ERROR", "SEND_ERROR", "ConnectionClosedError"}
_SHOWN = 300  # characters of a wrong name or value


class Scope(Enum):
    """Whom an upload error concerns, as far as one answer tells (rules of `CircuitBreaker`)."""

    FILE = "file"  #: this file alone, which shows it itself: unreadable, unmappable name, another object is there
    EVERYBODY = "everybody"  #: no file could pass: denied, expired credentials, no such bucket, DNS, refused
    UNKNOWN = "unknown"  #: one answer does not tell; a permanent refusal is of this kind, too
    LOAD = "load"  #: too many requests at once: fewer are sent, and nobody is blamed


class Fault(Enum):
    """Whose fault a failure is; the values are the sentences of `file.failed` and `why`."""

    OWN = "its own: others passed between its failures, or the file itself shows it"
    UNKNOWN = "waits: not known yet whose fault"
    DESTINATION = "the destination is paused"


class S3SpoolError(Exception):
    """Base of all our errors; `str()` is one line a person can act on."""

    exit_code = 1


class ConfigError(S3SpoolError):
    """A setting is wrong; exit code 78 (EX_CONFIG in sysexits.h), so that systemd does not restart on it."""

    exit_code = 78

    def __init__(self, field: str, value: object, problem: str) -> None:
        """`field` is dotted ("upload.workers"); `value` as the person wrote it, None where there is none."""
        self.field = field
        self.errors: Sequence[ConfigError] = (self,)  #: more than one in CombinedConfigError
        shown = "" if value is None else f" = {_literal(value)}"
        super().__init__(f"{_cut(field)}{shown}: {problem}")


class CombinedConfigError(ConfigError):
    """Several settings are wrong: `str()` has one line per error."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__(errors[0].field, None, "")
        self.errors = errors
        self.args = ("\n".join(map(str, errors)),)


def raise_config_errors(errors: Sequence[ConfigError]) -> None:
    """Raise the only error, or all of them as one; none is no error."""
    if errors:
        raise errors[0] if len(errors) == 1 else CombinedConfigError(errors)


class LedgerError(S3SpoolError):
    """The ledger file cannot be used; exit code 78, because a restart does not mend it."""

    exit_code = 78


class LedgerDamagedError(LedgerError):
    """Its content is damaged, or it is no database at all: a start keeps the file aside and begins a new ledger."""


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
    with it; `permanent` means that trying again unchanged cannot succeed, if it is the file's own fault;
    `retry_after_s` is the server's wish; `status` is that of HTTP, 0 where there is none; `retry_immediately` that
    the cause has been removed already: the file is sent once more, and only a second failure counts.
    """

    operation: str
    path: str
    code: str
    cause: str
    scope: Scope = Scope.UNKNOWN
    permanent: bool = False
    hint: str = ""
    retry_after_s: float | None = None
    status: int = 0
    retry_immediately: bool = False

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.operation} {self.path}: {self.code}: {self.cause}{hint}"

    @property
    def may_be_torn(self) -> bool:
        """Whether a change of the file while it was sent may explain this error."""
        return self.scope in {Scope.FILE, Scope.UNKNOWN}

    @property
    def connection_lost(self) -> bool:
        """Whether a connection was refused or reset: some servers and balancers do that where there are too many."""
        return self.code in CONNECTION_LOST

    @property
    def short(self) -> str:
        """Two words for a line that has no room: "403 AccessDenied"."""
        return f"{self.status} {self.code}" if self.status and str(self.status) not in self.code else self.code


def unfit(path: str, code: str, cause: str, hint: str, *, operation: str = "map") -> UploadError:
    """Return the error of a file that shows itself that S3 can never take it."""
    return UploadError(operation, path, code, cause, Scope.FILE, permanent=True, hint=hint)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, PurePath)):
        escaped = _cut(str(value)).replace("\\", "\\\\").replace('"', '\\"')
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
