"""Checks whether a lifecycle rule of the bucket aborts unfinished multipart uploads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from s3spool.check.result import CheckResult, ok, warning
from s3spool.s3.errors import FAILURES, from_boto3
from s3spool.s3.store import Store


def check_lifecycle(store: Store, prefix: str) -> Iterator[CheckResult]:
    """Yield nothing where reading the rules is not allowed, or the store has no lifecycle rules."""
    rules: list[Any] | None = None
    try:
        rules = store.client.get_bucket_lifecycle_configuration(Bucket=store.bucket).get("Rules")
    except FAILURES as exc:
        if from_boto3(exc, store.bucket).code == "NoSuchLifecycleConfiguration":
            rules = []
    if rules is None:
        return
    if any(_aborts(rule, prefix) for rule in rules):
        yield ok("lifecycle", "a rule aborts unfinished multipart uploads")
    else:
        yield warning(
            "lifecycle",
            "no rule aborts unfinished multipart uploads: if this machine is lost, their parts stay and are charged;"
            " add a rule with AbortIncompleteMultipartUpload",
        )


def _aborts(rule: Mapping[str, Any], prefix: str) -> bool:
    where = rule.get("Filter", {})
    covered = rule.get("Prefix") or where.get("Prefix") or where.get("And", {}).get("Prefix") or ""
    return rule.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in rule and prefix.startswith(covered)
