"""`s3spool verify`: each kind of difference is found, with few requests, and can be repaired."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from s3spool.config.loader import load
from s3spool.daemon.components import store_of
from s3spool.demo.seaweed import Seaweed
from s3spool.ledger.rows import Receipt
from s3spool.ledger.store import Ledger
from s3spool.s3.verification import Verifier
from support.daemon import Daemon, Make, to_toml
from support.faults import Status
from support.faulty import FaultyS3
from support.rows import SOME

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.integration

MIB = 2**20
NAMES = ("a", "a.txt", "a/b", "sp ace+&?%.csv", "ü/ñ", "z" * 200, os.fsdecode(b"\xff"))


@pytest.fixture
def make(make: Make, faulty: FaultyS3) -> Make:
    def daemon(**sections: Any) -> Daemon:
        destination = {"endpoint_url": faulty.endpoint_url} | sections.pop("destination", {})
        return make(destination=destination, **sections)

    return daemon


def verified(daemon: Daemon, *options: str) -> tuple[int, dict[str, Any]]:
    done = daemon.cli("verify", "--json", *options)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def upload(daemon: Daemon, names: tuple[str, ...], content: bytes = b"content") -> None:
    daemon.wait_ready()
    for name in names:
        daemon.drop(name, content)
    daemon.wait_uploaded(len(names))
    assert daemon.stop() == 0


@pytest.mark.parametrize("checksum", ["auto", "md5", "sha256"])
def test_all_is_there(checksum: str, make: Make, faulty: FaultyS3) -> None:
    """One listing answers for all; a large file's ETag and checksum are those of its parts."""
    names = tuple(f"{number:03}" for number in range(50)) + tuple(name for name in NAMES if name != "a/b")
    daemon = make(destination={"checksum": checksum}, upload={"multipart_threshold": 5 * MIB, "part_size": 5 * MIB})
    with daemon:
        daemon.wait_ready()
        daemon.drop("large", bytes(11 * MIB))
        for name in names:
            daemon.drop(name)
        daemon.wait_uploaded(len(names) + 1)
        before = faulty.count()
        code, found = verified(daemon)

    assert (code, found["differences"], found["checked"]) == (0, [], len(names) + 1)
    assert faulty.count() - before == found["requests"] == 1


def test_each_difference(make: Make, faulty: FaultyS3) -> None:
    """Missing, another size, another content: named with path and key; exit code 1, and once repaired 0 again."""
    daemon = make()
    with daemon:
        upload(daemon, ("missing", "size", "content", "gone", "right"))
    client = faulty.client()
    for key in ("missing", "gone"):
        del faulty.objects[key]
    client.put_object(Bucket=faulty.bucket, Key="size", Body=b"longer than that")
    client.put_object(Bucket=faulty.bucket, Key="content", Body=b"CONTENT")
    (daemon.folder / "gone").unlink()

    code, found = verified(daemon)
    text = daemon.cli("verify")

    assert code == text.returncode == 1
    assert {row["path"]: row["kind"] for row in found["differences"]} == {
        "missing": "missing",
        "gone": "missing",
        "size": "size",
        "content": "content",
    }
    assert (found["checked"], found["different"], found["repaired"]) == (5, 4, 0)
    assert "size     size  size: 16 bytes, but 7 were sent\n" in text.stdout
    assert "5 receipts in " in text.stdout
    with daemon:
        daemon.wait_ready()
        code, found = verified(daemon, "--repair")
        assert (code, found["repaired"]) == (1, 3)
        daemon.wait_uploaded(5 + 3)
        code, found = verified(daemon)
    assert [row["path"] for row in found["differences"]] == ["gone"]
    assert {key: faulty.objects[key].body for key in ("missing", "size", "content")} == dict.fromkeys(
        ("missing", "size", "content"), b"content"
    )


def test_without_the_right_to_list(make: Make, faulty: FaultyS3) -> None:
    """A HEAD each; an object that may not be looked at is a difference of its own."""
    daemon = make()
    with daemon:
        upload(daemon, ("a", "b", "c"))
    faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match="GET .*list-type")
    code, found = verified(daemon)
    assert (code, found["checked"], found["requests"]) == (0, 3, 4)

    faulty.script(Status(code=403), times=None, match="HEAD .*b$")
    code, found = verified(daemon)

    assert code == 1
    assert [(row["path"], row["kind"]) for row in found["differences"]] == [("b", "unknown")]


