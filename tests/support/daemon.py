"""The real `s3spool run`, as its users start it: a process of its own, read through what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from s3spool.control.protocol import ask
from s3spool.demo.seaweed import Seaweed
from s3spool.ledger.reader import Reader
from support.faulty import FaultyS3
from support.waiting import eventually

_S3SPOOL: tuple[str, ...] = (sys.executable, "-m", "s3spool")

Event = dict[str, Any]
Make = Callable[..., "Daemon"]


class Daemon:
    """One daemon under `home`: its watched folder, state, config file and log.

    `start()` may follow `kill()` or `stop()`: the folder, the ledger and the log go on, and `events()` holds
    all runs. As a context manager it starts the daemon, always ends it, and on failure prints its log's end.
    """

    def __init__(
        self,
        home: Path,
        server: FaultyS3 | Seaweed | None = None,
        /,
        *,
        bucket: str = "",
        environment: Mapping[str, str] | None = None,
        **sections: Mapping[str, Any] | list[dict[str, Any]],
    ) -> None:
        """`server` gives the environment, and the bucket where it has one of its own.

        `sections` are the config file's tables (`rule`: a list); the defaults only make tests quick and apart.
        """
        self.home = home
        self.folder = home / "spool"
        self.state_directory = home / "state"
        self.config_path = home / "s3spool.toml"
        self.log_path = home / "daemon.log"
        self.socket_path = home / "control.sock"
        self.config: dict[str, Any] = {
            "watch": {"directory": str(self.folder), "settle_s": 0},
            "destination": {"bucket": bucket or getattr(server, "bucket", ""), "addressing_style": "path"},
            "retry": {"initial_s": 0.1, "max_s": 1},
            "state": {"directory": str(self.state_directory)},
            "service": {"control_socket": str(self.socket_path)},
            "log": {"format": "json"},
        }
        for name, options in sections.items():
            if isinstance(options, list):
                self.config[name] = options
            else:
                self.config.setdefault(name, {}).update(options)
        self.program = _S3SPOOL  #: what `start` puts before "run"
        self.environment = _without_settings(os.environ) | (server.environment() if server else {})
        self.environment |= environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._runs_before_bytes = 0
        self._log_lock = threading.Lock()
        self._read_bytes = 0
        self._events: list[tuple[int, Event]] = []
        for directory in (self.folder, self.state_directory):
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def runs(self) -> bool:
        """Started, and its end not noticed yet."""
        return self._process is not None

    def stands_still(self) -> bool:
        """Whether SIGSTOP has stopped it."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def start(self) -> Self:
        assert self._process is None, "it runs already"
        self.config_path.write_text(to_toml(self.config))
        with self.log_path.open("ab") as log:
            log.write(b"\n")  # a killed run may have left half a line
            self._runs_before_bytes = log.tell()
            self._process = subprocess.Popen(
                [*self.program, "run", "--config", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.home,
            )
        return self

    def start_ready(self) -> Self:
        self.start().wait_ready()
        return self

    def start_scanned(self) -> Self:
        """What comes from now on, the first scan does not find."""
        self.start().wait_event("scan.finished")
        return self

    def drop(self, name: str, content: bytes = b"content") -> Path:
        """Put a file into the folder as careful writers do: complete under another name, then renamed."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{uuid.uuid4().hex}.part")
        hidden.write_bytes(content)
        hidden.rename(path)
        return path

    def drop_all(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.drop(name, content)

    def drop_hole(self, name: str, size: int) -> Path:
        """A sparse file, which takes no room on the disk."""
        hidden = self.folder / f".{name}"
        with hidden.open("wb") as hole:
            hole.truncate(size)
        return hidden.rename(self.folder / name)

    def events(self, name: str | None = None, *, this_run: bool = False, **fields: object) -> list[Event]:
        """Logged so far, oldest first; `fields` must be equal."""
        skip_bytes = self._runs_before_bytes if this_run else 0
        wanted = fields if name is None else {"event": name, **fields}
        return [event for event in self._parsed(skip_bytes) if wanted.items() <= event.items()]

    def wait_event(self, name: str, timeout_s: float = 60.0, **fields: object) -> Event:
        """The first such event of this run, waiting for it; fails at once when the daemon has ended."""

        def first() -> Event | None:
            ended = not self.alive  # looked at first: what it wrote last still counts
            if found := self.events(name, this_run=True, **fields):
                return found[0]
            assert not ended, f"the daemon ended without {name} {fields}:\n{self.log_tail()}"
            return None

        found = eventually(first, timeout_s=timeout_s, message=f"{name} {fields}")
        assert found is not None
        return found

    def wait_ready(self, timeout_s: float = 60.0) -> Event:
        return self.wait_event("daemon.ready", timeout_s)

    def wait_uploaded(self, count: int, timeout_s: float = 60.0) -> None:
        """Until `count` files were uploaded in all runs together."""
        eventually(
            lambda: len(self.events("file.uploaded")) >= count,
            timeout_s=timeout_s,
            message=f"{count} file.uploaded",
        )

    def scans(self) -> int:
        """How many scans this run has finished; those that found nothing have no line in the log."""
        return int(ask(self.socket_path, "progress")["scan"])

    def ledger(self) -> Reader:
        return Reader(self.state_directory / "ledger.sqlite3")

    def reader(self) -> Reader | None:
        """The same; None until a start has made it."""
        if not (self.state_directory / "ledger.sqlite3").exists():
            return None
        reader = self.ledger()
        if reader.made():
            return reader
        reader.close()
        return None

    def receipts(self) -> int:
        """How many files are uploaded and recorded."""
        with self.ledger() as reader:
            return reader.counts()["uploaded"]

    def process_status(self, field: str) -> int:
        """A number of /proc/PID/status: Threads, VmRSS (KiB), VmHWM (KiB)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))

    def mark(self) -> None:
        """What was logged so far belongs to an earlier test: `wait_event` and `this_run` begin here."""
        self._runs_before_bytes = self.log_path.stat().st_size

    def signal(self, number: signal.Signals) -> None:
        self._running().send_signal(number)

    def kill(self) -> None:
        """`kill -9`: no drain, no flush."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        """The exit code, waiting for it."""
        code = self._running().wait(timeout_s)
        self._process = None
        return code

    def ends_within(self, duration_s: float) -> int | None:
        """Wait so long at most; the exit code when it has ended by itself (then `start` may follow)."""
        try:
            return self.wait_exit(duration_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, the drain, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit(timeout_s)

    def cli(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run `s3spool COMMAND ...` with this daemon's config file; the caller checks the exit code."""
        command, *rest = arguments
        return subprocess.run(
            [*_S3SPOOL, command, "--config", str(self.config_path), *rest],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self.environment,
            cwd=self.home,
        )

    def log_tail(self, lines: int = 40) -> str:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
        if error is not None:
            print(f"--- the end of {self.log_path}\n{self.log_tail()}\n---", file=sys.stderr)  # noqa: T201 - for pytest

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon was not started"
        return self._process

    def _parsed(self, skip_bytes: int) -> list[Event]:
        """The events behind `skip_bytes`; each call reads what is new since the last one."""
        with self._log_lock:
            if self.log_path.exists():
                with self.log_path.open("rb") as log:
                    log.seek(self._read_bytes)
                    for line in log:
                        if not line.endswith(b"\n"):  # still being written
                            break
                        # Not every line is an event: a killed run's half line, a traceback.
                        with contextlib.suppress(ValueError):
                            if line.startswith(b"{"):
                                self._events.append((self._read_bytes, json.loads(line)))
                        self._read_bytes += len(line)
            return [event for at, event in self._events if at >= skip_bytes]


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables, or lists of tables, of strings, numbers, booleans, lists and one level of tables below."""
    lines: list[str] = []
    for name, found in tables.items():
        for table in found if isinstance(found, list) else [found]:
            lines.append(f"[[{name}]]" if isinstance(found, list) else f"[{name}]")
            lines += [f"{_quoted(key)} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"[{', '.join(_value(element) for element in value)}]"
        case dict():
            return f"{{ {', '.join(f'{_quoted(key)} = {_value(inner)}' for key, inner in value.items())} }}"
        case _:
            return _quoted(str(value))


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what would point the daemon at the person's own bucket, credentials or supervisor."""
    foreign = ("S3SPOOL_", "AWS_", "NOTIFY_SOCKET", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "JOURNAL_STREAM")
    apart = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    kept = {key: value for key, value in environment.items() if not key.startswith(foreign)}
    return kept | apart | {"AWS_EC2_METADATA_DISABLED": "true"}
