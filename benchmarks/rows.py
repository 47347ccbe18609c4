"""What is sent where: one row of the table each."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import sinks

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from benchmarks.sinks import Sink

MIB = 2**20
GIB = 2**30
NEAREST = ("s3spool", "s5cmd", "go")
RULES = "".join(f'[[rule]]\nmatch = ["*.{number}"]\nprefix = "{number}/"\n' for number in range(9))
RULES += '[[rule]]\nmatch = ["*.bin"]\nstorage_class = "STANDARD_IA"\ntags = {{ source = "bench" }}\n'.format()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A set of files and the sink they go to."""

    name: str
    title: str
    sink: Callable[[Path], AbstractContextManager[Sink]]
    files: int = 20_000
    size_bytes: int = 4096
    raw_possible: bool = False  # the bare-sockets bound speaks neither TLS nor SigV4
    in_flight: int = sinks.IN_FLIGHT
    backlog: bool = False  # the files lie in the daemon's folder before it starts
    settings: str = ""  # more of the daemon's configuration, as TOML
    scraped: bool = False  # the daemon answers HTTP, and its metrics are read each second
    clients: tuple[str, ...] = ()  # those that differ in this row; empty: all

    @property
    def large(self) -> bool:
        """Counted in bytes rather than in files."""
        return self.size_bytes >= MIB

    def measures(self, client: str) -> bool:
        return client in self.clients if self.clients else client != "raw" or self.raw_possible

    def scaled(self, *, files: int, size_bytes: int) -> Row:
        """The same with the person's own numbers, where the row is about many small files."""
        return self if self.large else replace(self, files=files, size_bytes=size_bytes)


ROWS: tuple[Row, ...] = (
    Row(
        name="small-30ms",
        title="S3 answers after 30 ms",
        sink=partial(sinks.nginx, answer_s=0.03),
        raw_possible=True,
    ),
    Row(name="small-0ms", title="S3 answers at once", sink=partial(sinks.nginx, answer_s=0), raw_possible=True),
    Row(
        name="backlog-30ms",
        title="S3 answers after 30 ms; the files wait at the start",
        sink=partial(sinks.nginx, answer_s=0.03),
        backlog=True,
        clients=NEAREST,
    ),
    Row(
        name="backlog-0ms",
        title="S3 answers at once; the files wait at the start",
        sink=partial(sinks.nginx, answer_s=0),
        backlog=True,
        clients=NEAREST,
    ),
    Row(
        name="workers-400",
        title="400 workers, after 30 ms",
        sink=partial(sinks.nginx, answer_s=0.03, in_flight=400),
        in_flight=400,
        clients=(*NEAREST, "raw"),
        raw_possible=True,
    ),
    Row(
        name="http",
        title="at once; the daemon's metrics are read each second",
        sink=partial(sinks.nginx, answer_s=0),
        scraped=True,
        clients=("s3spool",),
    ),
    Row(
        name="rules",
        title="at once; the last of ten rules gives each file its headers and tags",
        sink=partial(sinks.nginx, answer_s=0),
        settings=RULES,
        clients=("s3spool",),
    ),
    Row(name="small-tls", title="TLS, after 30 ms", sink=partial(sinks.nginx, answer_s=0.03, tls=True)),
    Row(name="small-seaweed", title="SeaweedFS", sink=sinks.seaweedfs),
    Row(name="large-1x4gib", title="1 x 4 GiB", sink=sinks.blackhole, files=1, size_bytes=4 * GIB),
    Row(name="large-16x256mib", title="16 x 256 MiB", sink=sinks.blackhole, files=16, size_bytes=256 * MIB),
)


def prepare(directory: Path, *, files: int, size_bytes: int) -> None:
    """Fill a new directory with files of noise; large ones repeat one MiB of it."""
    directory.mkdir()
    for number in range(files):
        with (directory / f"file-{number:06}.bin").open("wb") as file:
            noise = os.urandom(min(size_bytes, MIB))
            for _ in range(size_bytes // len(noise)):
                file.write(noise)
            file.write(noise[: size_bytes % len(noise)])
