"""`s3spool check` of a ledger that several daemons share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from msgspec.structs import replace

from s3spool.check.shared_ledger import check_shared_ledger, compare
from s3spool.config.loader import load
from s3spool.config.schema import Config, DestinationConfig
from s3spool.folder.filters import FileFilter
from s3spool.folder.marker import FolderMarker, markers
from s3spool.ledger.postgresql.backend import PostgresLedger
from s3spool.ledger.rows import Node, NodeLoad
from support.house import House
from support.postgres import Postgres
from support.waiting import eventually


def a_node(name: str, marker: str, destination: str = "here", owner: int = 1) -> Node:
    return Node(owner, destination, name, f"host-{name}", "1.0", 0.0, 10.0, NodeLoad(marker=marker))


@pytest.fixture
def config(tmp_path: Path, postgres: Postgres) -> Config:
    (tmp_path / "spool").mkdir()
    file = tmp_path / "s3spool.toml"
    file.write_text(
        f'[watch]\ndirectory = "{tmp_path}/spool"\n[destination]\nbucket = "bucket"\n'
        f'[state]\ndirectory = "{tmp_path}/state"\nledger = "{postgres.database()}"\n'
    )
    return load(file, environ={"HOME": str(tmp_path)})


def results(config: Config) -> list[tuple[str, str, str]]:
    return [(result.level, result.subject, result.text) for result in check_shared_ledger(config)]


def named(config: Config, name: str) -> Iterator[str]:
    return (text for level, _, text in results(config) if level == name)


def test_a_database_without_tables_is_fine(config: Config) -> None:
    """The first daemon makes them; a look makes nothing."""
    (ledger, nodes) = results(config)

    assert ledger[:2] == ("ok", "ledger")
    assert "schema: none yet; the first daemon makes it; its clock is 0." in ledger[2]
    assert nodes == ("ok", "nodes", "none runs")


def test_a_database_that_does_not_answer_is_an_error(config: Config) -> None:
    """One line; the password is no part of it."""
    away = replace(config, state=replace(config.state, ledger="postgresql://user@/x?host=/nowhere"))

    ((level, subject, text),) = results(away)
    assert (level, subject) == ("error", "ledger")
    assert text.startswith("postgresql:///nowhere/x: ")


def test_missing_rights_are_named(config: Config) -> None:
    """Of the tables if they are there, else of the schema."""
    url = config.state.ledger
    role = f"reader_{url.partition('test_')[2][:8]}"
    poor = replace(config, state=replace(config.state, ledger=url.replace("s3spool@", f"{role}@")))
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN".encode())
        db.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        assert "the user lacks CREATE on the schema; grant it" in next(named(poor, "error"))

        PostgresLedger(url, destination="here", node=None)._session.disconnect()
        db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}".encode())
        db.execute(f"REVOKE DELETE ON nodes FROM {role}".encode())
        assert "the user lacks DELETE on nodes, USAGE on changes; grant it" in next(named(poor, "error"))


def test_a_newer_schema_is_an_error(config: Config) -> None:
    """It says which version this program knows."""
    PostgresLedger(config.state.ledger, destination="here", node=None)._session.disconnect()
    with psycopg.connect(config.state.ledger, autocommit=True) as db:
        db.execute("UPDATE s3spool_schema SET version = 99")

    assert "schema version 99, this program knows" in next(named(config, "error"))


def test_a_daemon_on_this_folder_is_found(config: Config, tmp_path: Path) -> None:
    """It writes its marker at the start and reports it with its lease."""
    (tmp_path / "house").mkdir()
    house = House(tmp_path / "house", root=config.watch.directory, ledger=config.state.ledger)
    here = replace(config, destination=DestinationConfig(bucket="memory"))
    house.start(house.ledger)
    try:
        house.ledger.lease.renewed = 0.0  # type: ignore[attr-defined] # of PostgreSQL
        eventually(lambda: any(": this folder," in text for text in named(here, "ok")), timeout_s=30)
        assert not [*named(here, "error"), *named(here, "warning")]

        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        other = replace(here, watch=replace(here.watch, directory=elsewhere))
        assert "is not in this folder; mount the same folder on both hosts" in next(named(other, "error"))
    finally:
        house.close()
    house.components.marker.remove()
    assert markers(config.watch.directory) == {}


def test_markers_are_compared_by_their_content() -> None:
    """An old file of the same name proves nothing; a name twice, a strange bucket, and a strange marker are told."""
    here = [a_node("a", "1"), a_node("b", "2")]
    both = {".s3spool-node.a": "1", ".s3spool-node.b": "2"}

    assert [str(result.text) for result in compare(here, both, "here")] == ["a, b: this folder, bucket and prefix"]
    levels = [
        [result.level for result in compare(nodes, seen, "here")]
        for nodes, seen in (
            (here, both | {".s3spool-node.b": "old"}),
            ([a_node("a", "")], {}),
            ([a_node("a", "1"), a_node("b", "2", "there")], both),
            ([a_node("a", "1"), a_node("b", "2", "there")], {".s3spool-node.a": "1"}),
            ([a_node("a", "1"), a_node("a", "2", owner=2)], {".s3spool-node.a": "2"}),
            ([a_node("a", "1")], both),
        )
    ]
    assert levels == [
        ["error", "ok"],
        ["warning"],
        ["error", "ok"],
        ["ok"],
        ["warning", "ok"],
        ["warning", "ok"],
    ]


def test_a_marker_is_no_file_to_send(tmp_path: Path) -> None:
    """Whatever watch.exclude says; names with a slash, or a link in the way, lead nowhere else."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".s3spool-node.a%2Fb").symlink_to(victim)

    marker = FolderMarker(tmp_path, "a/b")

    assert markers(tmp_path) == {".s3spool-node.a%2Fb": marker.content}
    assert victim.read_text() == "precious"
    assert not FileFilter(["*"], []).accepts_file(".s3spool-node.a%2Fb")
    FolderMarker(tmp_path, "a/b")
    marker.remove()
    assert len(markers(tmp_path)) == 1  # that of the second daemon
    assert FolderMarker(tmp_path / "missing", "a").content == ""
    assert FolderMarker(tmp_path, "").content == ""
