"""Compares receipts with the bucket: a listing where it answers for many receipts, else one HEAD each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import botocore.exceptions

from s3spool.errors import Scope, UploadError
from s3spool.ledger.rows import Receipt
from s3spool.s3.checksums import md5_hex
from s3spool.s3.client import Found, look
from s3spool.s3.errors import FAILURES, from_boto3

if TYPE_CHECKING:
    from s3spool.s3.store import Store

PAGE_KEYS = 1000  # S3's limit
_HIGHEST = "\U0010fffd"  # sorts behind what names are made of
_NO_LISTING = frozenset(("AccessDenied", "HTTP403", "NotImplemented", "HTTP501"))


class Difference(NamedTuple):
    """A receipt whose object is not there, or is not what was sent."""

    receipt: Receipt
    kind: str  #: missing, size, content, unknown
    text: str


class Verifier:
    """Thread-safe. `may_list` becomes False where the bucket cannot be listed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.may_list = True

    def unverified(self, receipts: Sequence[Receipt]) -> tuple[list[Receipt], int]:
        """Those that listings do not show as they were sent, and the number of requests. Raises UploadError."""
        rest = sorted(receipts, key=lambda receipt: receipt.key)
        unverified: list[Receipt] = []
        requests = 0
        while self.may_list and len(rest) > 1:
            requests += 1
            page = self._list(rest[0].key, rest[-1].key)
            if page is None:
                break
            found = {entry["Key"]: entry for entry in page.get("Contents", [])}
            last = max(found, default="") if page.get("IsTruncated") else rest[-1].key
            covered = [receipt for receipt in rest if receipt.key <= last]
            rest = rest[len(covered) :]
            wrong = [receipt for receipt in covered if not _is_listed(receipt, found.get(receipt.key))]
            unverified += wrong
            if len(covered) - len(wrong) <= 1:
                break  # other objects lie between: a HEAD each costs no more
        return unverified + rest, requests

    def look(self, receipt: Receipt) -> Difference | None:
        """Ask for one object. Raises UploadError where none could be asked for."""
        try:
            found = look(self._store.client, self._store.bucket, receipt.key, receipt.path)
        except UploadError as exc:
            if exc.scope is Scope.EVERYBODY and exc.code not in {"HTTP403", "AccessDenied"}:
                raise
            return Difference(receipt, "unknown", str(exc))
        if found is None:
            return Difference(receipt, "missing", "there is no such object")
        if found.size != receipt.identity.size:
            return Difference(receipt, "size", f"{found.size} bytes, but {receipt.identity.size} were sent")
        return None if _is_same(receipt, found) else Difference(receipt, "content", "its checksum or ETag is another")

    def _list(self, first: str, last: str) -> dict[str, Any] | None:
        """One page that begins at `first`; None where the bucket cannot be listed."""
        try:
            try:
                return self._page(first, last)
            except botocore.exceptions.ClientError as exc:
                headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
                if not self._store.moves_to(headers.get("x-amz-bucket-region", ""), from_boto3(exc, first, "list")):
                    raise
                return self._page(first, last)
        except FAILURES as exc:
            error = from_boto3(exc, self._store.bucket, "list")
            if error.code not in _NO_LISTING:
                raise error from exc
            self.may_list = False
            return None

    def _page(self, first: str, last: str) -> dict[str, Any]:
        prefix = os.path.commonprefix([first, last])  # noqa: RUF071 - of texts
        return dict(
            self._store.client.list_objects_v2(
                Bucket=self._store.bucket, Prefix=prefix, StartAfter=_before(first), MaxKeys=PAGE_KEYS
            )
        )


def _before(key: str) -> str:
    """Close before `key` in S3's order, so that a listing after it begins with `key`."""
    last = ord(key[-1])
    return key[:-1] + (chr(last - 1) + _HIGHEST if "!" < key[-1] <= "~" else "")


def _is_listed(receipt: Receipt, entry: dict[str, Any] | None) -> bool:
    etag = entry and entry.get("ETag", "").strip('"')
    return bool(entry and etag and etag == receipt.etag and entry.get("Size") == receipt.identity.size)


def _is_same(receipt: Receipt, found: Found) -> bool:
    algorithm, _, value = receipt.checksum.partition(":")
    if told := found.checksums.get(algorithm):
        return told == value
    if found.etag == receipt.etag:
        return True
    return algorithm == "md5" and found.etag == md5_hex(value)
