"""`s3spool verify`: is what the receipts say in the bucket?"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import click
import structlog

from s3spool.config.loader import SYSTEM_FILE, require_bucket
from s3spool.config.schema import Config
from s3spool.control.client import ControlClient
from s3spool.control.protocol import json_line
from s3spool.daemon.components import store_of
from s3spool.demo.home import use_keys
from s3spool.ledger.queries import LedgerReader
from s3spool.ledger.rows import Receipt, to_text
from s3spool.logs.text import printable, printable_json, shown
from s3spool.s3.verification import Difference, Verifier
from s3spool.systemd.units import service_of

THREADS = 32
BATCH = 1000  # receipts, as many as a listing has keys
AHEAD = 8  # batches under way
_CREDENTIALS = "AWS_SHARED_CREDENTIALS_FILE"


class Verification:
    """One run. Only the main thread counts; the pool asks S3."""

    def __init__(
        self, reader: LedgerReader | None, verifier: Verifier, destination: int | None, sample: int | None
    ) -> None:
        self._reader = reader
        self._verifier = verifier
        self._destination = destination
        self._sample = sample
        self.checked = 0
        self.other = 0  #: receipts of another destination, where files went before
        self.requests = 0

    def differences(self, advance: Callable[[int], object]) -> Iterator[Difference]:
        """Raises S3SpoolError."""
        with ThreadPoolExecutor(THREADS, thread_name_prefix="verify") as pool:
            pending: deque[tuple[int, Future[tuple[list[Receipt], int]]]] = deque()
            for batch in self._batches():
                pending.append((len(batch), pool.submit(self._verifier.unverified, batch)))
                if len(pending) >= AHEAD:
                    yield from self._finish(pool, *pending.popleft(), advance)
            while pending:
                yield from self._finish(pool, *pending.popleft(), advance)

    def _finish(
        self,
        pool: ThreadPoolExecutor,
        count: int,
        batch: Future[tuple[list[Receipt], int]],
        advance: Callable[[int], object],
    ) -> Iterator[Difference]:
        unverified, requests = batch.result()
        self.requests += requests + len(unverified)
        found = [difference for difference in pool.map(self._verifier.look, unverified) if difference is not None]
        # A file that was sent again meanwhile has another receipt, and was confirmed just now.
        paths = [difference.receipt.path for difference in found]
        known = self._reader.known(paths) if self._reader and paths else {}
        for difference in found:
            path = difference.receipt.path
            if path in known and known[path].receipt == difference.receipt:
                yield difference
        self.checked += count
        advance(count)

    def _batches(self) -> Iterator[Sequence[Receipt]]:
        for page in self._pages():
            batch = [receipt for receipt in page if receipt.destination == self._destination]
            self.other += len(page) - len(batch)
            if batch:
                yield batch

    def _pages(self) -> Iterator[Sequence[Receipt]]:
        if self._reader is None:
            return
        receipts = self._reader.receipts()
        if self._sample is not None:
            receipts = iter(sorted(self._reader.random_receipts(self._sample), key=lambda receipt: receipt.key))
        while page := [*islice(receipts, BATCH)]:
            yield page


def verify(client: ControlClient, *, sample: int | None, repair: bool, as_json: bool) -> int:
    """Print the differences as they come; 1 where there are any. Raises S3SpoolError."""
    config = client.config
    require_bucket(config)
    use_keys(config)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    _use_the_units_credentials(config)
    store, began, repaired, differing = store_of(config), time.monotonic(), 0, 0
    with client.ledger() as reader:
        destination = reader.destination(config.destination.ledger_name) if reader else None
        write = _JsonOutput() if as_json else _TextOutput()
        run = Verification(reader, Verifier(store), destination, sample)
        total = min(reader.counts()["uploaded"], sample or sys.maxsize) if reader else 0
        with _progress(total) as advance:
            for difference in run.differences(advance):
                differing += 1
                path = difference.receipt.path
                again = repair and client.is_there(path) and client.forget_path(path)
                repaired += again
                write.difference(difference, again=again)
    write.end(
        {
            "checked": run.checked,
            "different": differing,
            "repaired": repaired,
            "other_destination": run.other,
            "requests": run.requests,
            "duration_s": round(time.monotonic() - began, 1),
        }
    )
    return 1 if differing else 0


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="verifying", file=sys.stderr) as bar:
        yield bar.update


class _TextOutput:
    """One line per difference, and a sentence."""

    def difference(self, difference: Difference, *, again: bool) -> None:
        receipt = difference.receipt
        then = "; the file is sent again" if again else ""
        line = f"{difference.kind:<8} {shown(receipt.path)}  {receipt.key}: {difference.text}{then}"
        click.echo(printable(line))

    def end(self, counts: dict[str, Any]) -> None:
        if not (counts["checked"] or counts["other_destination"]):
            click.echo("there are no receipts")
            return
        text = f"{counts['checked']:,} receipts in {counts['duration_s']} s with {counts['requests']:,} requests: "
        text += f"{counts['different']:,} differ" if counts["different"] else "all are in the bucket"
        text += f"; {counts['repaired']:,} files are sent again" if counts["repaired"] else ""
        text += f"; {counts['other_destination']:,} of another destination" if counts["other_destination"] else ""
        click.echo(text)


class _JsonOutput:
    """One object on one line, written as it comes."""

    def __init__(self) -> None:
        self._before = '{"differences":['

    def difference(self, difference: Difference, *, again: bool) -> None:
        receipt = difference.receipt
        row = {
            "path": to_text(receipt.path),
            "key": receipt.key,
            "kind": difference.kind,
            "text": difference.text,
            "repaired": again,
        }
        self._write(row)
        self._before = ","

    def end(self, counts: dict[str, Any]) -> None:
        before = "" if self._before == "," else self._before
        click.echo(f"{before}],{printable_json(json_line(counts).decode()).strip()[1:]}")

    def _write(self, row: dict[str, Any]) -> None:
        click.echo(self._before + printable_json(json_line(row).decode()).strip(), nl=False)


def _use_the_units_credentials(config: Config) -> None:
    """Root asks about the system's service: the keys are where its unit takes them from."""
    source = config.source
    if source is None or source.parent != SYSTEM_FILE.parent or _CREDENTIALS in os.environ:
        return
    credentials = service_of("" if source.name == SYSTEM_FILE.name else source.stem).credentials
    if os.access(credentials, os.R_OK, effective_ids=True):
        os.environ[_CREDENTIALS] = str(credentials)
