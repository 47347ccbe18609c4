"""`s3spool check` of each [[rule]]: an example from the folder, and whether the bucket takes what it asks for."""

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from s3spool.check.result import CheckResult, error, ok, warning
from s3spool.check.walk import walk
from s3spool.config.schema import Config
from s3spool.errors import UploadError
from s3spool.folder.rules import FileRules
from s3spool.ledger.rows import Identity
from s3spool.logs.text import shown
from s3spool.s3.content_types import content_type_of
from s3spool.s3.keys import Prefix, key_of
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.object_rules import ObjectRules
from s3spool.s3.options import grants_of
from s3spool.s3.store import MIB, Store

MOST_FILES = 100_000  # looked at


def check_rules(config: Config) -> Iterator[CheckResult]:
    """One result for each rule."""
    if not config.rules:
        return
    rules = FileRules(config)
    examples: dict[int, str] = {}
    files = 0
    for path in (found.path for found in walk(config) if found.kind == "file"):
        files += 1
        examples.setdefault(rules.index(path), path)
        if files == MOST_FILES or len(examples.keys() - {-1}) == len(config.rules):
            break
    for index, rule in enumerate(config.rules):
        subject = f"rule {index + 1}"
        if index in examples:
            yield _example(config, rules, subject, examples[index])
        elif files:
            looked = f"the first {files} files" if files == MOST_FILES else "the files of the folder"
            yield warning(subject, f"{rule.name}: applies to none of {looked}")
        else:
            yield ok(subject, f"{rule.name}: the folder has no file yet")


def _example(config: Config, rules: FileRules, subject: str, path: str) -> CheckResult:
    destination = rules.destination(path)
    try:
        mtime_s = Path(config.watch.directory, path).lstat().st_mtime
        key = key_of(path, Prefix(destination.prefix).of(mtime_s))
    except (OSError, UploadError) as exc:
        return error(subject, f"{shown(path)}: {exc}")
    kind = content_type_of(path, None) if destination.content_type == "auto" else destination.content_type
    more = [kind, destination.storage_class, destination.cache_control, destination.acl, rules.action(path)]
    url = shown(f"s3://{destination.bucket}/{key}")
    return ok(subject, f"{shown(path)} would be {url} ({', '.join(filter(None, more))})")


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
