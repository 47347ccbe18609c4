"""What `s3spool check` asks of the bucket: whether it would take what the daemon sends.

The rehearsal is a multipart upload that is begun, gets one small part, and is aborted: it needs the permission
that every upload needs, goes the way that every body goes, carries the options of [destination], and leaves no
object behind.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import botocore.exceptions

from s3spool.content import Content
from s3spool.errors import UploadError
from s3spool.finding import Finding, error, ok, warning
from s3spool.ledger.rows import Identity, Multipart
from s3spool.s3 import checksums
from s3spool.s3.boto3_transport import FAILURES, translated
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.store import MIB, Store, look

SKEW_WARNING_S = 60
SKEW_ERROR_S = 900  # S3 refuses signatures that are older or younger
_BODY = b"s3spool check\n"
_ATTEMPTS = 3  # another region, and another checksum, are learnt from a refusal
_SOURCES = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the shared credentials file (~/.aws/credentials)",
    "config-file": "the shared configuration file (~/.aws/config)",
    "sso": "IAM Identity Center (aws sso login)",
    "login": "aws login",
    "iam-role": "the EC2 instance's role",
    "container-role": "the container's role",
    "assume-role": "an assumed role (~/.aws/config)",
    "assume-role-with-web-identity": "a web identity token (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "custom-process": "a credential_process (~/.aws/config)",
}


def examine(store: Store, prefix: str) -> Iterator[Finding]:
    """Ends after the first finding that makes all others pointless. `prefix` as configured, with its templates."""
    keys = store.credentials
    if keys.current is None:
        hint = "set AWS_ACCESS_KEY_ID, write ~/.aws/credentials, or give this machine a role"
        yield error("credentials", f"{keys.error or 'none found'}; {hint}")
        return
    yield ok("credentials", f"from {_SOURCES.get(keys.source, keys.source or 'an unnamed provider')}")
    if store.kind == "boto3":
        why = store.no_curl or "pycurl cannot be used here"
        yield warning("transport", f"{why}: boto3 sends the files, several times slower")
    try:
        headers, status = _head_bucket(store)
    except UploadError as exc:
        exc.hint = exc.hint or "check network, DNS and destination.endpoint_url"
        yield error("endpoint", _sentence(exc, store.endpoint.url))
        return
    skewed = _clock(headers)
    yield skewed
    if skewed.level == "error":
        return
    bucket = _bucket(store, headers, status)
    yield bucket
    if bucket.level == "error":
        return
    if store.never:
        yield _overwrite(store)
    findings = _rehearse(store)
    yield from findings
    if not any(finding.level == "error" for finding in findings):
        yield from _lifecycle(store, prefix.partition("%")[0].partition("{")[0])


def _head_bucket(store: Store) -> tuple[Mapping[str, str], int]:
    """Headers and status of S3's answer; raises UploadError where none came, or one that redirects elsewhere."""
    try:
        answer: Any = store.client.head_bucket(Bucket=store.bucket)
    except FAILURES as exc:
        answer = getattr(exc, "response", None)
        redirected = answer and 300 <= answer["ResponseMetadata"]["HTTPStatusCode"] < 400  # noqa: PLR2004
        if not answer or (redirected and "x-amz-bucket-region" not in answer["ResponseMetadata"]["HTTPHeaders"]):
            raise translated(exc, store.bucket, "reach") from exc
    meta = answer["ResponseMetadata"]
    return meta["HTTPHeaders"], meta["HTTPStatusCode"]


def _clock(headers: Mapping[str, str]) -> Finding:
    now = time.time()
    try:
        skew_s = now - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return warning("clock", "the server does not tell the time: nothing to compare with")
    text = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} S3"
    if abs(skew_s) > SKEW_ERROR_S:
        return error("clock", f"{text}, which refuses more than {SKEW_ERROR_S} s; set it: timedatectl set-ntp true")
    if abs(skew_s) > SKEW_WARNING_S:
        return warning("clock", f"{text}, which refuses more than {SKEW_ERROR_S} s; set it: timedatectl set-ntp true")
    return ok("clock", "agrees with S3's within a minute")


def _bucket(store: Store, headers: Mapping[str, str], status: int) -> Finding:
    """HEAD needs s3:ListBucket, and its refusals have no body to say why: the rehearsal finds out."""
    region = headers.get("x-amz-bucket-region", "")
    where = f"{store.bucket} at {store.endpoint.url}"
    if status == 404:  # noqa: PLR2004 - Not Found
        return error("bucket", f"{where}: does not exist; create it or correct destination.bucket")
    if status >= 500:  # noqa: PLR2004 - a server's own fault
        return error("bucket", f"{where}: the server answered HTTP {status}; try again, or ask who runs it")
    if region and region != store.endpoint.region and "amazonaws" in store.endpoint.url:
        told = f'set destination.region = "{region}"'
        return warning("bucket", f"{where}: is in {region}, not {store.endpoint.region}; {told}, it saves a detour")
    if status != 200:  # noqa: PLR2004 - OK
        return ok("bucket", f"{where}: HTTP {status}, may not look (s3:ListBucket); going on")
    return ok("bucket", where)


