"""`s3spool ledger copy`: from SQLite to PostgreSQL, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from s3spool.cli.options import asks_daemon
from s3spool.errors import S3SpoolError
from s3spool.logs.text import printable, shown

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from s3spool.config.schema import Config
    from s3spool.control.client import ControlClient
    from s3spool.ledger.protocol import LedgerBackend
    from s3spool.ledger.queries import LedgerReader

_CLOSE_S = 60.0
_URL = "postgresql://"


@click.group()
def ledger() -> None:
    """Move what the daemon remembers between SQLite and PostgreSQL."""


@ledger.command()
@asks_daemon
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--replace", "replaces", is_flag=True, help="Change and drop rows of TO that differ from FROM.")
def copy(client: ControlClient, source: str, target: str, replaces: bool) -> None:
    """Copy the rows of the configured destination, and compare all of them.

    FROM and TO are each the path of a SQLite file or a postgresql:// URL. No daemon may run on either. A copy that was
    interrupted goes on when it is started again.
    """
    from s3spool.ledger.copy import KINDS, LedgerCopy  # noqa: PLC0415 - start-up time

    config = client.config
    with ExitStack() as stack:
        for directory in {Path(place).absolute().parent for place in (source, target) if not place.startswith(_URL)}:
            stack.enter_context(_locked(directory))
        reader = stack.enter_context(_opened(config, source))
        backend = stack.enter_context(_opened_for_writing(config, target))
        for place in (source, target):
            if place.startswith(_URL):
                stack.enter_context(_starts_held_up(place))
        _refuse_living(config, reader, backend)
        copy = LedgerCopy(reader, backend, config.destination.ledger_name)
        row = None if replaces else copy.first_in_the_way()
        if row is not None:
            raise S3SpoolError(
                f"{target}: has a row that {source} lacks or has otherwise ({shown(row.path)}); nothing was copied:"
                " name an empty ledger, or add --replace"
            )
        copy.write()
        equal, differing = copy.compare()
        _refuse_living(config, reader, backend)
        if differing:
            path = next(row.path for row in differing[0] if row)
            raise S3SpoolError(f"{target}: differs from {source} after the copy, first in {shown(path)}; copy again")
    counts = ", ".join(f"{equal[kind]:,} {kind}" for kind in KINDS)
    click.echo(printable(f"{target} has the rows of {source}: {counts}; all were compared"))


def _refuse_living(config: Config, reader: LedgerReader, backend: LedgerBackend) -> None:
    with backend.reader() as other:
        for node in (*reader.nodes(), *other.nodes()):
            if node.destination == config.destination.ledger_name:
                raise S3SpoolError(f"the daemon {node.name} on {node.host} uses this ledger; stop it, and copy then")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """No daemon may use the SQLite file meanwhile. Raises AlreadyRunningError."""
    from s3spool.ledger.database import DirectoryLock  # noqa: PLC0415 - start-up time

    lock = DirectoryLock(directory)
    try:
        yield
    finally:
        lock.release()


def _starts_held_up(url: str) -> AbstractContextManager[None]:
    from s3spool.ledger.postgresql.connection import schema_locked  # noqa: PLC0415 - an extra

    return schema_locked(url)


def _opened(config: Config, place: str) -> AbstractContextManager[LedgerReader]:
    from s3spool.ledger.opening import open_shared_reader  # noqa: PLC0415 - start-up time
    from s3spool.ledger.reader import Reader  # noqa: PLC0415 - the same

    if place.startswith(_URL):
        shared = open_shared_reader(_with_ledger(config, place))
        if shared is None:
            raise S3SpoolError(f"{place}: holds no ledger; a daemon or a copy makes it")
        return shared
    if not os.path.exists(place):
        raise S3SpoolError(f"{place}: no such file")
    return Reader(Path(place))


@contextmanager
def _opened_for_writing(config: Config, place: str) -> Iterator[LedgerBackend]:
    from s3spool.ledger.opening import open_ledger  # noqa: PLC0415 - start-up time
    from s3spool.ledger.store import Ledger  # noqa: PLC0415 - the same

    backend: LedgerBackend
    if place.startswith(_URL):
        backend = open_ledger(_with_ledger(config, place), command=True)
    else:
        backend = Ledger(Path(place), destination=config.destination.ledger_name)
    backend.start()
    try:
        yield backend
    finally:
        closed = backend.close(_CLOSE_S)
    if not closed:
        raise S3SpoolError(f"{backend.name}: could not be written; the same command goes on from there")


def _with_ledger(config: Config, url: str) -> Config:
    return replace(config, state=replace(config.state, ledger=url))
