"""The command line's side of the counter: asks the daemon, or the ledger where none runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3spool import __version__
from s3spool.config import loader as configuration
from s3spool.config.loader import Config
from s3spool.control import views as view
from s3spool.control.protocol import NoDaemonError, ask, json_line
from s3spool.errors import AlreadyRunningError, S3SpoolError
from s3spool.ledger.database import DirectoryLock, holder
from s3spool.ledger.files import become_owner, open_regular
from s3spool.ledger.protocol import Known
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Pause, from_text, to_text
from s3spool.logs.text import shown

if TYPE_CHECKING:
    from s3spool.ledger.store import Ledger

DURABLE_S = 10.0
BATCH_BYTES = 128 * 1024  # of paths in one request; the daemon refuses twice as much
_STATE_BASE, _RUNTIME_BASE = Path("/var/lib"), Path("/run")  # where systemd makes StateDirectory= and RuntimeDirectory=


class Desk:
    """One method a command. All raise S3SpoolError, whose text is one line for a person."""

    def __init__(self, config: Config) -> None:
        self._config = as_the_unit_has_it(config)
        self._socket = self._config.service.control_socket
        self._state_directory = self._config.state.directory
        become_owner(self._state_directory)

    def doubt(self) -> str:
        """Why the answers may not be about what was meant; empty where a configuration, a daemon or a ledger is there.

        Without this, whoever forgets --config is told that all is well with nothing.
        """
        config = self._config
        if config.source or config.destination.bucket:
            return ""
        if any(map(os.path.exists, (self._socket, config.state.ledger_path))):
            return ""
        demo = self._state_directory / "demo" / "s3spool.toml"
        places = ", ".join(map(str, configuration.places(os.environ)))
        advice = (
            f"for the demo add --config {shlex.quote(str(demo))}" if os.path.exists(demo) else "name one with --config"
        )
        return f"no configuration is there ({places}), and no daemon has run here: {advice}"

    def status(self) -> dict[str, Any]:
        """The same shape with and without a daemon; what only a daemon can know is None or 0 without one."""
        try:
            return _dict(ask(self._socket, "status"))
        except NoDaemonError:
            return self._status_of_the_ledger()

    def rows(self, state: str | None) -> Iterator[dict[str, Any]]:
        """All files, or those in one state, as they come.

        Page by page, so that a slow reader of these rows holds neither a connection nor the ledger. A file whose
        state changes meanwhile may come twice.
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
        with self._reader() as reader:
            if reader is not None:
                yield from view.rows(reader, state)

    def why(self, file: str) -> dict[str, Any]:
        path = self._path(file)
        try:
            return _dict(ask(self._socket, "why", path=to_text(path)))
        except NoDaemonError:
            return self._why_of_the_ledger(path)

    def key(self, file: str) -> str:
        """The key in the bucket. Of a file that is gone only a receipt tells it where the prefix holds its mtime."""
        from s3spool.s3.keys import Prefix, key_of  # noqa: PLC0415 - start-up time

        path = self._path(file)
        where = self._where_of(path)
        prefix = where["prefix"]
        mtime_s = 0.0
        if "%" in prefix:
            answer = self.why(file)
            identity = self._identity_of(path)
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

    def retry(self, files: Sequence[str], *, everything: bool) -> int:
        """Make these, or all, waiting and parked files due now; returns how many there are."""
        paths = None if everything else [self._path(file) for file in files]
        try:
            if paths is None:
                return int(ask(self._socket, "retry", all=True)["released"])
            return sum(int(ask(self._socket, "retry", paths=batch)["released"]) for batch in _batches(paths))
        except NoDaemonError:
            with self._reader() as reader:
                released = view.releasable(reader, paths)
            if released:
                self._write(lambda ledger: ledger.release(paths))
            return released

    def forget(self, file: str) -> bool:
        """Whether there was anything to forget."""
        return self.forget_path(self._path(file))

    def ledger(self) -> contextlib.AbstractContextManager[Reader | None]:
        """The ledger itself; None where no daemon has ever run with this state directory. Raises S3SpoolError."""
        return self._reader()

    def is_there(self, path: str) -> bool:
        """Whether the folder has a file of this relative path. Raises S3SpoolError."""
        return self._identity_of(path) is not None

    def forget_path(self, path: str) -> bool:
        """As `forget`, by the relative path."""
        try:
            return bool(ask(self._socket, "forget", path=to_text(path))["forgotten"])
        except NoDaemonError:
            with self._reader() as reader:
                known = reader is not None and path in reader.known([path])
            if known:
                self._write(lambda ledger: ledger.forget(path))
            return known

    def pause(self, reason: str) -> None:
        """Take no new file until `resume`, across restarts."""
        try:
            ask(self._socket, "pause", reason=reason)
        except NoDaemonError:
            self._write(lambda ledger: ledger.record_pause(Pause(time.time(), reason)))

    def resume(self) -> bool:
        """Whether there was a pause by hand."""
        try:
            return bool(ask(self._socket, "resume")["resumed"])
        except NoDaemonError:
            with self._reader() as reader:
                paused = reader is not None and reader.pause() is not None
            if paused:
                self._write(lambda ledger: ledger.record_pause(None))
            return paused

    def rescan(self) -> dict[str, Any]:
        """Raises NoDaemonError; the answer says which scan to wait for, and of which daemon (`progress`)."""
        return _dict(ask(self._socket, "rescan"))

    def progress(self) -> dict[str, Any]:
        """Raises NoDaemonError."""
        return _dict(ask(self._socket, "progress"))

    # Names

    @cached_property
    def _folder(self) -> str:
        """The watched folder, resolved: a running daemon may have been told another one on its command line."""
        try:
            answer = ask(self._socket, "where")
        except NoDaemonError:
            return os.path.realpath(self._config.watch.directory)
        return "/" + str(from_text(answer["below_root"]))

    def _where_of(self, path: str) -> dict[str, str]:
        try:
            return _dict(ask(self._socket, "where", path=to_text(path)))
        except NoDaemonError:
            from s3spool.control.rules import prefix_of  # noqa: PLC0415 - start-up time

            return prefix_of(self._config, path)

    def _path(self, file: str) -> str:
        return path_in(self._folder, file)

    # Without a daemon

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Reader | None]:
        """None where no daemon has ever run with this state directory."""
        path = self._config.state.ledger_path
        try:
            os.close(open_regular(path, os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except PermissionError as exc:
            raise S3SpoolError(
                f"{path}: permission denied; no daemon answers, and the ledger is its user's alone: use sudo"
            ) from exc
        except OSError as exc:
            raise S3SpoolError(f"{path}: cannot be opened: {exc.strerror}") from exc
        with Reader(path) as reader:
            yield reader if reader.made() else None

    def _write(self, change: Callable[[Ledger], None]) -> None:
        """Only while no daemon uses the ledger, and none can start meanwhile."""
        from s3spool.ledger.store import Ledger  # noqa: PLC0415 - start-up time

        try:
            lock = DirectoryLock(self._state_directory)
        except AlreadyRunningError as exc:
            pid = holder(self._state_directory) or "unknown"
            raise AlreadyRunningError(
                f"{self._state_directory}: in use by the daemon with pid {pid}, which does not answer at"
                f" {self._socket}; it may be starting: try again, or see its log"
            ) from exc
        try:
            ledger = Ledger(self._config.state.ledger_path, destination=self._config.destination.ledger_name)
            ledger.start()
            change(ledger)
            if not ledger.close(DURABLE_S):
                raise S3SpoolError(f"{ledger.path}: could not be written; is the disk full?")
        finally:
            lock.release()

    def _why_of_the_ledger(self, path: str) -> dict[str, Any]:
        from s3spool.folder.filters import FileFilter  # noqa: PLC0415 - start-up time

        with self._reader() as reader:
            known = reader.known([path]).get(path) if reader else None
            destination = reader.destination(self._config.destination.ledger_name) if reader else None
        watch = self._config.watch
        from s3spool.control.rules import with_rule  # noqa: PLC0415 - the same

        answer = view.why(
            path,
            known,
            self._identity_of(path, known),
            live=None,
            left_out=view.left_out(path, FileFilter(watch.include, watch.exclude), recursive=watch.recursive),
            destination=destination,
        )
        return with_rule(answer, self._config, path)

    def _identity_of(self, path: str, known: Known | None = None) -> Any:
        from s3spool.folder.folder import Folder  # noqa: PLC0415 - start-up time

        root = Path(self._folder)
        try:
            folder = Folder(root)
        except OSError as exc:
            raise S3SpoolError(f"{shown(str(root))}: the watched folder cannot be opened: {exc.strerror}") from exc
        try:
            return view.identity_of(folder, path, known)
        finally:
            folder.close()

    def _status_of_the_ledger(self) -> dict[str, Any]:
        counts, size, last_error, oldest_s = {"uploaded": 0, "waiting": 0, "parked": 0}, 0, None, 0.0
        pause = None
        with self._reader() as reader:
            if reader is not None:
                counts, size, last = reader.counts(), reader.uploaded_bytes(), reader.last_error()
                pause = reader.pause()
                oldest_s = view.age_s(reader.backlog()[2])
                last_error = last and f"{shown(last.path)}: {last.error_code}: {last.error}"
        destination = self._config.destination
        pid = holder(self._state_directory)
        return {
            "version": __version__,
            "pid": pid,
            "started": None,
            # Who has the directory but no socket yet is on its way.
            "state": "stopped" if pid is None else "starting",
            "destination": {
                "bucket": destination.bucket,
                "prefix": destination.prefix,
                "endpoint": destination.endpoint_url,
                "state": "paused" if pause else None,
                "since": view.iso(pause.since) if pause else None,
                "reason": pause.words if pause else None,
                "by_hand": pause is not None,
            },
            "watch": {
                "directory": self._folder,
                "backend": "",
                "overflows": 0,
                "files_missed": 0,
                "too_deep": [],
            },
            "files": {"settling": 0, "queued": 0, "uploading": 0}
            | {name: counts[name] for name in ("waiting", "parked", "uploaded")}
            | {"vanished": 0, "excluded": 0},
            "bytes": {"uploaded": size, "in_flight": 0},
            "rate": {"files_per_s": 0.0, "bytes_per_s": 0.0},
            "large_files": [],
            "hanging": [],
            "oldest_unsent_s": oldest_s,
            "last_error": last_error,
        }


def as_the_unit_has_it(config: Config, environ: Mapping[str, str] = os.environ) -> Config:
    """The system's configuration, asked about from a person's shell: state and socket are where the unit has them.

    /etc/s3spool/s3spool.toml belongs to s3spool.service, /etc/s3spool/NAME.toml to s3spool@NAME.service. What the
    file or a variable sets stays as it is.
    """
    source, system = config.source, configuration.SYSTEM_FILE
    if source is None or source.parent != system.parent:
        return config
    below = "s3spool" if source.name == system.name else f"s3spool-{source.stem}"
    units = {"STATE_DIRECTORY": str(_STATE_BASE / below), "RUNTIME_DIRECTORY": str(_RUNTIME_BASE / below)}
    missing = {variable: place for variable, place in units.items() if not environ.get(variable)}
    return configuration.load(source, environ={**environ, **missing}) if missing else config


def path_in(folder: str, file: str) -> str:
    """The path relative to `folder` (resolved) of what a person calls `file`. Raises S3SpoolError.

    Relative to the current directory if that leads into the folder, else relative to the folder; or as the JSON of
    `list` spells it. Links on the way are followed, but never the last one: it is the name that counts.
    """
    bases = [folder]
    with contextlib.suppress(FileNotFoundError):  # the current directory is gone
        bases.insert(0, str(Path.cwd()))
    for base in bases:
        if path := _below(folder, os.path.join(base, file)):
            return path
    if file.startswith("//"):
        with contextlib.suppress(UnicodeEncodeError):
            path = from_text(file)
            if to_text(path) == file:
                return path_in(folder, path)
    raise S3SpoolError(f"{shown(file)}: names no file inside the watched folder, {shown(folder)}")


def _below(folder: str, path: str) -> str | None:
    directory, name = os.path.split(path.rstrip("/"))
    if name in {"", ".", ".."}:
        return None
    whole = os.path.join(os.path.realpath(directory), name)
    start = folder.rstrip("/") + "/"
    return whole.removeprefix(start) if whole.startswith(start) else None


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