def _overwrite(store: Store) -> Finding:
    if not store.asks_first:
        return ok("overwrite", "AWS refuses to replace an object (If-None-Match)")
    return ok(
        "overwrite",
        "a HEAD before each upload protects what is there, but not against a program that writes the same key in"
        " between; once the daemon has seen that the server honours If-None-Match, it leaves that to the server",
    )


def _rehearse(store: Store) -> list[Finding]:
    """One multipart upload, begun and aborted."""
    parts = MultipartStore(store)
    with tempfile.TemporaryFile() as file:
        file.write(_BODY)
        file.flush()
        identity = Identity.of(os.fstat(file.fileno()))
        content = Content(f"s3spool-check-{secrets.token_hex(8)}", identity, None, file.fileno())
        for attempt in range(1, _ATTEMPTS + 1):
            before = store.algorithm, store.endpoint
            try:
                upload = parts.create(content.path, identity, 0, 5 * MIB)
            except UploadError as exc:
                if attempt < _ATTEMPTS and (store.algorithm, store.endpoint) != before:
                    continue
                return [error("upload", _sentence(exc, "s3:PutObject"))]
            findings: list[Finding] = []
            try:
                proof = _send_part(store, parts, upload, content)
                findings.append(ok("checksum", proof))
                findings += _ask(store, parts, upload, content.path)
            except UploadError as exc:
                findings.append(error("upload", _sentence(exc, "a part")))
            finally:
                aborted = _abort(parts, upload)
            if attempt == _ATTEMPTS or (store.algorithm, store.endpoint) == before:
                break
        # Where the part was refused, that the rest went well is no news.
        told = findings[0].level == "ok" or aborted.level != "ok"
        return [*([aborted] if told else []), *findings]


def _send_part(store: Store, parts: MultipartStore, upload: Multipart, content: Content) -> str:
    """How the store proved that it has what was sent; raises UploadError where it did not."""
    sender = store.transport()
    try:
        request = parts.part_request(upload, content, 1)
        sender.prepare(request)
        sender.send()
        answer = sender.answer()
    finally:
        sender.close()
    parts.judge_part(upload, request, answer, 1)
    if upload.algorithm == "md5":
        return "the store's ETag is the MD5 of what was sent"
    if answer.headers.get(checksums.header_of(upload.algorithm)):
        return f"the store checks and repeats {upload.algorithm}"
    return f"the store does not repeat {upload.algorithm}; its ETag, the MD5, proves what was sent"


def _ask(store: Store, parts: MultipartStore, upload: Multipart, path: str) -> Iterator[Finding]:
    """The questions that the daemon asks after an interruption or an answer that proves nothing."""
    try:
        parts.listed(upload)
    except UploadError as exc:
        grant = "grant s3:ListMultipartUploadParts, or an interrupted large file stops everything"
        yield error("resume", f"{exc.code}: {exc.cause}; {grant}")
    else:
        yield ok("resume", "may list the parts of an interrupted upload")
    try:
        look(store.client, store.bucket, upload.key, path)
    except UploadError as exc:
        grant = "grant s3:GetObject and s3:ListBucket (`s3spool check --policy`)"
        if store.never:
            yield error("confirm", f'{exc.code} for a HEAD, which destination.overwrite = "never" needs; {grant}')
        else:
            yield warning("confirm", f"{exc.code} for a HEAD: a lost answer cannot be settled by asking; {grant}")
    else:
        yield ok("confirm", "may ask for an object with HEAD")


def _abort(parts: MultipartStore, upload: Multipart) -> Finding:
    where = f"a multipart upload to {upload.key}"
    try:
        parts.abort(upload)
    except UploadError as exc:
        left = f"{where} (id {upload.upload_id}) stays unfinished"
        return warning("abort", f"{exc.code}: {exc.cause}; {left}; grant s3:AbortMultipartUpload")
    return ok("upload", f"{where} could be begun, was given {len(_BODY)} bytes and aborted; no object was written")


def _lifecycle(store: Store, prefix: str) -> Iterator[Finding]:
    """Silent where it may not look, or the store knows no lifecycles."""
    rules: list[Any] | None = None
    try:
        rules = store.client.get_bucket_lifecycle_configuration(Bucket=store.bucket).get("Rules")
    except botocore.exceptions.ClientError as exc:
        if exc.response.get("Error", {}).get("Code") == "NoSuchLifecycleConfiguration":
            rules = []
    except botocore.exceptions.BotoCoreError:
        return
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


def _sentence(exc: UploadError, what: str) -> str:
    hint = f"; {exc.hint}" if exc.hint else ""
    return f"{what}: {exc.code}: {exc.cause}{hint}"
