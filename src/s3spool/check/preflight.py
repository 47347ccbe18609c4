"""`s3spool check` asks the bucket whether it would take what the daemon sends.

The trial upload is a multipart upload that gets one small part and is aborted: it needs the permissions and carries
the options of every upload, and leaves no object behind.
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

from s3spool.check.lifecycle import check_lifecycle
from s3spool.check.result import CheckResult, error, ok, warning
from s3spool.check.rules import try_rules
from s3spool.errors import UploadError
from s3spool.ledger.rows import Identity, Multipart, Part
from s3spool.s3 import checksums
from s3spool.s3.content import Content
from s3spool.s3.error_table import BY_CODE
from s3spool.s3.errors import FAILURES, from_boto3
from s3spool.s3.multipart import MultipartStore
from s3spool.s3.multipart_uploads import GONE, UNSUPPORTED
from s3spool.s3.proxies import masked, proxy_of
from s3spool.s3.store import MIB, Store, look

SKEW_WARNING_S = 60
SKEW_ERROR_S = 900  # S3 refuses signatures that are older or younger
_BODY = b"s3spool check\n"
_ATTEMPTS = 3  # another region, and another checksum, are learnt from a refusal
_KEYS = BY_CODE["InvalidAccessKeyId"].hint
_DENIED = {"AccessDenied", "HTTP403"}
_NEEDLESS = {*_DENIED, "NotImplemented", "HTTP501", "MethodNotAllowed"}  # the daemon never lists objects
_NO_ETAG = "0" * 32
_EXPECTED = {"InvalidPart", "InvalidPartOrder", "EntityTooSmall", *GONE}
_NOT_TAKEN = {"NotImplemented", "HTTP501", "MalformedXML", "InvalidArgument", "InvalidRequest"}
_SOURCES = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the shared credentials file (~/.aws/credentials)",
    "config-file": f"the shared configuration file ({os.environ.get('AWS_CONFIG_FILE', '~/.aws/config')})",
    "sso": "IAM Identity Center (aws sso login)",
    "login": "aws login",
    "iam-role": "the EC2 instance's role",
    "container-role": "the container's role",
    "assume-role": "an assumed role (~/.aws/config)",
    "assume-role-with-web-identity": "a web identity token (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "custom-process": "a credential_process (~/.aws/config)",
}


def examine(store: Store, prefix: str) -> Iterator[CheckResult]:
    """Ends after the first result that makes all others pointless. `prefix` as configured, with its templates."""
    keys = store.credentials
    if keys.current is None:
        hint = "set AWS_ACCESS_KEY_ID, write ~/.aws/credentials, or give this machine a role"
        yield error("credentials", f"{keys.error or 'none found'}; {hint}")
        return
    until = f", valid until {keys.expiry:%Y-%m-%d %H:%M} UTC and then renewed" if keys.expiry else ""
    yield ok("credentials", f"from {_SOURCES.get(keys.source, keys.source or 'an unnamed provider')}{until}")
    if proxy := proxy_of(store.endpoint.url):
        yield ok("proxy", masked(proxy))
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
    if status != 200 and status < 500:  # noqa: PLR2004 - OK, and a server's own fault
        bucket = _refused_bucket(store, bucket)
    yield bucket
    if bucket.level == "error":
        return
    if store.never:
        yield _overwrite(store)
    results = _trial_upload(store)
    yield from results
    yield from try_rules(store)
    if not any(result.level == "error" for result in results):
        yield from check_lifecycle(store, prefix.partition("%")[0].partition("{")[0])


def _head_bucket(store: Store) -> tuple[Mapping[str, str], int]:
    """Headers and status of S3's answer; raises UploadError without an answer, or for a redirect elsewhere."""
    try:
        answer: Any = store.client.head_bucket(Bucket=store.bucket)
    except FAILURES as exc:
        answer = exc.response if isinstance(exc, botocore.exceptions.ClientError) else None
        redirected = answer and 300 <= answer["ResponseMetadata"]["HTTPStatusCode"] < 400  # noqa: PLR2004
        if not answer or (redirected and "x-amz-bucket-region" not in answer["ResponseMetadata"]["HTTPHeaders"]):
            raise from_boto3(exc, store.bucket, "reach") from exc
    meta = answer["ResponseMetadata"]
    return meta["HTTPHeaders"], meta["HTTPStatusCode"]


