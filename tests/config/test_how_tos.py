"""The examples of docs/howto.md, run: a static site, logs by date and class, a WORM archive."""

from __future__ import annotations

import re
import socket
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from s3spool.demo.seaweed import Seaweed
from support.daemon import Daemon

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.integration

MANUAL = Path(__file__).parents[2] / "docs" / "howto.md"


def uploaded(example: str, names: list[str], home: Path, seaweed: Seaweed, bucket: str) -> dict[str, str]:
    """Run the example behind this heading, with folder and bucket of the test; the key of each file."""
    _, _, behind = MANUAL.read_text(encoding="utf-8").partition(f"## {example}\n")
    found = re.search(r"^```toml\n(.*?)^```$", behind, re.MULTILINE | re.DOTALL)
    assert found is not None
    tables = tomllib.loads(found[1])
    daemon = Daemon(home, seaweed, bucket=bucket, **tables)
    daemon.config["watch"]["directory"] = str(daemon.folder)
    daemon.config["destination"] |= {"bucket": bucket, "endpoint_url": seaweed.endpoint_url}
    for of_aws in ("sse", "kms_key_id"):
        daemon.config["destination"].pop(of_aws, None)
    with daemon:
        daemon.wait_ready()
        for name in names:
            daemon.drop(name, name.encode())
        daemon.wait_uploaded(len(names))
        return {event["path"]: event["key"] for event in daemon.events("file.uploaded")}


def head(s3: S3Client, bucket: str, key: str) -> dict[str, Any]:
    return dict(s3.head_object(Bucket=bucket, Key=key))


def test_a_static_site(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """Each file has its type and the right time to live."""
    uploaded("A static site", ["index.html", "assets/app-3f2a.js", "assets/logo.svg"], tmp_path, seaweed, bucket)

    page, script, logo = (head(s3, bucket, key) for key in ("index.html", "assets/app-3f2a.js", "assets/logo.svg"))
    assert (page["ContentType"], page["CacheControl"]) == ("text/html; charset=utf-8", "no-cache")
    assert script["ContentType"] == "text/javascript; charset=utf-8"
    assert script["CacheControl"] == "public, max-age=31536000, immutable"
    assert logo["ContentType"] == "image/svg+xml"


def test_logs_by_date_and_class(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """Keys by host and date; packed logs in a cheaper class, with a tag; the folder is empty afterwards."""
    keys = uploaded("Logs by date and class", ["app.log", "app.log.1.gz"], tmp_path, seaweed, bucket)

    day = datetime.now(UTC)
    expected = {f"{socket.gethostname()}/{it:%Y/%m/%d}/app.log.1.gz" for it in (day, day - timedelta(minutes=5))}
    assert keys["app.log.1.gz"] in expected
    packed, plain = head(s3, bucket, keys["app.log.1.gz"]), head(s3, bucket, keys["app.log"])
    assert (packed["StorageClass"], packed["ContentType"]) == ("STANDARD_IA", "application/gzip")
    assert plain.get("StorageClass", "STANDARD") == "STANDARD"
    tags = s3.get_object_tagging(Bucket=bucket, Key=keys["app.log.1.gz"])["TagSet"]
    assert tags == [{"Key": "class", "Value": "archive"}]


def test_a_worm_archive(tmp_path: Path, seaweed: Seaweed, s3: S3Client) -> None:
    """Each object is locked for ten years, and says where it comes from."""
    bucket = "worm-how-to"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    uploaded("A WORM archive", ["2026/record.pdf"], tmp_path, seaweed, bucket)

    record = head(s3, bucket, "2026/record.pdf")
    assert record["ObjectLockMode"] == "COMPLIANCE"
    assert timedelta(days=3649) < record["ObjectLockRetainUntilDate"] - datetime.now(UTC) <= timedelta(days=3651)
    assert record["Metadata"]["source"] == f"{socket.gethostname()}:2026/record.pdf"
    assert record["Metadata"]["owner"]
    with pytest.raises(s3.exceptions.ClientError):
        s3.delete_object(Bucket=bucket, Key="2026/record.pdf", VersionId=record["VersionId"])
