"""`s3spool demo`: the daemon with an S3 server of its own. It needs no account, and uses no settings of the person."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
import msgspec

from s3spool.config import loader as configuration
from s3spool.demo.home import PROFILE, Home, isolate
from s3spool.demo.seaweed import Seaweed, free_port
from s3spool.demo.seaweed_keys import write_private
from s3spool.errors import AlreadyRunningError, S3SpoolError
from s3spool.ledger.database import DirectoryLock, holder
from s3spool.ledger.files import become_owner
from s3spool.logs.text import printable

BUCKET = "demo"
ACCESS_KEY = "demo"
FIRST_PORT = 8333


def run_demo(directory: Path, port: int | None) -> int:
    """Blocks until Ctrl-C or SIGTERM; returns the exit code. Raises S3SpoolError.

    `port` 0 takes any free one, None the one of the last time. Changes the environment of this process.
    """
    stop = _EarlyStop()
    directory = directory.absolute()
    home = Home.of(directory)
    try:
        for place in (home.directory, home.directory / "state"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        become_owner(home.directory)  # root may run the demo in another user's home
        directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(home)
    except OSError as exc:
        raise S3SpoolError(f"{exc.filename}: the demo cannot use it: {exc.strerror}") from exc
    try:
        isolate(home)
        if not port:
            port = home.port() or (FIRST_PORT if port is None else 0)
        return _run(home, directory, port, stop)
    except KeyboardInterrupt:
        return 0
    finally:
        lock.release()


def _run(home: Home, directory: Path, port: int, stop: _EarlyStop) -> int:
    secret = secrets.token_hex(16)
    data = home.directory / "seaweedfs"
    with Seaweed(data, port=port and free_port(port), access_key=ACCESS_KEY, secret_key=secret) as seaweed:
        seaweed.create_bucket(BUCKET)
        write_private(home.config, _config_text(home, directory, seaweed.endpoint_url))
        write_private(home.curl, _curl_text(secret))
        write_private(home.aws, _aws_text(secret, seaweed.endpoint_url))
        config = configuration.load(home.config)
        stop.check()
        click.echo(_welcome(home, directory, seaweed.endpoint_url))

        from s3spool.daemon.main import run  # noqa: PLC0415 - the welcome need not wait for it

        stop.check()
        return run(config)


class _EarlyStop:
    """Until the daemon handles signals, SIGTERM ends the demo like Ctrl-C, and the server is stopped.

    Remembered as well: Python drops an exception that comes while a finalizer runs.
    """

    def __init__(self) -> None:
        self._came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def check(self) -> None:
        if self._came:
            raise KeyboardInterrupt

    def _interrupt(self, _number: int, _frame: FrameType | None) -> NoReturn:
        self._came = True
        raise KeyboardInterrupt


def _lock(home: Home) -> DirectoryLock:
    try:
        return DirectoryLock(home.directory)
    except AlreadyRunningError:
        pid = holder(home.directory)
        raise AlreadyRunningError(
            f"a demo runs already (pid {pid}, {home.directory}): stop it with Ctrl-C there, or with: kill {pid}"
        ) from None


def _config_text(home: Home, directory: Path, endpoint_url: str) -> str:
    return f"""\
# Each `s3spool demo` of this folder writes this file. The keys of profile "{PROFILE}" are in the file `aws` beside it.
[watch]
directory = {_quoted(directory)}
[destination]
bucket = "{BUCKET}"
endpoint_url = "{endpoint_url}"
profile = "{PROFILE}"
addressing_style = "path"
[state]
directory = {_quoted(home.directory / "state")}
[service]
control_socket = {_quoted(home.socket)}
"""


def _curl_text(secret: str) -> str:
    return f"""\
# The demo's key, for: curl -K THIS-FILE URL
user = "{ACCESS_KEY}:{secret}"
aws-sigv4 = "aws:amz:us-east-1:s3"
header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"
noproxy = "127.0.0.1"
"""


def _aws_text(secret: str, endpoint_url: str) -> str:
    return f"""\
# The demo's key, for: AWS_CONFIG_FILE=THIS-FILE aws --profile {PROFILE} ...
[profile {PROFILE}]
aws_access_key_id = {ACCESS_KEY}
aws_secret_access_key = {secret}
region = us-east-1
endpoint_url = {endpoint_url}
s3 =
    addressing_style = path
"""


def _welcome(home: Home, directory: Path, endpoint_url: str) -> str:
    here = Path.cwd()
    folder = directory.relative_to(here) if directory.is_relative_to(here) else directory
    shown = printable(shlex.quote(f"{folder}/"))
    name = "README.md" if Path("README.md").is_file() else "hello.txt"
    sample = (
        f"cp {name} {shown}" if name == "README.md" else f"echo hello > {printable(shlex.quote(f'{folder}/{name}'))}"
    )
    found = here in {directory, directory.parent} and not any(map(os.path.isfile, configuration.places(os.environ)))
    command = _command() if found else f"{_command()} --config {_short(home.config)}"
    return f"""\
What is dropped into the folder {shown} goes to the bucket {BUCKET} of an S3 server of your own, at {endpoint_url}

  Try it in another terminal, in this directory:
    {sample}
    {command} list --all
    {command} status      also: why FILE, wait, check, --help
  What is in the bucket, with curl or the AWS CLI:
    curl -K {_short(home.curl)} {endpoint_url}/{BUCKET}/
    curl -K {_short(home.curl)} {endpoint_url}/{BUCKET}/{name}
    AWS_CONFIG_FILE={_short(home.aws)} aws --profile {PROFILE} s3 ls --recursive s3://{BUCKET}
  Ctrl-C stops it. Objects and receipts stay for the next time, until: rm -r {_short(home.directory)}
"""


def _command() -> str:
    """The command that started this program, so that a person can type it."""
    script = Path(sys.argv[0])
    if script.name != "s3spool":
        return f"{shlex.quote(sys.executable)} -m s3spool"
    found = shutil.which("s3spool")
    if found and os.path.realpath(found) == os.path.realpath(script):
        return "s3spool"
    return shlex.quote(os.path.relpath(script) if script.absolute().is_relative_to(Path.cwd()) else str(script))


def _short(path: Path) -> str:
    """As a shell reads it, with ~ where that is shorter."""
    home = Path("~").expanduser()
    return f"~/{shlex.quote(str(path.relative_to(home)))}" if path.is_relative_to(home) else shlex.quote(str(path))


def _quoted(path: Path) -> str:
    try:
        # JSON's escapes are TOML's, but for DEL.
        return msgspec.json.encode(str(path)).decode().replace("\x7f", "\\u007f")
    except UnicodeEncodeError as exc:
        raise S3SpoolError(f"{printable(str(path))}: is not UTF-8; choose another directory for the demo") from exc
