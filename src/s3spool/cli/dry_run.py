"""`s3spool run --dry-run`: what a run would send where, and what it would leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import click

from s3spool.check.walk import walk
from s3spool.cli.options import say
from s3spool.config.loader import require_bucket
from s3spool.config.schema import Config
from s3spool.control.offline import OfflineAnswers
from s3spool.errors import ConfigError, S3SpoolError
from s3spool.folder.rules import FileRules
from s3spool.logs.text import printable, shown
from s3spool.logs.units import size
from s3spool.s3.keys import Prefix, key_of


def print_plan(config: Config, warnings: Sequence[str]) -> None:
    """One line per file that would be sent or is left out, and a summary. Changes nothing."""
    require_bucket(config)
    root, destination = config.watch.directory, config.destination
    if not root.is_dir():
        raise ConfigError("watch.directory", root, "is not there, or not a directory")
    for warning in warnings:
        say(warning)
    answers, rules = OfflineAnswers(config), FileRules(config)
    counts: Counter[str] = Counter()
    total = 0
    for path, answer in answers.explain(_files(config)):
        state, name = answer["state"], shown(path)
        counts[state] += 1
        if state in {"unsent", "waiting"}:
            total += answer["bytes"]
            mtime_s = (root / path).lstat().st_mtime
            try:
                key = key_of(path, Prefix(rules.destination(path).prefix).of(mtime_s))
            except S3SpoolError as exc:
                _line("parked", answer["bytes"], f"{name}: {exc}")
                continue
            _line("send", answer["bytes"], f"{name} to {shown(f's3://{destination.bucket}/{key}')}")
        elif state != "uploaded":
            _line(state, answer.get("bytes"), f"{name}: {answer['why']}")
    send = counts["unsent"] + counts["waiting"]
    click.echo(f"{send:,} file{'' if send == 1 else 's'} ({size(total)}) would be sent", nl=False)
    for state in ("uploaded", "excluded", "parked"):
        click.echo(f", {counts[state]:,} {state}" if counts[state] else "", nl=False)
    click.echo(f"\n{printable(config.after_upload())}")


def _line(word: str, length: int | None, text: str) -> None:
    click.echo(f"{word:<9}  {'' if length is None else size(length):>9}  {printable(text)}")


def _files(config: Config) -> Iterator[str]:
    """Each regular file; directories that are left out become a line."""
    for kind, path, problem in walk(config, in_order=True):
        if kind in {"file", "left out"}:
            yield path
        elif kind == "excluded":
            _line("excluded", None, f"{shown(path)}: left out by watch.exclude")
        elif kind == "too deep":
            _line("excluded", None, f"{shown(path)}: every key below it would be longer than S3's 1,024 bytes")
        elif kind == "unreadable":
            _line("unread", None, f"{shown(path)}: {problem}")
