"""A ledger in PostgreSQL, as docs/howto.md sets it up for the packaged service."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest

from support.postgres import Postgres
from support.web import free_port
from system.building import REPOSITORY
from system.conftest import BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faulty import FaultyS3
    from system.machine import Machine
    from system.service import Service

HOWTO = (REPOSITORY / "docs/howto.md").read_text(encoding="utf-8")
PASSWORD: LiteralString = "correct-horse-battery"  # noqa: S105 - of a server that ends with the test
PGPASS = "/etc/s3spool/pgpass"


@pytest.fixture
def database() -> Iterator[tuple[Postgres, int]]:
    """On the host's loopback, which is the machine's too: it lets nobody in without the password."""
    port = free_port()
    with Postgres(port=port) as server:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE s3spool PASSWORD '{PASSWORD}'")
            connection.execute("CREATE DATABASE s3spool")
        yield server, port


def test_a_ledger_in_a_file_loads_nothing_of_postgresql(service: Service, faulty: FaultyS3, machine: Machine) -> None:
    """The package has the extra for all; only those who use it pay for it in memory."""
    service.configure(faulty.endpoint_url, BUCKET)
    service.start()
    service.drop("one")
    service.wait_event("file.uploaded", path="one")

    mapped = machine.path(f"/proc/{service.pid}/maps").read_text()

    assert "sqlite" in mapped
    assert "psycopg" not in mapped


def test_the_packaged_service_shares_a_ledger(
    service: Service, faulty: FaultyS3, machine: Machine, database: tuple[Postgres, int]
) -> None:
    """Under the unit's hardening, with a password that comes from a systemd credential and is seen nowhere."""
    server, port = database
    url = f"postgresql://s3spool@127.0.0.1:{port}/s3spool"
    service.configure(faulty.endpoint_url, BUCKET, state={"ledger": url})
    assert "no password supplied" in machine.run("s3spool list", check=False).stderr
    machine.write(PGPASS, f"127.0.0.1:{port}:s3spool:s3spool:{PASSWORD}\n", mode=0o600)
    (credential,) = re.findall(r"`(LoadCredential=pgpass:.*?)`", HOWTO)
    service.drop_in(f"[Service]\n{credential}\n")

    service.start()
    service.drop("shared")
    service.wait_event("file.uploaded", path="shared")

    machine.run("s3spool wait --timeout 60")
    with psycopg.connect(server.url("s3spool")) as connection:
        assert connection.execute("SELECT path FROM files WHERE uploaded_at IS NOT NULL").fetchall() == [("shared",)]
    assert not machine.path("/var/lib/s3spool/ledger.sqlite3").exists()
    assert service.status()["files"]["uploaded"] == 1
    checked = machine.run("s3spool service check", check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "schema version" in checked.stdout
    service.systemctl("stop")
    assert "shared" in machine.out(f"PGPASSFILE={PGPASS} s3spool list --state uploaded")
    assert PASSWORD not in machine.out("journalctl --all -o export")
    machine.path(PGPASS).unlink()
