"""As `killing`, for a daemon whose ledger is shared: `python -m support.killing_nodes STEP COUNT -- run ...`."""

from __future__ import annotations

from typing import Any

from s3spool.ledger.postgresql import statements as sql
from support import killing
from support.killing import Step

_BACKEND = "s3spool.ledger.postgresql.backend"


def _has_receipt(_ledger: object, run: list[Any], *_: object) -> bool:
    return bool(run[0].statements == (sql.RECORD_RECEIPTS,))


# The ledger's own steps in the place of SQLite's; "insert" is a part of the commit, and "take" claims retries as well.
STEPS = {name: step for name, step in killing.STEPS.items() if name not in {"insert", "claim"}} | {
    "record": Step(f"{_BACKEND}:PostgresLedger.record_receipt"),
    "commit": Step(f"{_BACKEND}:PostgresLedger._commit", _has_receipt),
    "record multipart": Step(f"{_BACKEND}:PostgresLedger.record_multipart"),
    "record part": Step(f"{_BACKEND}:PostgresLedger.record_part"),
    "forget multipart": Step(f"{_BACKEND}:PostgresLedger.forget_multipart"),
    "record retry": Step(f"{_BACKEND}:PostgresLedger.record_retry"),
    "migrate": Step(f"{_BACKEND}:migrate"),
    "ledger": Step(f"{_BACKEND}:PostgresLedger.__init__"),
    "take": Step("s3spool.ledger.postgresql.claims:PostgresClaims.take"),
    "give back": Step("s3spool.ledger.postgresql.claims:PostgresClaims.give_back"),
    "renew": Step("s3spool.ledger.postgresql.lease:Lease.renew"),
}

if __name__ == "__main__":
    killing.STEPS.update(STEPS)
    killing.main()
