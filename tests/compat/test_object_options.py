"""moto keeps what each rule says of its objects: headers, class, tags, metadata, lock."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from compat.servers import Moto
from support.daemon import Daemon
from support.objects import content_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.compat, pytest.mark.skipif(bool(Moto.missing()), reason=Moto.missing())]

PART = 5 * 1024**2
BUCKET = "locked"


def test_moto_keeps_what_rules_say(tmp_path: Path) -> None:
    """A small and a large file each, in a bucket with object lock."""
    (tmp_path / "moto").mkdir()
    rule: list[dict[str, Any]] = [
        {
            "match": ["*.html"],
            "prefix": "site/",
            "cache_control": "max-age=60",
            "content_disposition": "inline",
            "content_language": "de",
            "storage_class": "STANDARD_IA",
            "tags": {"kind": "page"},
        },
        {"match": ["*.bin"], "object_lock_mode": "GOVERNANCE", "object_lock_days": 7, "legal_hold": True},
    ]
    with Moto(tmp_path / "moto") as server, closing(server.client()) as s3:
        s3.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        with Daemon(
            tmp_path,
            bucket=BUCKET,
            environment=server.environment(),
            upload={"multipart_threshold": PART, "part_size": PART},
            destination={"endpoint_url": server.endpoint_url, "requester_pays": True},
            rule=rule,
        ) as daemon:
            daemon.wait_ready()
            daemon.drop("s.html", b"<p>")
            daemon.drop("s.bin", b"1")
            daemon.drop("l.html", content_of(PART + 1))
            daemon.drop("l.bin", content_of(PART + 1))
            daemon.wait_uploaded(4)

        for key in ("site/s.html", "site/l.html"):
            head = s3.head_object(Bucket=BUCKET, Key=key)
            assert (head["CacheControl"], head["ContentDisposition"]) == ("max-age=60", "inline")
            assert (head["ContentLanguage"], head["StorageClass"]) == ("de", "STANDARD_IA")
            assert head["ContentType"].startswith("text/html")
            assert s3.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"] == [{"Key": "kind", "Value": "page"}]
        head = s3.head_object(Bucket=BUCKET, Key="s.bin")  # of objects in parts moto forgets the lock
        assert (head["ObjectLockMode"], head["ObjectLockLegalHoldStatus"]) == ("GOVERNANCE", "ON")
        assert abs(head["ObjectLockRetainUntilDate"] - datetime.now(UTC) - timedelta(days=7)) < timedelta(minutes=5)
