"""Where each demo keeps its state: one directory per watched folder, below $XDG_STATE_HOME/s3spool/demo."""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from s3spool.config.loader import SOCKET_PATH_BYTES
from s3spool.config.schema import Config
from s3spool.ledger.database import holder

PROFILE = "demo"
_DIGITS = 8  # of a hash: a socket's path must stay short


class Home(NamedTuple):
    """The files of one demo."""

    directory: Path

    @classmethod
    def of(cls, folder: Path, environ: Mapping[str, str] = os.environ) -> Home:
        digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
        return cls(_base(environ) / digest[:_DIGITS])

    @property
    def config(self) -> Path:
        return self.directory / "s3spool.toml"

    @property
    def curl(self) -> Path:
        return self.directory / "curl"

    @property
    def aws(self) -> Path:
        return self.directory / "aws"

    @property
    def socket(self) -> Path:
        """The control socket, whose path must be short."""
        path = self.directory / "control.sock"
        short = Path(tempfile.gettempdir()) / f"s3spool-demo-{os.geteuid()}-{self.directory.name}.sock"
        return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES else short

    @property
    def running(self) -> bool:
        return holder(self.directory) is not None

    def watched(self) -> Path | None:
        """The folder of this demo; None if its configuration cannot be read."""
        folder = self._setting("watch", "directory")
        return Path(folder) if folder else None

    def port(self) -> int:
        """The port of the last run; 0: there was none."""
        with suppress(ValueError):
            return urlsplit(self._setting("destination", "endpoint_url")).port or 0
        return 0

    def _setting(self, section: str, key: str) -> str:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(tomllib.loads(self.config.read_text(encoding="utf-8"))[section][key])
        return ""


def homes_here(environ: Mapping[str, str] = os.environ) -> Iterator[Home]:
    """Demos that watch the current directory or a folder in it."""
    with suppress(OSError):
        here = Path.cwd()
        for config in sorted(_base(environ).glob("*/s3spool.toml")):
            home = Home(config.parent)
            folder = home.watched()
            if folder is not None and here in {folder, folder.parent}:
                yield home


def running_demo(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The configuration of a running demo of this directory."""
    return next((home.config for home in homes_here(environ) if home.running), None)


def use_keys(config: Config) -> None:
    """Point boto3 at the keys of the demo, if this is a demo's configuration: never at the person's own.

    Changes the environment of this process.
    """
    if config.destination.profile != PROFILE or config.source is None:
        return
    home = Home(config.source.parent)
    if home.directory.parent == _base(os.environ) and config.destination.endpoint_url.startswith("http://127.0.0.1:"):
        isolate(home)


def isolate(home: Home) -> None:
    """Keep settings that lead to the person's own bucket, keys or proxy out of this process."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "S3SPOOL_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(
        AWS_CONFIG_FILE=str(home.aws), AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_EC2_METADATA_DISABLED="true"
    )


def _base(environ: Mapping[str, str]) -> Path:
    base = Path(environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        base = Path(environ.get("HOME") or "~").expanduser().absolute() / ".local/state"
    return base / "s3spool" / "demo"
