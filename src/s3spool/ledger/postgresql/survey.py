"""What `s3spool check` asks the database of a shared ledger; nothing is changed."""

from __future__ import annotations

import time
from typing import NamedTuple

from s3spool.ledger.postgresql.connection import VERSION, Connection, connect, number, speaking_of
from s3spool.ledger.postgresql.reader import PostgresReader
from s3spool.ledger.rows import Node

_TABLES = ["destinations", "files", "multiparts", "nodes", "parts", "pause", "s3spool_schema"]
_MISSING = (
    "SELECT privilege || ' on ' || name FROM unnest(%s::text[]) AS name,"
    " unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS privilege WHERE NOT has_table_privilege(name, privilege)"
    " UNION ALL SELECT 'USAGE on changes' WHERE NOT has_sequence_privilege('changes', 'USAGE')"
)
_MAY_CREATE = "SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)::int"


class Survey(NamedTuple):
    """The state of the database."""

    server: str  # its version
    version: int  # of the schema; 0: no daemon has made it yet
    missing: list[str]  # rights that a daemon needs
    ahead_s: float  # by how much its clock is ahead of this host's
    nodes: list[Node]  # that live, of all destinations


def survey(url: str) -> Survey:
    """Raises LedgerError."""
    with speaking_of(url), connect(url) as connection:
        server, told = connection.info.parameter_status("server_version") or "", time.time()
        clock = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        ahead_s = float(str(clock[0])) - (told + time.time()) / 2 if clock else 0.0
        version, missing, nodes = 0, list[str](), list[Node]()
        if number(connection, "SELECT (to_regclass('s3spool_schema') IS NOT NULL)::int"):
            version = number(connection, "SELECT version FROM s3spool_schema")
        if version == VERSION:
            missing = [str(row[0]) for row in connection.execute(_MISSING, (_TABLES,))]
        if version == VERSION and not missing:
            with PostgresReader(url, 0, device=0) as reader:
                nodes = reader.nodes()
        if version < VERSION:
            missing = _rights_to_make(connection)
    return Survey(server, version, missing, ahead_s, nodes)


def _rights_to_make(connection: Connection) -> list[str]:
    return [] if number(connection, _MAY_CREATE) else ["CREATE on the schema"]