def _clock(headers: Mapping[str, str]) -> CheckResult:
    now = time.time()
    try:
        skew_s = now - parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return warning("clock", "the server does not tell the time")
    if abs(skew_s) <= SKEW_WARNING_S:
        return ok("clock", "agrees with S3's within a minute")
    text = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} S3, which refuses more than {SKEW_ERROR_S} s"
    level = error if abs(skew_s) > SKEW_ERROR_S else warning
    return level("clock", f"{text}; set it: timedatectl set-ntp true")


def _bucket(store: Store, headers: Mapping[str, str], status: int) -> CheckResult:
    region = headers.get("x-amz-bucket-region", "")
    where = f"{store.bucket} at {store.endpoint.url}"
    if status == 404:  # noqa: PLR2004 - Not Found
        return error("bucket", f"{where}: does not exist; create it or correct destination.bucket")
    if status >= 500:  # noqa: PLR2004 - a server's own fault
        return error("bucket", f"{where}: the server answered HTTP {status}; try again, or ask its operator")
    if region and region != store.endpoint.region and "amazonaws" in store.endpoint.url:
        told = f'set destination.region = "{region}"'
        return warning("bucket", f"{where}: is in {region}, not {store.endpoint.region}; {told}, it saves a detour")
    return ok("bucket", where)


def _refused_bucket(store: Store, otherwise: CheckResult) -> CheckResult:
    """The refusal of a HEAD has no reason: a GET tells wrong keys from a permission that is not needed."""
    where = f"{store.bucket} at {store.endpoint.url}"
    try:
        store.client.list_objects_v2(Bucket=store.bucket, MaxKeys=1)
    except FAILURES as exc:
        refused = from_boto3(exc, store.bucket, "list objects")
        if refused.code in _NEEDLESS:
            return ok("bucket", f"{where}: cannot list the bucket (s3:ListBucket is not granted); continuing")
        if refused.code == "NoSuchBucket" or otherwise.level == "warning":
            # Another region is learnt from the upload's answer, too.
            return otherwise
        return error("credentials" if refused.hint.startswith(_KEYS) else "bucket", _told(store, refused, where))
    return otherwise


def _overwrite(store: Store) -> CheckResult:
    if not store.asks_first:
        return ok("overwrite", "AWS refuses to replace an object (If-None-Match)")
    return ok(
        "overwrite",
        "a HEAD before each upload protects what is there, but not against a program that writes the same key in"
        " between; once the daemon has seen that the server honours If-None-Match, it leaves that to the server",
    )


def _trial_upload(store: Store) -> list[CheckResult]:
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
                return [error("upload", _told(store, exc, "CreateMultipartUpload"))]
            results: list[CheckResult] = []
            try:
                part, proof = _send_part(store, parts, upload, content)
                results.append(ok("checksum", proof))
                results += _ask(store, parts, upload, content.path)
                results += _complete(store, parts, upload, content, part)
            except UploadError as exc:
                results.append(error("upload", _told(store, exc, "UploadPart")))
            finally:
                aborted = _abort(parts, upload)
            if attempt == _ATTEMPTS or (store.algorithm, store.endpoint) == before:
                break
        # If the part was refused, a successful abort is no news.
        written = any(result.subject == "complete" for result in results)
        told = (results[0].level == "ok" and not written) or aborted.level != "ok"
        return [*([aborted] if told else []), *results]


