"""The ledger that a configuration names: the SQLite file, or a database that several daemons share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from s3spool.config.schema import Config
from s3spool.errors import ConfigError
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LedgerReader


def open_ledger(config: Config, *, command: bool = False) -> LedgerBackend:
    """Open or create it; its thread does not run yet. Raises ConfigError, LedgerError.

    `command`: it is opened for one change, not for a daemon that takes files.
    """
    state, destination = config.state, config.destination.ledger_name
    if not state.ledger:
        from s3spool.ledger.store import Ledger  # noqa: PLC0415 - start-up time of commands

        return Ledger(state.ledger_path, destination=destination)
    with _extra():
        from s3spool.ledger.postgresql.backend import PostgresLedger  # noqa: PLC0415 - an extra
    node = None if command else state.node_name
    return PostgresLedger(
        state.ledger, destination=destination, node=node, device=_device(config), lease_s=state.lease_s
    )


def open_shared_reader(config: Config) -> LedgerReader | None:
    """For the queries of a command; None if no daemon has used this database yet. Raises ConfigError, LedgerError."""
    with _extra():
        from s3spool.ledger.postgresql.reader import opened  # noqa: PLC0415 - the same
    return opened(config.state.ledger, config.destination.ledger_name, device=_device(config))


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ImportError as exc:
        problem = f"needs the extra postgresql ({exc}): pip install 's3spool[postgresql]'"
        raise ConfigError("state.ledger", None, problem) from exc


def _device(config: Config) -> int:
    """The number that this host gives to the folder's file system; 0 where there is no folder."""
    try:
        return os.stat(config.watch.directory).st_dev
    except OSError:
        return 0
