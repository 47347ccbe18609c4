"""Several nodes on one ledger: who has a file, what a late node may still do, and who may use the schema."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from s3spool.errors import LedgerError
from s3spool.ledger.postgresql import backend, session
from s3spool.ledger.postgresql.backend import PostgresLedger
from s3spool.ledger.postgresql.connection import VERSION, connect
from s3spool.ledger.postgresql.groups import CROWD
from s3spool.ledger.protocol import Listener
from s3spool.ledger.queries import Known
from s3spool.ledger.rows import NO_LOAD, NodeLoad, Pause
from support.database_proxy import DatabaseProxy
from support.failing import fails
from support.leaks import live_threads
from support.lines import Lines
from support.postgres import Postgres
from support.rows import SOME, a_receipt, a_retry
from support.waiting import eventually
from support.web import free_port

NewNode = Callable[..., PostgresLedger]


@pytest.fixture
def new_node(postgres: Postgres) -> Iterator[NewNode]:
    """Nodes of one database; a node with `start=False` is as good as stopped by SIGSTOP."""
    url = postgres.database()
    nodes: list[PostgresLedger] = []

    def node(name: str, *, start: bool = True, lease_s: float = 60.0) -> PostgresLedger:
        ledger = PostgresLedger(url, destination="here", node=name, device=SOME.dev, lease_s=lease_s)
        nodes.append(ledger)
        if start:
            ledger.start()
        return ledger

    yield node
    for ledger in nodes:
        if ledger.alive():
            ledger.close(30)


def test_one_node_has_a_file(new_node: NewNode) -> None:
    """The others are not given it while that node lives, whatever its name is; the node itself gets it once."""
    first, second = new_node("same"), new_node("same")

    assert first.claims.take(["a", "b"]) == {"a": Known(None, None), "b": Known(None, None)}

    assert set(second.claims.take(["b", "c"])) == {"c"}
    assert first.claims.take(["a", "c", "a"]) == {}
    assert [first.claims.holds(path) for path in "abc"] == [True, True, False]


def test_a_receipt_ends_the_claim_and_the_next_node_sees_it(new_node: NewNode) -> None:
    """A node that had looked before the receipt was there learns of it when it takes the file."""
    first, second = new_node("first"), new_node("second")
    receipt = a_receipt("a", destination=first.destination)
    first.claims.take(["a"])
    first.record_receipt(receipt)
    assert first.flush(30)

    assert second.claims.take(["a"]) == {"a": Known(receipt, None)}


def test_a_file_that_was_given_back_is_free(new_node: NewNode) -> None:
    """A file that need not be sent leaves no row behind."""
    first, second = new_node("first"), new_node("second")
    first.claims.take(["a"])
    first.claims.give_back(["a"])
    assert first.flush(30)

    assert set(second.claims.take(["a"])) == {"a"}


def test_a_node_that_stops_hands_its_files_over_at_once(new_node: NewNode) -> None:
    """Nobody waits for the lease of a node that has said that it ends."""
    first, second = new_node("first"), new_node("second")
    first.claims.take(["a"])

    assert first.close(30)

    assert set(second.claims.take(["a"])) == {"a"}


def test_a_node_whose_lease_is_over_stores_nothing_any_more(new_node: NewNode) -> None:
    """Its files go to another node; its late receipt and its late failure change nothing, and it is told."""
    lost: list[str] = []
    late = new_node("late", start=False, lease_s=0.2)
    with psycopg.connect(late._url, autocommit=True) as db:
        db.execute("INSERT INTO files (destination, path, owner) VALUES (%s, 'a', %s)", (1, late.lease.owner))
    late.claims._owners["a"] = late.lease.owner
    second = new_node("second", lease_s=0.3)
    eventually(lambda: set(second.claims.take(["a"])) == {"a"}, timeout_s=30)
    told: list[str] = []

    late.record_receipt(a_receipt("a"), lambda: told.append("receipt"), lost.append)
    late.record_retry(a_retry("a"), lambda: told.append("retry"), lost.append)
    late.start()
    assert late.flush(30)

    assert lost == ["a", "a"]
    assert told == []
    with second.reader() as reader:
        assert reader.known(["a"]) == {}


def test_a_receipt_whose_answer_was_lost_is_recognised(new_node: NewNode) -> None:
    """The connection broke after the commit: the second try finds the row as it left it."""
    lost: list[str] = []
    node = new_node("node")
    told = threading.Event()
    node.claims.take(["a"])
    receipt = a_receipt("a", destination=node.destination)

    node.record_receipt(receipt, None, lost.append)
    assert node.flush(30)
    node.record_receipt(receipt, told.set, lost.append)
    assert node.flush(30)

    assert told.is_set()
    assert lost == []


def test_a_number_that_another_node_has_got_is_not_renewed(new_node: NewNode) -> None:
    """A replica without the last commits gives a number again: the process that has it first gets another one."""
    node = new_node("node", start=False)
    number = node.lease.owner
    with psycopg.connect(node._url, autocommit=True) as db:
        db.execute("UPDATE nodes SET name = 'newcomer', started_at = clock_timestamp() WHERE id = %s", (number,))
        node.lease.renew(db)

        assert node.lease.owner != number
        assert db.execute("SELECT name FROM nodes ORDER BY id").fetchall() == [("newcomer",), ("node",)]
    node._session.disconnect()


def test_claims_are_compared_with_a_database_that_lost_its_last_commits(new_node: NewNode) -> None:
    """What only the process calls claimed is claimed again; what only the database does is free; a scan is wanted."""
    node, other = new_node("node"), new_node("other")
    gone = threading.Event()
    listener = Reporting(NO_LOAD)
    listener.node_gone = gone.set  # type: ignore[method-assign]
    node.claims.take(["claim lost", "kept"])
    node.listen(listener)
    with psycopg.connect(node._url, autocommit=True) as db:
        db.execute("DELETE FROM files WHERE path = 'claim lost'")
        db.execute("INSERT INTO files VALUES (%s, 'receipt lost', %s)", (node.destination, node.owner))
        assert node._session.connection is not None
        db.execute("SELECT pg_terminate_backend(%s)", (node._session.connection.info.backend_pid,))
    node.claims.give_back(["some"])
    assert node.flush(30)

    assert [path for path in ("claim lost", "kept", "receipt lost") if node.claims.holds(path)] == ["kept"]
    assert set(other.claims.take(["claim lost", "kept", "receipt lost"])) == {"claim lost", "receipt lost"}
    assert gone.is_set()


def test_void_claims_of_files_that_are_gone_leave_the_table(new_node: NewNode) -> None:
    """A row that has a receipt or a retry stays, and so does the claim of a living node."""
    dead, living = new_node("dead"), new_node("living")
    dead.claims.take(["gone", "sent", "failed"])
    living.claims.take(["claimed"])
    with psycopg.connect(dead._url, autocommit=True) as db:
        db.execute("UPDATE files SET sent = '{1}' WHERE path = 'sent'")
        db.execute("UPDATE files SET failed = '{1}' WHERE path = 'failed'")
        assert dead.close(30)
        living.claims.drop_void()
        assert living.flush(30)

        assert db.execute("SELECT path FROM files ORDER BY 1").fetchall() == [("claimed",), ("failed",), ("sent",)]


def test_nodes_that_start_at_once_make_one_schema(postgres: Postgres) -> None:
    """Each of them finds the tables, and the same number for the destination."""
    url = postgres.database()
    numbers: list[int] = []

    def start() -> None:
        ledger = PostgresLedger(url, destination="here", node="node")
        ledger.start()
        numbers.append(ledger.destination)
        ledger.close(30)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(numbers) == 4
    assert len(set(numbers)) == 1


def test_a_newer_schema_is_refused_in_one_line(postgres: Postgres) -> None:
    """An older daemon beside newer ones says what to do, and changes nothing."""
    url = postgres.database()
    PostgresLedger(url, destination="here", node="old")._session.disconnect()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE s3spool_schema SET version = %s", (VERSION + 1,))

    with pytest.raises(LedgerError, match=r"written by a newer s3spool .* install that version here as well$"):
        PostgresLedger(url, destination="here", node="old")


def test_a_database_that_takes_no_writes_is_refused_in_one_line(postgres: Postgres) -> None:
    """A replica, for example; the database answers, so this is not about its being away."""
    url = postgres.database()
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"ALTER DATABASE {db.info.dbname} SET default_transaction_read_only = on".encode())

    with pytest.raises(LedgerError, match=r"^postgresql://.*: cannot execute CREATE TABLE in a read-only transaction$"):
        PostgresLedger(url, destination="here", node="node")


def test_the_password_is_in_a_credential_that_its_group_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd 257 makes it, though root alone is in that group; libpq would take no such file."""
    port = free_port()
    with Postgres(port=port) as server, psycopg.connect(server.url("postgres"), autocommit=True) as db:
        db.execute("ALTER ROLE s3spool PASSWORD 'correct horse'")
        credential = tmp_path / "pgpass"
        credential.write_text(f"127.0.0.1:{port}:postgres:s3spool:correct horse\n")
        credential.chmod(0o440)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))

        with connect(f"postgresql://s3spool@127.0.0.1:{port}/postgres") as connection:
            assert connection.info.password == "correct horse"  # noqa: S105 - of a server that ends with the test


