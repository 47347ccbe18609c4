"""Whether the bucket takes what each [[rule]] asks for: class, ACL, tags, lock."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Iterator

from s3spool.check.result import CheckResult, error, warning
from s3spool.errors import UploadError
from s3spool.ledger.rows import Identity
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.object_rules import ObjectRules
from s3spool.s3.options import grants_of
from s3spool.s3.store import MIB, Store


def try_rules(store: Store) -> Iterator[CheckResult]:
    """Begin and abort an upload in parts for each rule; yield what goes wrong."""
    identity = Identity(0, 0, MIB, time.time_ns(), 0)
    for number, options in enumerate(store.rules.options[:-1], 1):
        subject = f"rule {number}"
        of_rule = copy.copy(store)
        of_rule.rules = ObjectRules([options])
        parts = MultipartStore(of_rule)
        try:
            upload = parts.create(f"s3spool-check-{secrets.token_hex(8)}", identity, 0, 5 * MIB)
        except UploadError as exc:
            hint = exc.hint.replace("grant s3:PutObject on", f"grant {', '.join(grants_of(options))} on")
            yield error(subject, f"CreateMultipartUpload: {exc.code}: {exc.cause}{f'; {hint}' if hint else ''}")
            continue
        try:
            parts.abort(upload)
        except UploadError as exc:
            yield warning(subject, f"AbortMultipartUpload of {upload.key}: {exc.code}: {exc.cause}")
