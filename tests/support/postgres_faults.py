"""PostgreSQL servers on a disk that a test can fill, and a replica that can lack the last commits."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from support import disks
from support.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def small_disk(server: Postgres, size: str) -> Iterator[Path]:
    """A directory for a tablespace; the server is stopped before the disk goes."""
    with disks.mounted(server.directory / "small", size) as place:
        tables = place / "tables"
        tables.mkdir()
        server.give(tables)
        try:
            yield tables
        finally:
            if server.alive():
                server.stop("immediate")


class SmallWal(Postgres):
    """Its write-ahead log is on a disk of its own, `wal`."""

    def __init__(self) -> None:
        super().__init__()
        self.wal = self.directory / "wal"
        self.initdb = (f"--waldir={self.wal}/pg_wal", "--wal-segsize=1")

    def __enter__(self) -> Self:
        self.wal.mkdir()
        disks.mount(self.wal, "96m")
        self.give(self.wal)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        if self.alive():
            self.stop("immediate")
        disks.unmount(self.wal)
        super().__exit__()


class Replica(Postgres):
    """Receives what `primary` commits, asynchronously, over TCP at `source_port`; `promote` makes it take writes."""

    def __init__(self, primary: Postgres, source_port: int) -> None:
        super().__init__()
        self._primary = primary
        self._source_port = source_port

    def __enter__(self) -> Self:
        self._run(
            "pg_basebackup", f"--host={self._primary.directory}", "--username=s3spool", "--checkpoint=fast", "--no-sync"
        )
        data = self.directory / "data"
        with (data / "postgresql.auto.conf").open("a") as config:
            config.write(f"primary_conninfo = 'host=127.0.0.1 port={self._source_port} user=s3spool sslmode=disable'\n")
        (data / "standby.signal").touch()
        self.start()
        return self

    def promote(self) -> None:
        self._run("pg_ctl", "--wait", "--silent", "promote")