def _send_part(store: Store, parts: MultipartStore, upload: Multipart, content: Content) -> tuple[Part, str]:
    """The part, and the proof that the store has it; raises UploadError without one."""
    sender = store.transport()
    try:
        request = parts.part_request(upload, content, 1)
        sender.prepare(request)
        sender.send()
        answer = sender.answer()
    finally:
        sender.close()
    part = parts.verify_part(upload, request, answer, 1)
    if upload.algorithm == "md5":
        return part, "the store's ETag is the MD5 of what was sent"
    if answer.headers.get(checksums.header_of(upload.algorithm)):
        return part, f"the store checks and repeats {upload.algorithm}"
    return part, f"the store does not repeat {upload.algorithm}; its ETag, the MD5, proves what was sent"


def _ask(store: Store, parts: MultipartStore, upload: Multipart, path: str) -> Iterator[CheckResult]:
    """The requests that the daemon makes after an interruption, or an answer that proves nothing."""
    try:
        parts.list_parts(upload)
    except UploadError as exc:
        grant = "grant s3:ListMultipartUploadParts, or an interrupted large file stops everything"
        if exc.code in UNSUPPORTED:
            yield warning("resume", f"ListParts: {exc.code}: an interrupted large file is sent from its beginning")
        else:
            yield error("resume", f"ListParts: {exc.code}: {exc.cause}; {grant if exc.code in _DENIED else exc.hint}")
    else:
        yield ok("resume", "may list the parts of an interrupted upload")
    try:
        look(store.client, store.bucket, upload.key, path)
    except UploadError as exc:
        denied = exc.code in _DENIED
        grant = "grant s3:GetObject and s3:ListBucket (`s3spool check --policy`)" if denied else exc.hint
        if store.never:
            yield error("confirm", f'{exc.code} for a HEAD, which destination.overwrite = "never" needs; {grant}')
        else:
            yield warning("confirm", f"{exc.code} for a HEAD: a lost answer cannot be settled by asking; {grant}")
    else:
        yield ok("confirm", "may ask for an object with HEAD")


def _complete(
    store: Store, parts: MultipartStore, upload: Multipart, content: Content, part: Part
) -> Iterator[CheckResult]:
    """A completion like a real one, which must fail: the part has another ETag."""
    if upload.algorithm == "md5" and not store.never:
        return
    try:
        parts.try_complete(upload, content, part._replace(etag=_NO_ETAG))
    except UploadError as exc:
        if exc.code in _EXPECTED:
            return
        what = [f'destination.checksum = "{store.algorithm}"'] if upload.algorithm != "md5" else []
        what += ['destination.overwrite = "never"'] if store.never else []
        if exc.code in _NOT_TAKEN:
            hint = f"the store does not take a completion with {' and '.join(what)}: change that"
            yield error("complete", f"CompleteMultipartUpload: {exc.code}: {exc.cause}; {hint}")
        else:
            yield warning("complete", _told(store, exc, "CompleteMultipartUpload, which was to fail with InvalidPart"))
    else:
        yield warning(
            "complete",
            f"the server completed an upload although its part list was wrong; remove the object {upload.key}",
        )


def _abort(parts: MultipartStore, upload: Multipart) -> CheckResult:
    where = f"a multipart upload to {upload.key}"
    try:
        parts.ask_abort(upload)
    except UploadError as exc:
        left = f"{where} (id {upload.upload_id}) stays unfinished"
        grant = "; grant s3:AbortMultipartUpload" if exc.code in _DENIED else ""
        return warning("abort", f"AbortMultipartUpload: {exc.code}: {exc.cause}; {left}{grant}")
    return ok("upload", f"{where} could be begun, was given {len(_BODY)} bytes and aborted; no object was written")


def _told(store: Store, exc: UploadError, what: str) -> str:
    """The sentence for an error; a hint that names `s3spool check` is replaced by what the check knows."""
    source = _SOURCES.get(store.credentials.source, store.credentials.source or "an unnamed provider")
    exc.hint = exc.hint.replace(_KEYS, f"the keys are from {source}: correct them there")
    exc.hint = exc.hint.replace("grant s3:PutObject on", f"grant {', '.join(store.rules.grants)} on")
    return _sentence(exc, what)


def _sentence(exc: UploadError, what: str) -> str:
    hint = f"; {exc.hint}" if exc.hint else ""
    return f"{what}: {exc.code}: {exc.cause}{hint}"
