"""What is in a bucket, and what is in a folder, in a form that compares with `==`."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


def content_of(size: int, seed: int = 0) -> bytes:
    """The same bytes for the same arguments, and no two parts of it alike."""
    return random.Random(seed).randbytes(size)


def keys(s3: S3Client, bucket: str, prefix: str = "") -> set[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def objects(s3: S3Client, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Every object's content by key."""
    return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys(s3, bucket, prefix)}


def folder_files(directory: Path) -> dict[str, bytes]:
    """Every regular file's content by relative path; symlinks are not followed, what goes meanwhile is not there."""
    found: dict[str, bytes] = {}
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found
