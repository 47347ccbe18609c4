"""Prints a manual page: `manual.py TEMPLATE`. What can drift from the code is filled in from the code.

A line of the template that reads `@commands@`, `@keys@`, `@exit-codes@`, `@rule-keys@` or `@reload@` is replaced.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from s3spool import __version__
from s3spool.cli.commands import cli
from s3spool.cli.wait import SOME_PARKED, TIMED_OUT
from s3spool.config import schema as config_schema
from s3spool.config.rules import DESTINATION_KEYS
from s3spool.config.schema import LIVE, SECTIONS
from s3spool.errors import ConfigError, S3SpoolError

EXIT_CODES = {
    0: "Fine.",
    S3SpoolError.exit_code: "An error; one line on standard error says which. `check`: it would not work.",
    click.UsageError.exit_code: "The command line is wrong.",
    SOME_PARKED: "`wait`: some files are parked. `run --once`: some files are not sent.",
    TIMED_OUT: "`wait`: time-out.",
    ConfigError.exit_code: "The configuration or the ledger is wrong: a restart does not help, so the service does"
    " not try one.",
}
_SPECIAL = {"\\": "\\e", "^": "\\(ha", "~": "\\(ti", "`": "\\(ga", "'": "\\(aq", '"': "\\(dq"}


def page(template: str) -> str:
    filled: dict[str, Iterator[str]] = {
        "@commands@": _commands(),
        "@keys@": _keys(),
        "@rule-keys@": _terms((name, "") for name in DESTINATION_KEYS),
        "@exit-codes@": _exit_codes(),
        "@reload@": _terms((name, "") for name in sorted(LIVE)),
    }
    lines: list[str] = []
    for line in template.splitlines():
        lines.extend(filled.get(line, (line.replace("@version@", __version__).replace("@date@", _date()),)))
    return "\n".join(lines) + "\n"


def _commands() -> Iterator[str]:
    yield from _options(click.Context(cli, info_name="s3spool"))
    for context in _contexts(click.Context(cli, info_name="s3spool")):
        words = [context.command_path, *context.command.collect_usage_pieces(context)]
        yield f".SS {_exact(' '.join(words))}"
        for paragraph in (context.command.help or "").split("\n\n"):
            yield from (_prose(" ".join(paragraph.replace("\b", "").split())), ".PP")
        yield from _options(context)


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """Every command that does something, also those of groups."""
    if not isinstance(context.command, click.Group):
        yield context
        return
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        if command is not None and not command.hidden:
            yield from _contexts(click.Context(command, info_name=name, parent=context))


def _options(context: click.Context) -> Iterator[str]:
    records = (parameter.get_help_record(context) for parameter in context.command.get_params(context))
    yield from _terms(record for record in records if record and record[1])


def _keys() -> Iterator[str]:
    options = {option.name: option for option in config_schema.OPTIONS.values()}
    for section in SECTIONS:
        yield f".SS [{_exact(section)}]"
        for name, option in options.items():
            if name.startswith(f"{section}."):
                setting = f"{name.removeprefix(f'{section}.')} = {option.default}"
                yield from (".TP", f".B {_exact(setting)}", _prose(option.doc))


def _exit_codes() -> Iterator[str]:
    return _terms((str(code), text) for code, text in EXIT_CODES.items())


def _terms(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    for term, text in pairs:
        yield from (".TP", f".B {_exact(term)}", _prose(text)) if text else (".br", f".B {_exact(term)}")


def _prose(text: str) -> str:
    """A sentence; what stands in back-quotes, or looks like an option, is typed as it is."""
    parts = re.split(r"(`[^`]+`|(?<!\S)--[a-z-]+)", text)
    typed = "".join(
        f"\\fB{_exact(part.strip('`'))}\\fR" if number % 2 else _escaped(part) for number, part in enumerate(parts)
    )
    return f"\\&{typed}" if typed.startswith((".", "\\(aq")) else typed


def _exact(text: str) -> str:
    return _escaped(text).replace("-", "\\-")


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(char, char) for char in text)


def _date() -> str:
    """The same at every build of a commit."""
    moment = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1]).read_text(encoding="utf-8")))
