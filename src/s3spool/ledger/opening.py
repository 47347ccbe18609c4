"""The ledger that a configuration names: the SQLite file, or a database that several daemons share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from s3spool.config.schema import Config
from s3spool.errors import ConfigError
from s3spool.ledger.protocol import LedgerBackend, LedgerReader

if TYPE_CHECKING:
    from types import ModuleType


def open_ledger(
    config: Config, *, on_damage: Callable[[], None] = lambda: None, command: bool = False
) -> LedgerBackend:
    """Open or create it; its thread does not run yet. Raises ConfigError, LedgerError.

    `command`: it is opened for one change, not for a daemon that takes files.
    """
    state, destination = config.state, config.destination.ledger_name
    if not state.ledger:
        from s3spool.ledger.store import Ledger  # noqa: PLC0415 - start-up time of commands

        return Ledger(state.ledger_path, destination=destination, on_damage=on_damage)
    node = None if command else state.node or os.uname().nodename
    ledger: LedgerBackend = _postgresql().backend.PostgresLedger(
        state.ledger, destination=destination, node=node, device=_device(config), lease_s=state.lease_s
    )
    return ledger


def open_shared_reader(config: Config) -> LedgerReader | None:
    """For the queries of a command; None if no daemon has used this database yet. Raises ConfigError, LedgerError."""
    reader: LedgerReader | None = _postgresql().reader.opened(
        config.state.ledger, config.destination.ledger_name, device=_device(config)
    )
    return reader


def _postgresql() -> ModuleType:
    try:
        from s3spool.ledger import postgresql  # noqa: PLC0415 - an extra
        from s3spool.ledger.postgresql import backend, reader  # noqa: F401, PLC0415 - the same
    except ImportError as exc:
        problem = f"needs the extra postgresql ({exc}): pip install 's3spool[postgresql]'"
        raise ConfigError("state.ledger", None, problem) from exc
    return postgresql


def _device(config: Config) -> int:
    """The number that this host gives to the folder's file system; 0 where there is no folder."""
    try:
        return os.stat(config.watch.directory).st_dev
    except OSError:
        return 0
