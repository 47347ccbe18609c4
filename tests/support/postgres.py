"""A private PostgreSQL cluster from the distribution's package, as an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Self

import psycopg
import pytest

from support.users import becoming

SETTINGS = ("max_connections=60", "shared_buffers=16MB", "fsync=off")


def programs() -> Path:
    """Where initdb and pg_ctl are. Skips where they are not, or fails where the run promises them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        reason = "takes PostgreSQL (apt install postgresql)"
        pytest.fail(reason) if os.environ.get("CLUSTER_TESTS") == "required" else pytest.skip(reason)
    return found[-1].parent


class Postgres:
    """One server; `database` makes an empty database and returns its URL.

    Everybody is let in at its Unix socket; with `port` it listens on loopback too, where a password is needed.
    """

    initdb: tuple[str, ...] = ()  #: more options of initdb

    def __init__(self, *, port: int = 0) -> None:
        self._bin = programs()
        self._port = port
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a busy disk stalls it for minutes
        self.directory = Path(tempfile.mkdtemp(prefix="s3spool-pg-", dir=memory))  # a socket's path is short
        self.socket = self.directory / f".s.PGSQL.{port or 5432}"
        self._become: list[str] = []
        if os.geteuid() == 0:  # initdb refuses root
            self._become = becoming(pwd.getpwnam("nobody").pw_uid)
        self.give(self.directory)

    def __enter__(self) -> Self:
        trust = ("--auth-local=trust", "--auth-host=scram-sha-256")
        options = ("--no-sync", "--username=s3spool", *trust, "--encoding=UTF8", "--locale=C")
        self._run("initdb", *options, *self.initdb)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.alive():  # a test that failed may have stopped it
            self.stop()
        shutil.rmtree(self.directory)

    def start(self) -> None:
        listen = [f"port={self._port}", "listen_addresses='127.0.0.1'"] if self._port else ["listen_addresses=''"]
        settings = [*SETTINGS, *listen, f"unix_socket_directories='{self.directory}'"]
        options = " ".join(f"-c {setting}" for setting in settings)
        self._run("pg_ctl", "--wait", "--silent", f"--log={self.directory}/log", f"--options={options}", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "--wait", "--silent", f"--mode={mode}", "stop")

    def alive(self) -> bool:
        return (self.directory / "data/postmaster.pid").exists()

    def kill(self) -> None:
        """`kill -9`; its children end when they notice it."""
        pid = self.directory / "data/postmaster.pid"
        os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)
        pid.unlink()

    def give(self, directory: Path) -> None:
        """The server's user owns this directory from now on."""
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(directory, user.pw_uid, user.pw_gid)

    def url(self, database: str) -> str:
        return f"postgresql://s3spool@/{database}?host={self.directory}" + (f"&port={self._port}" if self._port else "")

    def database(self, tablespace: Path | None = None) -> str:
        """`tablespace`: a directory of the server's user, for all tables."""
        name = f"test_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if tablespace:
                connection.execute(f"CREATE TABLESPACE {name} LOCATION '{tablespace}'".encode())
            connection.execute(f"CREATE DATABASE {name} {f'TABLESPACE {name}' if tablespace else ''}".encode())
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._become, str(self._bin / program), f"--pgdata={self.directory}/data", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")
