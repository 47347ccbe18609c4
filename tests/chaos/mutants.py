"""Daemons that break the promise, for the oracle to find: `python -m chaos.mutants KIND -- run ...`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from s3spool.folder.folder import Folder
from s3spool.ledger.postgresql.backend import PostgresLedger
from s3spool.ledger.store import Ledger
from s3spool.s3.content import Content, Stored
from s3spool.s3.store import Store

if TYPE_CHECKING:
    from s3spool.ledger.rows import Identity, Receipt

_record_receipt, _record_shared = Ledger.record_receipt, PostgresLedger.record_receipt


def _believe(self: Store, content: Content, request: Any, answer: Any, *, may_verify: bool) -> Stored:
    """Each 200 is a success, whatever it proves."""
    self.accepted(request, answer)
    return Stored(request.key, "", request.checksum, "")


def _unlink(self: Folder, path: str, identity: Identity) -> bool:
    """By its name, without a look at whether it is still the same."""
    with self._parent(path) as (parent_fd, name):
        os.unlink(name, dir_fd=parent_fd)
    return True


def _hurry(self: Ledger | PostgresLedger, receipt: Receipt, committed: Any = None, lost: Any = None) -> None:
    """Remove first, record later."""
    if committed:
        committed()
    record: Any = _record_receipt if isinstance(self, Ledger) else _record_shared
    record(self, receipt, None, lost)


MUTANTS: dict[str, tuple[type, str, Any]] = {
    "credulous": (Store, "verify", _believe),
    "careless": (Folder, "unlink_if_same", _unlink),
    "hasty": (Ledger, "record_receipt", _hurry),
    "hasty node": (PostgresLedger, "record_receipt", _hurry),
}


def program(kind: str) -> tuple[str, ...]:
    """For `Daemon.program`; needs PYTHONPATH to lead to the tests."""
    return (sys.executable, "-m", "chaos.mutants", kind, "--")


def main() -> None:
    kind, _, *arguments = sys.argv[1:]
    owner, name, function = MUTANTS[kind]
    assert hasattr(owner, name)
    setattr(owner, name, function)

    from s3spool.cli.commands import cli  # noqa: PLC0415 - as late as the program itself does it

    cli(arguments)


if __name__ == "__main__":
    main()