def test_unreachable_and_unknown(make: Make, faulty: FaultyS3) -> None:
    """One line and exit code 1 where S3 is not there; no receipts are no error; others' receipts do not count."""
    daemon = make()
    daemon.config_path.write_text(to_toml(daemon.config))
    assert (daemon.cli("verify").returncode, daemon.cli("verify").stdout) == (0, "there are no receipts\n")
    assert verified(daemon)[1]["checked"] == 0
    with daemon:
        upload(daemon, ("a",))
    daemon.config["destination"]["prefix"] = "elsewhere/"
    (daemon.folder / "a").unlink()
    with daemon:
        daemon.drop("b")
        daemon.wait_event("file.uploaded", path="b")
        code, found = verified(daemon)
    assert (code, found["checked"], found["other_destination"]) == (0, 1, 1)

    faulty.go_down()
    refused = daemon.cli("verify")
    faulty.come_up()

    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


def test_few_among_many(faulty: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other objects lie between, a HEAD each costs fewer requests than listing them all."""
    client = faulty.client()
    client.put_object(Bucket=faulty.bucket, Key="template", Body=b"x")
    template = faulty.objects["template"]
    for number in range(3000):
        faulty.objects[f"{number:05}"] = template
    for name, value in faulty.environment().items():
        monkeypatch.setenv(name, value)
    config = load(
        None,
        overrides={"destination.bucket": faulty.bucket, "destination.endpoint_url": faulty.endpoint_url},
        environ={"HOME": str(tmp_path)},
    )
    verifier = Verifier(store_of(config))
    etag = template.etag.strip('"')

    def receipt(number: int) -> Receipt:
        identity = SOME._replace(size=1)
        return Receipt(f"{number}", identity, 1, f"{number:05}", etag, "", "", 0.0, 0.0, "keep")

    unverified, requests = verifier.unverified([receipt(number) for number in range(0, 3000, 1000)])
    assert (len(unverified), requests) == (2, 1)
    assert [verifier.look(one) for one in unverified] == [None, None]
    unverified, requests = verifier.unverified([receipt(number) for number in range(0, 3000, 3)])
    assert (unverified, requests) == ([], 3)


@pytest.mark.parametrize("sample", [1, 5, 1000])
def test_sample(sample: int, make: Make) -> None:
    """As many as asked for, or all."""
    daemon = make()
    with daemon:
        upload(daemon, tuple("abcdefghij"))

    code, found = verified(daemon, "--sample", str(sample))

    assert (code, found["checked"]) == (0, min(10, sample))


def test_odd_names_in_a_real_store(tmp_path: Path, seaweed: Seaweed, bucket: str, s3: S3Client) -> None:
    """Its order of keys is not S3's: what a listing does not show is asked for before it is called missing."""
    daemon = Daemon(tmp_path, seaweed, bucket=bucket)
    names = ("b", "b.txt", "c/d", "c.txt", "sp ace+&?%.csv", "ü/ñ", "z" * 200, os.fsdecode(b"\xff"))
    with daemon:
        upload(daemon, names)
    assert verified(daemon)[:1] == (0,)
    s3.delete_object(Bucket=bucket, Key="c/d")

    code, found = verified(daemon)

    assert code == 1
    assert [(row["path"], row["kind"]) for row in found["differences"]] == [("c/d", "missing")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundred_thousand_receipts(tmp_path: Path, seaweed: Seaweed, bucket: str) -> None:
    """Within a minute, and with a hundred requests and a few."""
    count = int(os.environ.get("S3SPOOL_TEST_FILES", "100000"))
    daemon = Daemon(tmp_path, seaweed, bucket=bucket, after={"action": "delete"})
    for number in range(count):
        directory = daemon.folder / f"{number // 1000:03}"
        directory.mkdir(exist_ok=True)
        (directory / f"{number:06}").write_bytes(b"x")
    with daemon:
        daemon.wait_ready()
        assert daemon.cli("wait", timeout_s=600).returncode == 0
        assert daemon.stop() == 0
    began = time.monotonic()
    done = daemon.cli("verify", "--json", timeout_s=300)
    duration_s = time.monotonic() - began
    found = json.loads(done.stdout)

    print(found["requests"], duration_s)  # noqa: T201 - for a person
    assert (done.returncode, found["checked"], found["differences"]) == (0, count, [])
    assert found["requests"] < count / 500


def test_receipts_of_a_ledger_are_paged(tmp_path: Path) -> None:
    """No read transaction outlives a page, however many receipts there are."""
    from s3spool.cli.verify import BATCH, Verification  # noqa: PLC0415 - beside its only use
    from s3spool.ledger.reader import Reader  # noqa: PLC0415 - the same

    ledger = Ledger(tmp_path / "ledger.sqlite3", destination="here")
    ledger.start()
    for number in range(2 * BATCH + 5):
        ledger.record_receipt(
            Receipt(f"{number:06}", SOME, ledger.destination, f"{number}", "e", "", "", 0.0, 0.0, "keep"), lambda: None
        )
    assert ledger.close(10)

    with Reader(tmp_path / "ledger.sqlite3") as reader:
        run = Verification(reader, None, ledger.destination, None)  # type: ignore[arg-type] # nobody is asked
        pages = [len(page) for page in run._pages()]

    assert pages == [BATCH, BATCH, 5]
