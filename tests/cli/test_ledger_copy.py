"""`s3spool ledger copy`: all rows, there and back, and whatever interrupts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from s3spool.cli.commands import cli
from s3spool.ledger import copy as copying
from s3spool.ledger.database import DirectoryLock
from s3spool.ledger.postgresql.backend import PostgresLedger
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Pause, State
from s3spool.ledger.store import Ledger
from support.postgres import Postgres
from support.rows import SOME, a_multipart, a_part, a_receipt, a_retry

NAME = "http://here|bucket|"
ROWS = 1200  # more than two pages


class Place:
    """A configuration, and a ledger in SQLite with rows of every kind."""

    def __init__(self, directory: Path) -> None:
        (directory / "spool").mkdir()
        (directory / "old").mkdir()
        (directory / "new").mkdir()
        self.file, self.back = str(directory / "old/ledger.sqlite3"), str(directory / "new/ledger.sqlite3")
        self._config = directory / "s3spool.toml"
        self._config.write_text(
            f'[watch]\ndirectory = "{directory}/spool"\n[destination]\nbucket = "bucket"\nendpoint_url = "http://here"\n'
            f'[state]\ndirectory = "{directory}/old"\n'
        )
        self.fill(directory / "old/ledger.sqlite3")

    def fill(self, path: Path) -> None:
        Ledger(path, destination="elsewhere").close(1) if path.exists() else None
        ledger = Ledger(path, destination=NAME)
        ledger.start()
        for number in range(ROWS):
            at = 1_764_400_000.123456 + number * 0.000_123_7
            fields: dict[str, Any] = {"destination": ledger.destination, "read_at": at, "uploaded_at": at + 0.1}
            ledger.record_receipt(a_receipt(f"d{number % 7}/{number}", **fields))
        odd = os.fsdecode(b"odd\xff\n")
        ledger.record_receipt(a_receipt(odd, destination=ledger.destination, identity=SOME._replace(inode=-5)))
        ledger.record_receipt(a_receipt("elsewhere", destination=99))
        ledger.record_retry(a_retry(odd, error=f"no such file: {odd}", own_failures=3))  # with a receipt
        ledger.record_retry(a_retry("parked", state=State.PARKED, next_attempt=0.0, provisional=True))
        for name in ("large", odd):
            upload = a_multipart(name, destination=ledger.destination)
            ledger.record_multipart(upload)
            for number in (1, 2, 3):
                ledger.record_part(a_part(upload.upload_id, number))
        ledger.record_pause(Pause(1_764_400_000.25, "bucket \u00fcber"))
        assert ledger.close(30)

    def copy(self, *words: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(self._config), "ledger", "copy", *words])


def rows(file: str) -> list[Any]:
    """All rows of this destination, without the number of the device."""
    with Reader(Path(file)) as reader:
        number = reader.destination(NAME)
        found: list[Any] = [row for row in reader.receipts() if row.destination == number]
        found += [*reader.retries(), *reader.multiparts(), reader.pause()]
        found += [part for upload in reader.multiparts() for part in reader.parts(upload.upload_id)]
    return [_plain(row) for row in found]


def _plain(row: Any) -> Any:  # a row, or a value of one
    if isinstance(row, float):
        return round(row, 6)
    if isinstance(row, tuple):
        fields = getattr(row, "_fields", ())
        row = [value for field, value in zip(fields, row, strict=True) if field not in {"destination", "dev"}]
        return [_plain(value) for value in row]
    return row


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.database()


def test_there_and_back_gives_the_same_rows(place: Place, url: str) -> None:
    """Receipts, failed and parked files, uploads in parts and the pause; odd names included."""
    there = place.copy(place.file, url)
    assert there.exit_code == 0, there.output
    assert f"{ROWS + 1:,} receipts, 2 failed files, 2 uploads in parts, 1 pauses; all were compared" in there.stdout

    assert place.copy(url, place.back).exit_code == 0
    assert rows(place.back) == rows(place.file)


def test_a_copy_that_was_interrupted_goes_on(place: Place, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already is compared, not written again."""
    written: list[int] = []
    write = copying.LedgerCopy._write
    pages = [1, 1000]  # so many are written before the first and the second interruption

    def interrupted(self: copying.LedgerCopy, page: Any) -> None:
        if not pages[0]:
            raise KeyboardInterrupt
        pages[0] -= 1
        written.append(len(page))
        write(self, page)

    monkeypatch.setattr(copying.LedgerCopy, "_write", interrupted)
    assert place.copy(place.file, url).exit_code == 130
    del pages[0]

    assert place.copy(place.file, url).exit_code == 0
    assert sum(written) == ROWS + 1 + 2 + 2 + 1


def test_rows_in_the_way_stay_unless_they_are_to_be_replaced(place: Place, url: str) -> None:
    """A wrong direction changes nothing; with --replace the target has what the source has, and nothing else."""
    assert place.copy(place.file, url).exit_code == 0
    ledger = Ledger(Path(place.file), destination=NAME)
    ledger.start()
    ledger.forget("d1/1")
    ledger.forget_retry("parked")
    ledger.forget_multipart(a_multipart("large").upload_id)
    ledger.record_pause(None)
    ledger.record_receipt(a_receipt("d2/2", destination=ledger.destination, etag="another"))
    assert ledger.close(30)
    before = rows(place.file)

    refused = place.copy(place.file, url)
    assert refused.exit_code == 1
    assert "(d1/1); nothing was copied" in refused.stderr

    assert place.copy(place.file, url, "--replace").exit_code == 0
    assert place.copy(url, place.back).exit_code == 0
    assert rows(place.back) == before == rows(place.file)


def test_a_ledger_in_use_is_left_alone(place: Place, url: str) -> None:
    """A daemon on either side: one line that names it, on either kind of ledger."""
    lock = DirectoryLock(Path(place.file).parent)
    refused = place.copy(place.file, url)
    lock.release()
    assert refused.exit_code == 1
    assert f"another s3spool (pid {os.getpid()}) uses it" in refused.stderr

    node = PostgresLedger(url, destination=NAME, node="alive")
    node.start()
    try:
        assert "the daemon alive on" in place.copy(place.file, url).stderr
        assert "the daemon alive on" in place.copy(url, place.back).stderr
    finally:
        node.close(30)


def test_a_source_that_is_not_there_is_refused(place: Place, url: str) -> None:
    """Nothing is made in its place."""
    assert "no such file" in place.copy(place.back, url).stderr
    assert "holds no ledger" in place.copy(url, place.back).stderr
    assert place.copy(place.file, url).exit_code == 0
    assert "another copy, uses it" in place.copy(url, url).stderr
    assert not Path(place.back).exists()


def test_a_row_that_differs_after_the_copy_is_an_error(place: Place, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison reads all rows again."""
    monkeypatch.setattr(copying.LedgerCopy, "write", lambda _: None)

    assert "after the copy, first in" in place.copy(place.file, url).stderr
