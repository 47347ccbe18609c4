"""The helpers themselves: a test is worth what it stands on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import (
    ClientError,
    HTTPClientError,
)

from s3spool.demo import seaweed as seaweed_module
from s3spool.demo.seaweed import Seaweed, SeaweedError
from support import faults
from support.daemon import Daemon, to_toml
from support.faulty import FaultyS3, make_certificate
from support.leaks import child_processes
from support.objects import folder_files, keys, objects
from support.s3_messages import checksum, md5_hex
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


BODY = b"content " * 1000


@pytest.fixture
def client(faulty: FaultyS3) -> Iterator[S3Client]:
    s3 = faulty.client(read_timeout=5, max_pool_connections=150)
    yield s3
    s3.close()


def put(s3: S3Client, key: str = "a", **more: Any) -> str:
    return s3.put_object(Bucket="test-bucket", Key=key, Body=BODY, **more)["ETag"]


def error_code(failure: pytest.ExceptionInfo[ClientError]) -> str:
    return failure.value.response["Error"]["Code"]


# --- Seaweed


@pytest.mark.integration
def test_seaweed_keeps_what_it_was_given(s3: S3Client, bucket: str) -> None:
    """Objects come back as they went, past one page of a listing."""
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda n: s3.put_object(Bucket=bucket, Key=f"d/{n:04}", Body=b"%d" % n), range(1050)))

    assert len(keys(s3, bucket)) == 1050
    assert objects(s3, bucket, "d/000") == {f"d/000{n}": b"%d" % n for n in range(10)}


@pytest.mark.integration
def test_seaweed_tells_its_environment_and_hides_its_credentials(seaweed: Seaweed) -> None:
    """The daemon needs nothing but the environment; nobody else may read the keys."""
    assert seaweed.environment()["AWS_ENDPOINT_URL_S3"] == seaweed.endpoint_url
    assert (seaweed.data_directory / "s3.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.integration
def test_seaweed_names_a_port_in_use(seaweed: Seaweed, tmp_path: Path) -> None:
    """A fixed port is not exchanged for another one behind one's back."""
    other = Seaweed(tmp_path, port=seaweed.port, access_key="AKTEST", secret_key="test-secret")  # noqa: S106 - loopback

    with pytest.raises(SeaweedError, match=f"port {seaweed.port} is in use"):
        other.start()


def test_seaweed_shows_the_end_of_the_log_of_a_server_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason stands in the message, not only in a file."""
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho no space on device\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(seaweed_module, "_find_weed", lambda: program)

    with pytest.raises(SeaweedError, match=r"no space on device .*weed\.log"):
        Seaweed(tmp_path / "data", access_key="a", secret_key="b").start()  # noqa: S106 - loopback


# --- FaultyS3 behaving well


def test_faulty_stores_and_answers_as_s3_does(faulty: FaultyS3, client: S3Client) -> None:
    """PUT, HEAD, GET, LIST and HEAD of the bucket agree with each other."""
    etag = put(client, "d/a b+ü", ChecksumAlgorithm="CRC64NVME", Metadata={"mtime": "1"})
    head = client.head_object(Bucket="test-bucket", Key="d/a b+ü", ChecksumMode="ENABLED")

    assert etag == head["ETag"] == f'"{md5_hex(BODY)}"'
    assert head["ChecksumCRC64NVME"] == checksum("crc64nvme", BODY)
    assert (head["ContentLength"], head["Metadata"]) == (len(BODY), {"mtime": "1"})
    assert objects(client, "test-bucket") == faulty.contents() == {"d/a b+ü": BODY}
    assert client.head_bucket(Bucket="test-bucket")["BucketRegion"] == "us-east-1"
    assert faulty.requests[0].received_bytes == len(BODY)
    assert faulty.count("^PUT d/") == 1
    assert faulty.connections == 1, "keep-alive"


def test_faulty_refuses_what_s3_refuses(faulty: FaultyS3, client: S3Client) -> None:
    """A wrong digest, a taken key, another bucket, a clock that is off."""
    put(client)
    cases: list[tuple[str, dict[str, str]]] = [
        ("BadDigest", {"ChecksumCRC64NVME": "AAAAAAAAAAA="}),
        ("BadDigest", {"ContentMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}),
        ("PreconditionFailed", {"IfNoneMatch": "*"}),
    ]

    for code, arguments in cases:
        with pytest.raises(ClientError) as failure:
            put(client, **arguments)
        assert error_code(failure) == code
    with pytest.raises(ClientError) as failure:
        client.list_objects_v2(Bucket="another")
    assert error_code(failure) == "NoSuchBucket"
    faulty.set_date_skew(1000)
    with pytest.raises(ClientError) as failure:
        put(client)
    assert error_code(failure) == "RequestTimeTooSkewed"


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256"])
def test_faulty_assembles_parts(faulty: FaultyS3, client: S3Client, algorithm: Any) -> None:
    """Create, upload, list, complete; the whole's ETag and checksum follow S3's rules."""
    place: dict[str, Any] = {"Bucket": "test-bucket", "Key": "large"}
    upload_id = client.create_multipart_upload(**place, ChecksumAlgorithm=algorithm)["UploadId"]
    for number in (1, 2, 3):
        client.upload_part(**place, UploadId=upload_id, PartNumber=number, Body=BODY, ChecksumAlgorithm=algorithm)
    assert client.list_multipart_uploads(Bucket="test-bucket")["Uploads"][0]["UploadId"] == upload_id
    pages = client.get_paginator("list_parts").paginate(**place, UploadId=upload_id, PaginationConfig={"PageSize": 2})
    parts: list[Any] = [
        {"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for page in pages for part in page["Parts"]
    ]

    done = client.complete_multipart_upload(**place, UploadId=upload_id, MultipartUpload={"Parts": parts})

    assert faulty.contents() == {"large": 3 * BODY}
    assert done["ETag"].endswith('-3"')
    if algorithm == "CRC64NVME":
        assert done["ChecksumCRC64NVME"] == checksum("crc64nvme", 3 * BODY)
    with pytest.raises(ClientError) as failure:
        client.abort_multipart_upload(**place, UploadId=upload_id)
    assert error_code(failure) == "NoSuchUpload"


def test_faulty_speaks_tls_and_aws_chunked(tmp_path: Path) -> None:
    """Over TLS boto3 sends its checksum as a trailer in S3's own framing."""
    certificate, key = make_certificate(tmp_path)

    with FaultyS3(certificate=(certificate, key)) as server:
        s3 = server.client(ca_bundle=certificate)
        put(s3, ChecksumAlgorithm="CRC32")
        s3.close()

        assert server.contents() == {"a": BODY}
        assert server.objects["a"].checksums == {"x-amz-checksum-crc32": checksum("crc32", BODY)}
        assert server.requests[0].received_bytes > len(BODY)


