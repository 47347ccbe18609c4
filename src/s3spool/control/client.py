"""The command line's end of the control socket: asks the daemon, or the ledger when no daemon runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from s3spool.config.schema import Config
from s3spool.control.names import path_in
from s3spool.control.offline import OfflineAnswers
from s3spool.control.protocol import NoDaemonError, ask, json_line
from s3spool.control.status import Status
from s3spool.control.views import prefix_of
from s3spool.errors import S3SpoolError
from s3spool.ledger.files import become_owner
from s3spool.ledger.queries import LedgerReader
from s3spool.ledger.rows import from_text, to_text
from s3spool.logs.text import shown
from s3spool.s3.keys import Prefix, key_of

BATCH_BYTES = 128 * 1024  # of paths in one request; the daemon refuses twice as much


class Retried(NamedTuple):
    """The answer to `retry`."""

    released: int
    probing: bool  # the destination was paused, and is tried now


class ControlClient:
    """One method per command. All raise S3SpoolError, whose text is one line for a person."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._socket = config.service.control_socket
        self._offline = OfflineAnswers(config)
        become_owner(config.state.directory)

    def nothing_here(self) -> bool:
        """Whether there is no configuration, no daemon and no ledger: the answers would be about nothing."""
        config = self.config
        if config.source or config.destination.bucket:
            return False
        return not any(map(os.path.exists, (self._socket, config.state.ledger_path)))

    def answers(self) -> bool:
        """Whether a daemon answers at the control socket."""
        try:
            ask(self._socket, "where")
        except S3SpoolError:
            return False
        return True

    def status(self) -> Status:
        answer = self._ask("status", self._offline.status)
        try:
            return msgspec.convert(answer, Status)
        except msgspec.ValidationError as exc:
            raise S3SpoolError(f"{self._socket}: the daemon does not answer as it should: {exc}") from exc

    def rows(self, state: str | None) -> Iterator[dict[str, Any]]:
        """The rows of `list` in this state ("unsent": the first five; None: all), page by page.

        A slow reader of these rows holds neither a connection nor the ledger. A file whose state changes meanwhile may
        come twice.
        """
        after: Any = None
        try:
            while True:
                page = _dict(ask(self._socket, "list", state=state, after=after))
                yield from page["rows"]
                after = page["next"]
                if after is None:
                    return
        except NoDaemonError as exc:
            if after is not None:
                raise S3SpoolError(f"{self._socket}: the daemon went away in the middle of its answer") from exc
        yield from self._offline.rows(state)

    def why(self, file: str) -> dict[str, Any]:
        path = self._path(file)
        return _dict(self._ask("why", lambda: self._offline.why(path), path=to_text(path)))

    def key(self, file: str) -> str:
        """The key in the bucket. If the prefix holds the mtime of a file that is gone, only a receipt tells it."""
        path = self._path(file)
        where = self._where_of(path)
        prefix = where["prefix"]
        mtime_s = 0.0
        if "%" in prefix:
            answer = self.why(file)
            identity = self._offline.identity_of(path, self._folder)
            if identity is not None:
                mtime_s = identity.mtime_ns / 1e9
            elif "key" in answer:
                return str(answer["key"])
            else:
                raise S3SpoolError(
                    f"{shown(path)}: no such file, and its key depends on the file's time:"
                    f" {where['rule'] or 'destination'}.prefix = {shown(prefix)}"
                )
        return key_of(path, Prefix(prefix).of(mtime_s))

    def rule(self, file: str) -> str:
        """The rule that FILE falls under: `rule 2 (*.html)`, or ""."""
        return self._where_of(self._path(file))["rule"]

    def retry(self, files: Sequence[str], *, everything: bool) -> Retried:
        """Make these, or all, waiting and parked files due now; a paused destination is tried at once."""
        paths = None if everything else [self._path(file) for file in files]
        requests: list[dict[str, Any]] = [{"all": True}] if paths is None else [{"paths": it} for it in _batches(paths)]
        try:
            answers = [_dict(ask(self._socket, "retry", **request)) for request in requests]
        except NoDaemonError:
            return Retried(self._offline.retry(paths), probing=False)
        return Retried(
            sum(int(answer["released"]) for answer in answers), any(answer.get("probing") for answer in answers)
        )

    def forget(self, file: str) -> bool:
        """Whether there was anything to forget."""
        return self.forget_path(self._path(file))

    def forget_path(self, path: str) -> bool:
        """As `forget`, by the relative path."""
        answer = self._ask("forget", lambda: self._offline.forget(path), path=to_text(path))
        return bool(answer["forgotten"])

    def ledger(self) -> AbstractContextManager[LedgerReader | None]:
        """The ledger itself; None if no daemon has ever run with this state directory."""
        return self._offline.reader()

    def is_there(self, path: str) -> bool:
        """Whether the folder has a file of this relative path."""
        return self._offline.identity_of(path, self._folder) is not None

    def pause(self, reason: str) -> None:
        """Take no new file until `resume`, across restarts."""
        self._ask("pause", lambda: self._offline.pause(reason), reason=reason)

    def resume(self) -> bool:
        """Whether there was a pause by hand."""
        return bool(self._ask("resume", self._offline.resume)["resumed"])

    def top(self) -> dict[str, Any]:
        """Raises NoDaemonError."""
        return _dict(ask(self._socket, "top"))

    def rescan(self) -> dict[str, Any]:
        """The number of the scan and the pid of the daemon, for `progress`. Raises NoDaemonError."""
        return _dict(ask(self._socket, "rescan"))

    def progress(self) -> dict[str, Any]:
        """Raises NoDaemonError."""
        return _dict(ask(self._socket, "progress"))

    @cached_property
    def _folder(self) -> str:
        """The watched folder, resolved. The command line of a running daemon may have set another one."""
        below_root = to_text(os.path.realpath(self.config.watch.directory)[1:])
        return "/" + str(from_text(self._ask("where", lambda: {"below_root": below_root})["below_root"]))

    def _where_of(self, path: str) -> dict[str, str]:
        return _dict(self._ask("where", lambda: prefix_of(self.config, path), path=to_text(path)))

    def _ask(self, command: str, offline: Callable[[], Any], **arguments: Any) -> Any:
        """The daemon's answer, or that of `offline` if no daemon runs."""
        try:
            return ask(self._socket, command, **arguments)
        except NoDaemonError:
            return offline()

    def _path(self, file: str) -> str:
        return path_in(self._folder, file)


def _batches(paths: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in map(to_text, paths):
        size += len(json_line(text))
        if batch and size > BATCH_BYTES:
            yield batch
            batch, size = [], len(json_line(text))
        batch.append(text)
    yield batch


def _dict(answer: Any) -> dict[str, Any]:
    return dict(answer)
