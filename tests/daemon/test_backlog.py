"""The retry list as the supervisor counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3spool.daemon.retry_summary import RetrySummary
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import State
from s3spool.ledger.store import Ledger
from support.rows import SOME, a_retry


def test_it_is_counted_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only then: a daemon that is idle beside a long list stays idle."""
    counted: list[Reader] = []
    count = Reader.backlog

    def counting(reader: Reader) -> tuple[int, int, int | None]:
        counted.append(reader)
        return count(reader)

    monkeypatch.setattr(Reader, "backlog", counting)
    ledger = Ledger(tmp_path / "ledger.sqlite3", destination="d")
    ledger.start()
    backlog = RetrySummary(ledger)

    for number in range(3):
        if number:
            state = State.PARKED if number == 1 else State.WAITING
            ledger.record_retry(a_retry(f"file {number}", state=state))
        assert ledger.flush(10)
        backlog.refresh()
        assert ledger.flush(10)  # commits, and changes nothing
        backlog.refresh()

    assert (backlog.waiting, backlog.parked, backlog.oldest_ns) == (1, 1, SOME.ctime_ns)
    assert len(counted) == 3
    assert ledger.close(10)
