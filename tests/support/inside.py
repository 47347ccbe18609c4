"""A whole daemon in the test's own process, to look at from within. It must not be sent anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s3spool.config import loader as configuration
from s3spool.daemon.supervisor import Daemon
from s3spool.ledger.store import Ledger


def inside(home: Path, request: pytest.FixtureRequest) -> Daemon:
    """Built, but not run; the signals are the test's again when it ends."""
    for name in ("spool", "state"):
        (home / name).mkdir()
    config = configuration.load(
        environ={"HOME": str(home)},
        overrides={
            "watch.directory": str(home / "spool"),
            "state.directory": str(home / "state"),
            "destination.bucket": "nowhere",
            "destination.endpoint_url": "http://127.0.0.1:9",
            "upload.workers": "7",
        },
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        request.addfinalizer(partial(signal.signal, number, signal.getsignal(number)))
    request.addfinalizer(partial(os.sched_setaffinity, 0, os.sched_getaffinity(0)))  # it gathers its threads on one CPU
    writer: Any = SimpleNamespace(
        close=lambda _: None
    )  # the lines are nobody's, or of whoever has configured structlog
    daemon = Daemon(config, writer)
    assert isinstance(daemon.components.ledger, Ledger)
    request.addfinalizer(daemon.components.ledger._db.close)  # without its thread nobody closes it
    return daemon


def run_until_ready(daemon: Daemon, look: Callable[[], None]) -> int:
    """Run it, look around when it says READY, and let it drain; its exit code."""

    def ready() -> None:
        try:
            look()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    daemon._notifier.ready = ready  # type: ignore[method-assign]
    return daemon.run()
