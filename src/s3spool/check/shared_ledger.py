"""Whether the database that several daemons share answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from s3spool.check.result import CheckResult, error, ok
from s3spool.config.schema import Config
from s3spool.errors import S3SpoolError
from s3spool.ledger.opening import open_shared_reader


def shared_ledger(config: Config) -> Iterator[CheckResult]:
    try:
        with open_shared_reader(config) or contextlib.nullcontext() as reader:
            if reader is None:
                yield ok("ledger", "the database of state.ledger answers; the first daemon makes the tables")
            else:
                yield ok("ledger", f"the database of state.ledger answers: {reader.counts()['uploaded']} receipts")
    except S3SpoolError as exc:
        yield error("ledger", str(exc))
