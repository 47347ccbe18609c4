"""The figures of the ledger, as the status line and `status` take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3spool.daemon.ledger_figures import LedgerFigures
from s3spool.ledger.queries import Totals
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import State
from s3spool.ledger.store import Ledger
from support.rows import SOME, a_retry


def test_it_is_counted_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only then: a daemon that is idle beside a long list stays idle."""
    counted: list[Reader] = []
    count = Reader.totals

    def counting(reader: Reader) -> Totals:
        counted.append(reader)
        return count(reader)

    monkeypatch.setattr(Reader, "totals", counting)
    ledger = Ledger(tmp_path / "ledger.sqlite3", destination="d")
    ledger.start()
    figures = LedgerFigures(ledger)

    for number in range(3):
        if number:
            state = State.PARKED if number == 1 else State.WAITING
            ledger.record_retry(a_retry(f"file {number}", state=state))
        assert ledger.flush(10)
        figures.now()
        assert ledger.flush(10)  # commits, and changes nothing
        figures.now()

    found = figures.now()
    assert (found.waiting, found.parked, found.oldest_ns) == (1, 1, SOME.ctime_ns)
    assert len(counted) == 3
    figures.close()
    assert ledger.close(10)