def test_without_a_descriptor_for_the_password_the_ledger_tries_again(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread lives on: this is one more way in which a connection fails."""
    (tmp_path / "pgpass").touch()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    fails(monkeypatch, os, "memfd_create", OSError(errno.EMFILE, "Too many open files"))

    with pytest.raises(psycopg.OperationalError, match="pgpass cannot be used: Too many open files"):
        connect(postgres.url("postgres"))

    connect(postgres.url("postgres")).close()


def test_a_database_that_restarts_is_found_again() -> None:
    """Rows wait while it is away, and are stored when it is back; the node keeps its claims."""
    lost: list[str] = []
    with Postgres() as server:
        node = PostgresLedger(server.database(), destination="here", node="node", lease_s=600)
        node.start()
        node.claims.take(["a"])
        told = threading.Event()

        server.stop("immediate")
        node.record_receipt(a_receipt("a", destination=node.destination), told.set, lost.append)
        eventually(lambda: node.failing_since is not None, timeout_s=30)
        server.start()

        assert told.wait(60)
        eventually(lambda: node.failing_since is None)
        assert lost == []
        with closing(node.reader()) as reader:
            assert reader.counts()["uploaded"] == 1
        node.close(30)


def test_closing_while_the_database_is_away_says_so(
    postgres: Postgres, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shutdown is not held up by it, but must not claim that all is stored; one line tells of all the tries."""
    monkeypatch.setattr(session, "DRAIN_S", 0.5)
    told: list[str] = []
    with DatabaseProxy(postgres.socket) as proxy:
        name = psycopg.conninfo.conninfo_to_dict(postgres.database())["dbname"]
        node = PostgresLedger(proxy.url(str(name)), destination="here", node="node")
        node.start()
        proxy.cut()
        node.claim(["a"], lambda: told.append("a"))
        since = eventually(lambda: node.failing_since)

        assert not node.close(30)

    assert not node.alive()
    assert (node.failing_since, told) == (since, [])
    assert [line["event"] for line in lines] == ["ledger.failed"]


def test_a_statement_that_hangs_keeps_no_process(new_node: NewNode) -> None:
    """Somebody holds a lock in the database: the ledger says that not all is stored, and the process may end."""
    node = new_node("node")
    with psycopg.connect(node._url) as db:
        db.execute("LOCK TABLE files")
        node.drop_receipts(["a"])

        assert not node.close(0.1)

        assert node.alive()
        assert node._thread not in live_threads()
    eventually(lambda: not node.alive())


def test_a_crowd_is_over_when_nothing_comes(new_node: NewNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row after a rest waits for its neighbours no longer than any other."""
    monkeypatch.setattr(backend, "BUSY_GROUP_S", 3600.0)
    node = new_node("node", lease_s=0.3)
    crowd, single = threading.Event(), threading.Event()
    node.claim([str(number) for number in range(CROWD)], crowd.set)
    assert crowd.wait(30)
    eventually(lambda: not node._crowded, timeout_s=10)

    node.claim(["a"], single.set)

    assert single.wait(30)


def test_three_nodes_that_offer_all_files_send_each_once(new_node: NewNode) -> None:
    """Each takes batches in an order of its own: all files get one receipt, with a statement for many files."""
    names = [f"{number:04}" for number in range(1500)]
    lost: list[str] = []
    sent: list[str] = []
    nodes = [new_node(name) for name in "abc"]
    before = sum(node.statements for node in nodes)

    def work(node: PostgresLedger, seed: int) -> None:
        order = random.Random(seed).sample(names, len(names))
        for start in range(0, len(order), 250):
            taken = node.claims.take(order[start : start + 250])
            new = [path for path, known in taken.items() if known.receipt is None]
            sent.extend(new)
            for path in new:
                node.record_receipt(a_receipt(path, destination=node.destination), None, lost.append)
            node.claims.give_back([*taken.keys() - set(new)])
        assert node.flush(60)

    threads = [threading.Thread(target=work, args=(node, seed)) for seed, node in enumerate(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)

    assert sorted(sent) == names
    assert lost == []
    with nodes[0].reader() as reader:
        assert reader.counts()["uploaded"] == len(names)
    assert sum(node.statements for node in nodes) - before < len(names) / 10


def test_claims_do_not_cut_the_groups_of_receipts_short(new_node: NewNode) -> None:
    """Two hundred receipts among which ten claims are made need no more than a statement for every fifty of them."""
    node = new_node("a")
    names = [f"{number:03}" for number in range(200)]
    node.claims.take(names)
    before = node.statements

    for number in range(10):
        for name in names[20 * number : 20 * (number + 1)]:
            node.record_receipt(a_receipt(name, destination=node.destination))
        assert len(node.claims.take([f"{number}-{each}" for each in range(100)])) == 100
    assert node.flush(60)

    assert node.statements - before <= 10 + 4


def test_clocks_that_are_a_day_apart(new_node: NewNode) -> None:
    """A file is due at the same moment for all: the database's clock counts."""
    here, there = new_node("here"), new_node("there")
    there.lease.ahead_s = -86_400.0  # its own clock is a day ahead
    here.claims.take(["a"])
    here.record_retry(a_retry("a", next_attempt=1000.0))
    assert here.flush(30)

    with there.reader() as reader:
        assert reader.next_due() == 1000.0 + 86_400
        assert reader.due(86_400 + 999.0, 10) == []
        assert [row.next_attempt for row in reader.due(86_400 + 1000.0, 10)] == [1000.0 + 86_400]
    found = there.claims.take(["a"])["a"].retry
    assert found is not None
    assert found.next_attempt == 1000.0 + 86_400
    there.record_retry(found._replace(last_error_at=7.0))
    assert there.flush(30)
    with here.reader() as reader:
        assert reader.next_due() == 1000.0


class Reporting(Listener):
    """A daemon with this load."""

    def __init__(self, load: NodeLoad) -> None:
        self._load = load

    def node_gone(self) -> None: ...

    def may_start(self) -> None: ...

    def paused(self, pause: Pause | None) -> None: ...

    def gives_up(self) -> bool:
        return False

    def room(self) -> None:
        return None

    def load(self) -> NodeLoad:
        return self._load


def test_a_node_that_ends_while_another_starts_is_noticed(new_node: NewNode) -> None:
    """A newcomer knows from the first moment who lives: somebody has to look for what that node leaves."""
    gone = threading.Event()
    listener = Reporting(NO_LOAD)
    listener.node_gone = gone.set  # type: ignore[method-assign]
    first, newcomer = new_node("first"), new_node("newcomer", start=False)
    assert first.close(30)

    with psycopg.connect(newcomer._url, autocommit=True) as db:
        newcomer.lease.look(db, listener)

    assert gone.is_set()
    newcomer._session.disconnect()


def test_a_node_that_gets_a_new_lease_is_told_that_it_may_start(new_node: NewNode) -> None:
    """Its workers have waited since the old one was over; a lease that lasts is renewed without a word."""
    told: list[str] = []
    listener = Reporting(NO_LOAD)
    listener.may_start = lambda: told.append("start")  # type: ignore[method-assign]
    node = new_node("node", start=False)
    node.listen(listener)
    with psycopg.connect(node._url, autocommit=True) as db:
        node._membership.renew(db)
        assert told == []

        node.lease._until = 0.0
        node._membership.renew(db)

    assert told == ["start"]
    node._session.disconnect()


def test_race_a_lease_ends_while_its_renewal_is_on_its_way(new_node: NewNode) -> None:
    """The database is slow for seconds: a worker that looks meanwhile waits, and has to be woken."""
    told: list[str] = []
    node = new_node("node", start=False)
    listener = Reporting(NO_LOAD)

    def slow_load() -> NodeLoad:
        node.lease._until = 0.0
        return NO_LOAD

    listener.load = slow_load  # type: ignore[method-assign]
    listener.may_start = lambda: told.append("start")  # type: ignore[method-assign]
    node.listen(listener)
    with psycopg.connect(node._url, autocommit=True) as db:
        node._membership.renew(db)

    assert told == ["start"]
    node._session.disconnect()


def test_nodes_report_their_load_with_the_lease(new_node: NewNode) -> None:
    """A reader of any node sees each living node with what it said last; a node that has left is gone."""
    first, second = new_node("first", lease_s=0.3), new_node("second")
    first.listen(Reporting(NodeLoad(7, 120.5, "mark")))
    with second.reader() as reader:
        eventually(lambda: reader.nodes()[0].load == NodeLoad(7, 120.5, "mark"), timeout_s=30)
        nodes = reader.nodes()
        assert [(node.name, node.destination, node.owner) for node in nodes] == [
            ("first", "here", first.owner),
            ("second", "here", second.owner),
        ]
        assert [0 < node.lease_left_s <= most for node, most in zip(nodes, (0.3, 60), strict=True)] == [True, True]

        first.close(30)
        assert [node.name for node in reader.nodes()] == ["second"]


def test_files_of_other_nodes_have_the_name_of_the_node(new_node: NewNode) -> None:
    """A node's own claims are left out; those of a node that has left are nobody's."""
    first, second = new_node("first"), new_node("second")
    first.claims.take(["a", "b", "\udcff"])
    second.claims.take(["c"])
    with first.reader() as mine, second.reader() as reader:
        assert mine.elsewhere() == [("c", "second")]
        assert reader.elsewhere(limit=2) == [("\udcff", "first"), ("a", "first")]
        assert reader.elsewhere(after="a") == [("b", "first")]
        assert reader.holders(["b", "c", "d"]) == {"b": "first"}
        assert reader.claimed_elsewhere() == 3

        first.close(30)
        assert (reader.elsewhere(), reader.holders(["b"]), reader.claimed_elsewhere()) == ([], {}, 0)
