"""Commands and daemons open the ledger that the configuration names."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest

from s3spool.check.shared_ledger import check_shared_ledger
from s3spool.config import loader
from s3spool.control.client import ControlClient
from s3spool.errors import ConfigError, LedgerUnavailableError
from s3spool.ledger.opening import open_ledger, open_shared_reader
from s3spool.ledger.rows import Identity, State
from s3spool.ledger.store import Ledger
from support.rows import a_receipt, a_retry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from s3spool.config.schema import Config
    from s3spool.ledger.protocol import LedgerBackend
    from support.postgres import Postgres


def a_config(directory: Path, ledger: str) -> Config:
    (directory / "spool").mkdir(exist_ok=True)
    return loader.load(
        overrides={
            "watch.directory": str(directory / "spool"),
            "state.directory": str(directory / "state"),
            "destination.bucket": "bucket",
            "state.ledger": ledger,
        },
        environ={"HOME": str(directory)},
        search=False,
    )


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart does not help: exit code 78."""
    for name in [name for name in sys.modules if name.startswith(("psycopg", "s3spool.ledger.postgresql"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    config = a_config(tmp_path, "postgresql://db.example/s3spool")

    with pytest.raises(ConfigError, match=r"^state\.ledger: needs the extra postgresql .*: pip install") as caught:
        open_ledger(config)

    assert caught.value.exit_code == 78


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    """The start ends with exit code 1, so that systemd tries again."""
    with pytest.raises(LedgerUnavailableError, match=r"^postgresql://127.0.0.1/s3spool: ") as caught:
        open_ledger(a_config(tmp_path, "postgresql://somebody@127.0.0.1:1/s3spool"))

    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_without_a_url_it_is_the_file(tmp_path: Path) -> None:
    """The default needs no extra."""
    config = a_config(tmp_path, "")
    config.state.directory.mkdir()

    ledger = open_ledger(config)

    assert isinstance(ledger, Ledger)
    ledger.start()
    assert ledger.close(10)


def test_commands_answer_from_the_shared_ledger(tmp_path: Path, postgres: Postgres) -> None:
    """Without a daemon on this host: status, list, why, verify's reader, and what they change."""
    config = a_config(tmp_path, postgres.database())
    client = ControlClient(config)
    assert open_shared_reader(config) is None
    assert client.status().files.uploaded == 0
    file = config.watch.directory / "sent"
    file.write_bytes(b"content")
    ledger = open_ledger(config, command=True)
    ledger.start()
    identity = Identity.of(file.stat())._replace(dev=7)
    ledger.record_receipt(a_receipt("sent", identity=identity, destination=ledger.destination))
    assert ledger.close(30)

    assert client.status().files.uploaded == 0  # no node has claimed it
    with node(config) as shared:
        shared.record_receipt(a_receipt("sent", identity=identity, destination=shared.destination))
        shared.record_retry(a_retry("failed", state=State.PARKED))
        assert shared.flush(30)
        client.pause("the bucket moves")

    status = client.status()
    assert (status.files.uploaded, status.files.parked, status.destination.by_hand) == (1, 1, True)
    assert {row["path"]: row["state"] for row in client.rows(None)} == {"sent": "uploaded", "failed": "parked"}
    assert client.why("sent")["state"] == "uploaded"
    assert client.retry(["failed"], everything=False).released == 1
    assert client.resume()
    assert {row["path"]: row["state"] for row in client.rows("unsent")} == {"failed": "waiting"}
    with client.ledger() as reader:
        assert reader is not None
        assert reader.destination(config.destination.ledger_name) == 1


def test_check_says_whether_the_database_answers(tmp_path: Path, postgres: Postgres) -> None:
    """Before and after the first daemon, and where nobody listens."""
    config = a_config(tmp_path, postgres.database())
    before = next(check_shared_ledger(config))
    with node(config):
        after = next(check_shared_ledger(config))
    away = next(check_shared_ledger(a_config(tmp_path, "postgresql://somebody@127.0.0.1:1/s3spool")))

    assert (before.level, after.level, away.level) == ("ok", "ok", "error")
    assert "schema: none yet; the first daemon makes it" in before.text
    assert "schema version" in after.text
    assert away.text.startswith("postgresql://127.0.0.1/s3spool: ")


def test_a_command_is_no_node(tmp_path: Path, postgres: Postgres) -> None:
    """Its end must not look like the death of a daemon, which makes the others scan."""
    config = a_config(tmp_path, postgres.database())
    ledger = open_ledger(config, command=True)
    ledger.start()
    assert ledger.flush(30)

    assert ledger.owner == 0
    assert ledger.close(30)


@contextlib.contextmanager
def node(config: Config) -> Iterator[LedgerBackend]:
    """A ledger as a daemon has it; it has claimed the two files of these tests."""
    ledger = open_ledger(config)
    ledger.start()
    assert ledger.claims is not None
    assert set(ledger.claims.take(["sent", "failed"])) == {"sent", "failed"}
    yield ledger
    assert ledger.close(30)
