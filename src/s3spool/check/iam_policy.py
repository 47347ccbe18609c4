"""The least IAM policy with which the daemon works, for `s3spool check --policy`."""

from __future__ import annotations

import json
import re
from typing import Any

from s3spool.config.loader import require_bucket
from s3spool.config.schema import Config
from s3spool.daemon.components import store_of
from s3spool.folder.rules import FileRules
from s3spool.s3.object_rules import ObjectRules

_TEMPLATE = re.compile(r"%%|\{hostname\}|%.")
_ESCAPED = str.maketrans({"*": "${*}", "?": "${?}", "$": "${$}"})  # else they are wildcards and variables


def policy(config: Config) -> str:
    """JSON. Raises ConfigError without a bucket, or where the profile does not exist."""
    require_bucket(config)
    service, bucket_arn, objects_arn = _arns(config)
    destination, kinds = config.destination, FileRules(config).destinations
    grants = [grant.removeprefix("s3:") for grant in ObjectRules(kinds).grants]
    writing = [*grants, "AbortMultipartUpload", "ListMultipartUploadParts"]
    patterns = sorted({f"{objects_arn}{_pattern(kind.prefix)}" for kind in kinds})
    objects = patterns[0] if len(patterns) == 1 else patterns
    statements: list[dict[str, Any]] = [
        _statement("Upload", service, writing, objects),
        # HEAD settles a lost answer or a 412. Without ListBucket S3 answers 403 for a missing object; a HEAD has no
        # prefix for a condition.
        _statement("Confirm", service, ["GetObject"], objects),
        _statement("TellAbsentFromForbidden", service, ["ListBucket"], bucket_arn),
    ]
    if destination.sse == "aws:kms" and destination.kms_key_id:
        statements.append(_kms(destination.kms_key_id, bucket_arn.split(":")[1]))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2, ensure_ascii=False)


def _statement(sid: str, service: str, actions: list[str], resource: str | list[str]) -> dict[str, Any]:
    return {
        "Sid": sid,
        "Effect": "Allow",
        "Action": [f"{service}:{action}" for action in actions],
        "Resource": resource,
    }


def _arns(config: Config) -> tuple[str, str, str]:
    """The service, what is listed, and what the keys are appended to."""
    bucket = config.destination.bucket
    if bucket.startswith("arn:"):
        head, name = bucket.split(":", 5)[:5], bucket.split(":", 5)[5].replace(":", "/")
        arn = f"{':'.join(head)}:{name}"
        return head[2], arn, f"{arn}/object/"
    arn = f"arn:{_partition(config)}:s3:::{bucket}"
    return "s3", arn, f"{arn}/"


def _partition(config: Config) -> str:
    """`aws`, or `aws-cn`, `aws-us-gov`..., from the region."""
    return str(store_of(config).client.meta.partition)


def _pattern(prefix: str) -> str:
    """The prefix as a policy's pattern: literal up to the first template, then anything."""
    literal = ""
    position = 0
    for template in _TEMPLATE.finditer(prefix):
        literal += prefix[position : template.start()]
        if template[0] != "%%":
            return _escaped(literal) + "*"
        literal += "%"
        position = template.end()
    return _escaped(literal + prefix[position:]) + "*"


def _escaped(text: str) -> str:
    # A policy's text is Latin-1; a wildcard stands for what is not.
    return "".join(char if char <= "\xff" else "*" for char in text.translate(_ESCAPED))


def _kms(key: str, partition: str) -> dict[str, Any]:
    """S3 encrypts with the caller's permission; parts, and a HEAD that shows checksums, need it to decrypt, too."""
    anywhere = f"arn:{partition}:kms:*:*:key/"
    statement = _statement("Encrypt", "kms", ["GenerateDataKey", "Decrypt"], f"{anywhere}{key}")
    region, account, name = "*", "*", key
    if key.startswith("arn:"):
        region, account, name = key.split(":", 5)[3:]
    if name.startswith("alias/"):
        # An alias is no resource of these actions, only a condition on the key that has it.
        statement["Resource"] = f"arn:{partition}:kms:{region}:{account}:key/*"
        statement["Condition"] = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": name}}
    elif key.startswith("arn:"):
        statement["Resource"] = key
    return statement
