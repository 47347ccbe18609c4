"""Answers from the ledger and the folder, for the time when no daemon runs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from s3spool import __version__
from s3spool.config.schema import Config
from s3spool.control import views
from s3spool.control.status import Bytes, Destination, Files, Status, Watch
from s3spool.errors import AlreadyRunningError, S3SpoolError
from s3spool.folder.filters import FileFilter
from s3spool.folder.folder import Folder
from s3spool.folder.rules import FileRules
from s3spool.ledger.database import DirectoryLock, holder
from s3spool.ledger.files import open_regular
from s3spool.ledger.opening import open_ledger, open_shared_reader
from s3spool.ledger.protocol import LedgerBackend
from s3spool.ledger.queries import LOOKUP_ROWS, LedgerReader
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Pause
from s3spool.logs.text import shown

DURABLE_S = 10.0


class OfflineAnswers:
    """One method per command. All raise S3SpoolError."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._directory = config.state.directory
        self._folder = os.path.realpath(config.watch.directory)

    def status(self) -> Status:
        pid = holder(self._directory)
        destination = self._config.destination
        status = Status(
            version=__version__,
            pid=pid,
            state="stopped" if pid is None else "starting",  # the lock comes before the socket
            destination=Destination(
                bucket=destination.bucket, prefix=destination.prefix, endpoint=destination.endpoint_url
            ),
            watch=Watch(directory=self._folder),
        )
        with self.reader() as reader:
            if reader is not None:
                totals, last, pause = reader.totals(), reader.last_error(), reader.pause()
                status.files = Files(uploaded=totals.uploaded, waiting=totals.waiting, parked=totals.parked)
                status.bytes = Bytes(uploaded=totals.uploaded_bytes, unsent=totals.unsent_bytes)
                status.oldest_unsent_s = views.age_s(totals.oldest_ns)
                status.nodes = views.living(reader, destination.ledger_name)
                status.last_error = last and f"{shown(last.path)}: {last.error_code}: {last.error}"
                if pause:
                    paused = status.destination
                    paused.state, paused.since, paused.reason = "paused", views.iso(pause.since), pause.words
                    paused.by_hand = True
        return status

    def rows(self, state: str | None) -> Iterator[dict[str, Any]]:
        with self.reader() as reader:
            if reader is not None:
                yield from views.rows(reader, state)

    def why(self, path: str) -> dict[str, Any]:
        return next(answer for _, answer in self.explain([path]))

    def explain(self, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The answer of `why` for each of these paths."""
        watch = self._config.watch
        names, rules = FileFilter(watch.include, watch.exclude), FileRules(self._config)
        with self.reader() as reader, self._open(self._folder) as folder:
            destination = reader.destination(self._config.destination.ledger_name) if reader else None
            rest = iter(paths)
            while some := [*islice(rest, LOOKUP_ROWS)]:
                nodes = reader.holders(some) if reader else {}
                known = reader.known(some) if reader else {}
                for path in some:
                    answer = views.why(
                        path,
                        known.get(path),
                        views.identity_of(folder, path, known.get(path)),
                        live=views.on_node(nodes[path]) if path in nodes else None,
                        left_out=views.left_out(path, names, recursive=watch.recursive),
                        destination=destination,
                    )
                    yield path, views.with_rule(answer, rules, path)

    def retry(self, paths: Sequence[str] | None) -> int:
        """Make these, or all, files of the retry list due; return how many there are."""
        with self.reader() as reader:
            released = views.releasable(reader, paths)
        if released:
            self._write(lambda ledger: ledger.release(paths))
        return released

    def forget(self, path: str) -> dict[str, bool]:
        with self.reader() as reader:
            known = reader is not None and path in reader.known([path])
        if known:
            self._write(lambda ledger: ledger.forget(path))
        return {"forgotten": known}

    def pause(self, reason: str) -> None:
        self._write(lambda ledger: ledger.record_pause(Pause(time.time(), reason)))

    def resume(self) -> dict[str, bool]:
        with self.reader() as reader:
            paused = reader is not None and reader.pause() is not None
        if paused:
            self._write(lambda ledger: ledger.record_pause(None))
        return {"resumed": paused}

    def identity_of(self, path: str, root: str) -> Any:
        """The identity of the file in `root` now; None: no such file."""
        with self._open(root) as folder:
            return views.identity_of(folder, path)

    @contextlib.contextmanager
    def _open(self, root: str) -> Iterator[Folder]:
        try:
            folder = Folder(Path(root))
        except OSError as exc:
            raise S3SpoolError(f"{shown(root)}: the watched folder cannot be opened: {exc.strerror}") from exc
        try:
            yield folder
        finally:
            folder.close()

    @contextlib.contextmanager
    def reader(self) -> Iterator[LedgerReader | None]:
        """None if no daemon has ever run with this state directory, or with this shared ledger."""
        if self._config.state.ledger:
            with open_shared_reader(self._config) or contextlib.nullcontext() as shared:
                yield shared
            return
        path = self._config.state.ledger_path
        try:
            os.close(open_regular(path, os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except PermissionError as exc:
            raise S3SpoolError(
                f"{path}: permission denied; no daemon answers, and only its user may read the ledger: use sudo"
            ) from exc
        except OSError as exc:
            raise S3SpoolError(f"{path}: cannot be opened: {exc.strerror}") from exc
        with Reader(path) as reader:
            yield reader if reader.made() else None

    def _write(self, change: Callable[[LedgerBackend], None]) -> None:
        """Change the ledger; the SQLite file under the directory lock, so that no daemon uses it meanwhile."""
        if self._config.state.ledger:
            self._change(change)
            return
        try:
            lock = DirectoryLock(self._directory)
        except AlreadyRunningError as exc:
            pid = holder(self._directory) or "unknown"
            raise AlreadyRunningError(
                f"{self._directory}: in use by the daemon with pid {pid}, which does not answer at"
                f" {self._config.service.control_socket}; it may be starting: try again, or see its log"
            ) from exc
        try:
            self._change(change)
        finally:
            lock.release()

    def _change(self, change: Callable[[LedgerBackend], None]) -> None:
        ledger = open_ledger(self._config, command=True)
        ledger.start()
        change(ledger)
        if not ledger.close(DURABLE_S):
            raise S3SpoolError(f"{ledger.name}: could not be written; is the disk full?")
