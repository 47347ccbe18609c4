"""What the commands say of the daemons that share a ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from s3spool.cli.commands import cli
from s3spool.ledger.postgresql.backend import PostgresLedger
from support.postgres import Postgres


def typed(directory: Path, *words: str) -> str:
    """What the command prints, with this directory's configuration; it succeeds."""
    done = CliRunner().invoke(cli, ["--config", str(directory / "s3spool.toml"), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    (tmp_path / "s3spool.toml").write_text(
        f'[watch]\ndirectory = "{tmp_path}/spool"\n[destination]\nbucket = "bucket"\nendpoint_url = "http://here"\n'
        f'[state]\ndirectory = "{tmp_path}/state"\n'
    )
    return tmp_path


@pytest.fixture
def node(place: Path, postgres: Postgres) -> Iterator[PostgresLedger]:
    """A living node that has claimed the file `a`."""
    url = postgres.database()
    with (place / "s3spool.toml").open("a") as config:
        config.write(f'ledger = "{url}"\n')
    node = PostgresLedger(url, destination="http://here|bucket|", node="there")
    node.start()
    node.claims.take(["a"])
    yield node
    if node.alive():
        node.close(30)


def test_a_ledger_of_one_daemon_has_no_nodes(place: Path) -> None:
    """One line says so; as JSON it is an empty list."""
    assert typed(place, "nodes") == "the ledger is a SQLite file, which one daemon uses alone (state.ledger)\n"
    assert json.loads(typed(place, "nodes", "--json")) == []


def test_nodes_lists_the_living(place: Path, node: PostgresLedger) -> None:
    """A line per node, with its lease; none when it has left."""
    header, line = typed(place, "nodes").splitlines()
    assert header.split()[0] == "NODE"
    assert line.split()[:3] == ["there", "0", "0"]
    (found,) = json.loads(typed(place, "nodes", "--json"))
    assert found["name"] == "there"
    assert 0 < found["lease_left_s"] <= 15
    assert "node           there: 0 in flight, 0 files/minute\n" in typed(place, "status")

    node.close(30)
    assert typed(place, "nodes") == "no daemon of this destination runs\n"


def test_list_and_why_name_the_node_that_has_claimed_a_file(place: Path, node: PostgresLedger) -> None:
    """A file has one row, whatever the ledger knows of it from before."""
    (place / "spool/a").write_text("content")

    assert typed(place, "why", str(place / "spool/a")) == "a: queued\nclaimed by there, which sends it\n"
    assert typed(place, "list").split() == ["queued", "a", "on", "there"]
    assert typed(place, "list", "--state", "queued").split() == ["queued", "a", "on", "there"]
    assert typed(place, "list", "--state", "uploading") == ""
    assert typed(place, "list", "--state", "waiting") == ""

    node.close(30)
    assert typed(place, "list") == ""
