"""One result of `s3spool check`."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class CheckResult(NamedTuple):
    """One line. `error`: the daemon would not work; `warning`: it would, but not as well as it could."""

    level: Level
    subject: str
    text: str

    @property
    def mark(self) -> str:
        """The level as a column of even width, in letters that every terminal has."""
        return f"{self.level:7}"


def ok(subject: str, text: str) -> CheckResult:
    return CheckResult("ok", subject, _line(text))


def warning(subject: str, text: str) -> CheckResult:
    return CheckResult("warning", subject, _line(text))


def error(subject: str, text: str) -> CheckResult:
    return CheckResult("error", subject, _line(text))


def _line(text: str) -> str:
    """One printable line, whatever a file name or a server's message holds."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in " ".join(text.split()))