# --- FaultyS3 misbehaving


def test_status_says_what_it_was_told_then_stops(faulty: FaultyS3, client: S3Client) -> None:
    """`times` and `match` bound a fault."""
    faulty.script(
        faults.Status(code=503, error_code="SlowDown", headers={"Retry-After": "7"}), times=2, match="^PUT a$"
    )

    put(client, "b")
    for _ in range(2):
        with pytest.raises(ClientError) as failure:
            put(client)
        assert error_code(failure) == "SlowDown"
        assert failure.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"
    put(client)
    assert sorted(faulty.contents()) == ["a", "b"]


def test_delay_and_silence_do_not_hold_up_the_server_stop() -> None:
    """A test that fails in the middle of a fault still ends at once."""
    server = FaultyS3().start()
    server.script(faults.Delay(60), match="slow")
    server.script(faults.Silent(), match="silent")
    server.script(faults.HoldUntil(), match="held")
    s3 = server.client()

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(put, s3, key) for key in ("slow", "silent", "held")]
        eventually(lambda: server.in_flight == 3, message="all three wait")
        server.stop()
        for answer in answers[:2]:
            assert isinstance(answer.exception(), HTTPClientError)
    s3.close()


# --- Daemon, waiting, leaks


def test_daemon_reads_its_events_back_past_torn_lines(tmp_path: Path) -> None:
    """Half a line of a killed run and a traceback are not events."""
    daemon = Daemon(tmp_path, bucket="b", watch={"exclude": ["*.x"]}, log={"level": "debug"})
    lines = ['{"event":"daemon.ready"}', "Traceback: boom", '{"event":"file.uploaded","path":"a"}']
    daemon.log_path.write_text("\n".join([*lines, '{"event":"file.up']))

    assert [event["event"] for event in daemon.events()] == ["daemon.ready", "file.uploaded"]
    assert daemon.events("file.uploaded", path="a") == [{"event": "file.uploaded", "path": "a"}]
    assert daemon.events("file.uploaded", path="b") == []
    daemon.drop("sub/file", b"1")
    assert folder_files(daemon.folder) == {"sub/file": b"1"}


def test_toml_writer_is_read_back_by_the_real_reader() -> None:
    """Odd strings too: the config tests depend on it."""
    import tomllib  # noqa: PLC0415 - only here

    tables = {"a": {"b": 'q"\\\n\x7f\x01ü', "c": [1, 2.5, True], "d": {"x y": "z"}}, "e": {}}

    assert tomllib.loads(to_toml(tables)) == tables


def test_eventually_says_what_did_not_happen() -> None:
    """The message and the last value are in the failure."""
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: a miracle; last value: 0"):
        eventually(lambda: 0, timeout_s=0.01, message="a miracle")


LEAKY = """
import subprocess, threading
EVENT = threading.Event()
def test_thread(): threading.Thread(target=EVENT.wait, name="forgotten").start()
def test_child(): globals()["CHILD"] = subprocess.Popen(["sleep", "60"])
def test_end(): EVENT.set(); CHILD.kill(); CHILD.wait()
def test_clean(): pass
"""


def test_leaks_fail_the_test_that_made_them(tmp_path: Path) -> None:
    """A thread and a process, each by name, and the tests after them pass."""
    here = Path(__file__).parents[1]
    (tmp_path / "conftest.py").write_text((here / "conftest.py").read_text())
    (tmp_path / "test_leaky.py").write_text(LEAKY)

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(here)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "2 errors" in run.stdout or "errors=2" in run.stdout, run.stdout
    assert "left running: thread forgotten" in run.stdout
    assert "sleep 60" in run.stdout


def test_child_processes_sees_a_child_and_a_zombie() -> None:
    """A process nobody waited for is a leak as well."""
    with subprocess.Popen(["sleep", "60"]) as child:
        eventually(lambda: child_processes().get(child.pid) == "sleep 60", message="its command line is seen")
        child.send_signal(signal.SIGKILL)
        eventually(lambda: child_processes().get(child.pid) == "(zombie)", message="it becomes a zombie")
    assert child.pid not in child_processes()
