"""What counts as proof: every kind of answer, and what the store makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from logging import DEBUG
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from s3.conftest import StoreAt
from s3spool.errors import ConfigError, Scope, UploadError
from s3spool.s3 import checksums
from s3spool.s3 import store as store_module
from s3spool.s3.client import Found
from s3spool.s3.content import NeedsVerificationError, Stored
from s3spool.s3.options import mtime_text
from s3spool.s3.store import Store
from s3spool.s3.transport import Answer
from support.faults import (
    EmptyOk,
    Endless,
    Fault,
    HoldUntil,
    HtmlOk,
    LoseAnswer,
    Redirect,
    Status,
    Truncated,
    WrongChecksum,
    WrongEtag,
)
from support.faulty import FaultyS3
from support.s3_messages import Answer as Reply
from support.stores import content, destination, put, store_of, use
from support.waiting import eventually

BODY = b"content of the file"
OTHER = b"content of another"
MD5 = checksums.md5_hex(checksums.of_bytes("md5", BODY))
SUM = {name: checksums.of_bytes(name, BODY) for name in ("crc64nvme", "crc32", "sha256", "md5")}
WRONG = {name: checksums.of_bytes(name, OTHER) for name in SUM}
KMS_ETAG = "0123456789abcdef0123456789abcdef"
URL = "http://127.0.0.1:9"
KEYS = {"AWS_ACCESS_KEY_ID": "AKSTORE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


def found(size: int = len(BODY), etag: str = "", **sums: str) -> Found:
    return Found(size, etag, sums, "v2")


def echo(algorithm: str, value: str = "", etag: str = "") -> dict[str, str]:
    """The headers of an answer that repeats the checksum."""
    return {f"x-amz-checksum-{algorithm}": value or SUM[algorithm], "etag": f'"{etag}"'}


STORED = "stored"
ASK = "stored after a HEAD"
READ = "stored after another look at the file"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer; `head` is what a HEAD would say."""

    name: str
    checksum: str = "auto"
    overwrite: str = "allow"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    head: Found | None = None
    memory: str  # what follows where the content is in memory: a state above, or the error's code
    disk: str = ""  # the same, where it is not in memory
    scope: Scope = Scope.UNKNOWN
    permanent: bool = False
    algorithm: str = ""  # what the next request takes


ETAG = {"etag": f'"{MD5}"'}
CASES = [
    Case(name="checksum repeated", headers=echo("crc64nvme", etag=MD5), memory=STORED),
    Case(name="checksum repeated without an ETag", headers=echo("crc64nvme"), memory=STORED),
    Case(name="checksum repeated, ETag of a KMS key", headers=echo("crc64nvme", etag=KMS_ETAG), memory=STORED),
    Case(name="crc32 repeated", checksum="crc32", headers=echo("crc32"), memory=STORED),
    Case(name="sha256 repeated", checksum="sha256", headers=echo("sha256"), memory=STORED),
    Case(name="wrong checksum", headers=echo("crc64nvme", WRONG["crc64nvme"], MD5), memory="BadDigest"),
    Case(name="cut checksum", headers=echo("crc64nvme", "AAA", MD5), memory="BadDigest"),
    Case(name="checksum of another algorithm", headers=echo("crc32", etag=KMS_ETAG), memory="Unconfirmed"),
    # The ETag is the MD5.
    Case(name="md5 is the ETag", checksum="md5", headers=ETAG, memory=STORED),
    Case(name="auto falls back to md5", headers=ETAG, memory=STORED, disk=READ, algorithm="md5"),
    Case(name="a chosen algorithm stays", checksum="crc32", headers=ETAG, memory=STORED, disk=READ),
    Case(name="ETag without quotes", checksum="md5", headers={"etag": MD5}, memory=STORED),
    # Neither: only a HEAD can tell.
    Case(name="weak ETag", headers={"etag": f'W/"{MD5}"'}, head=found(etag=MD5), memory=ASK),
    Case(name="empty 200, HEAD has the checksum", head=found(crc64nvme=SUM["crc64nvme"]), memory=ASK),
    Case(name="empty 200, HEAD has the MD5", head=found(etag=MD5), memory=ASK),
    Case(name="md5, KMS, HEAD has nothing", checksum="md5", headers={"etag": KMS_ETAG},
         head=found(etag=KMS_ETAG), memory="Unconfirmed"),
    Case(name="KMS, HEAD has the checksum", headers={"etag": KMS_ETAG},
         head=found(etag=KMS_ETAG, crc64nvme=SUM["crc64nvme"]), memory=ASK),
    Case(name="wrong ETag, HEAD is right", checksum="md5", headers={"etag": "0" * 32},
         head=found(etag=MD5), memory=ASK),
    Case(name="wrong ETag, HEAD as well", checksum="md5", headers={"etag": "0" * 32},
         head=found(etag="0" * 32), memory="Unconfirmed"),
    Case(name="HEAD has another checksum", head=found(crc64nvme=WRONG["crc64nvme"]), memory="Unconfirmed"),
    Case(name="HEAD has another size", head=found(size=3, crc64nvme=SUM["crc64nvme"]), memory="Unconfirmed"),
    Case(name="HEAD finds nothing", memory="Unconfirmed"),
    Case(name="a portal's page", headers={"content-type": "text/html"}, body=b"<html>Log in", memory="Unconfirmed"),
    Case(name="an error in a 200", body=b"<Error><Code>SlowDown</Code></Error>", memory="Unconfirmed"),
    Case(name="the checksum in a 201", status=201, headers=echo("crc64nvme", etag=MD5), memory="HTTP201"),
    Case(name="the checksum in a 204", status=204, headers=echo("crc64nvme", etag=MD5), memory="HTTP204"),
    Case(name="the checksum in a 500", status=500, headers=echo("crc64nvme", etag=MD5), memory="HTTP500"),
    # Asked not to replace anything.
    Case(name="412, own content by checksum", overwrite="never", status=412,
         head=found(crc64nvme=SUM["crc64nvme"]), memory=ASK),
    Case(name="412, own content by MD5", overwrite="never", status=412, head=found(etag=MD5), memory=ASK),
    Case(name="412, same size, other content", overwrite="never", status=412,
         head=found(crc64nvme=WRONG["crc64nvme"], etag=WRONG["md5"]),
         memory="PreconditionFailed", scope=Scope.FILE, permanent=True),
    Case(name="412, other size", overwrite="never", status=412, head=found(size=1),
         memory="PreconditionFailed", scope=Scope.FILE, permanent=True),
    Case(name="412, gone meanwhile", overwrite="never", status=412, memory="HTTP412"),
    Case(name="412 that nobody asked for", status=412, memory="HTTP412"),
    # The store does not take the checksum: md5 for the next request, this file again.
    Case(name="checksum header refused", status=400,
         body=b"<Error><Code>InvalidRequest</Code><Message>unknown checksum x</Message></Error>",
         memory="InvalidRequest", permanent=True, algorithm="md5"),
    Case(name="checksum header not implemented", status=501,
         body=b"<Error><Code>NotImplemented</Code><Message>A header implies</Message></Error>",
         memory="NotImplemented", scope=Scope.EVERYBODY, algorithm="md5"),
    Case(name="another option not implemented", checksum="md5", status=501,
         body=b"<Error><Code>NotImplemented</Code></Error>", memory="NotImplemented", scope=Scope.EVERYBODY),
    Case(name="a chosen checksum refused", checksum="sha256", status=400,
         body=b"<Error><Code>InvalidRequest</Code><Message>unknown checksum x</Message></Error>",
         memory="InvalidRequest", permanent=True),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    use(KEYS, monkeypatch)


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_an_answer_proves(case: Case, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for stored but what answer or HEAD prove; where only a HEAD can tell, it waits for leave."""
    asked: list[str] = []

    def look(*_: object) -> Found | None:
        asked.append(case.name)
        return case.head

    monkeypatch.setattr(store_module, "look", look)
    store = store_of("curl", destination("b", URL, checksum=case.checksum, overwrite=case.overwrite))
    was = store.algorithm
    expected = case.memory if in_memory else case.disk or case.memory
    answer = Answer(case.status, case.headers, case.body, None)
    with content(tmp_path / "f", BODY, in_memory=in_memory) as file:
        request = store.request(file)
        try:
            results: Stored | UploadError | None = store.verify(file, request, answer, may_verify=False)
        except NeedsVerificationError:
            results = None
            assert not asked
        except UploadError as exc:
            results = exc
        if results is None:
            try:
                results = store.verify(file, request, answer, may_verify=True)
            except UploadError as exc:
                results = exc
            assert expected == READ or asked
        else:
            assert expected not in {ASK, READ}

    if expected in {STORED, ASK, READ}:
        assert not isinstance(results, UploadError)
        assert (results.key, results.checksum) == ("f", f"{was}:{SUM[was]}")
        assert bool(asked) == (expected == ASK)
    else:
        assert isinstance(results, UploadError)
        assert (results.code, results.scope, results.permanent) == (expected, case.scope, case.permanent)
        assert results.path == "f"
        assert results.retry_immediately == ("checksum header" in case.name)
    assert store.algorithm == (case.algorithm or was)


@pytest.mark.parametrize("late", [400, 501])
def test_those_in_flight_when_the_checksum_was_refused_go_again_too(late: int, tmp_path: Path) -> None:
    """A hundred workers hear the refusal after the first one changed the algorithm: each sends again."""
    store = store_of("curl", destination("b", URL))
    refusal = b"<Error><Code>%s</Code><Message>checksum</Message></Error>"
    answer = Answer(late, {}, refusal % (b"InvalidRequest" if late == 400 else b"NotImplemented"), None)
    with content(tmp_path / "f", BODY, in_memory=True) as file:
        requests = [store.request(file) for _ in range(3)]
        errors = [_refused(store, file, request, answer) for request in requests]
        again = store.request(file)

    assert [error.retry_immediately for error in errors] == [True] * 3
    assert dict(again.headers)["Content-MD5"] == SUM["md5"]


@pytest.mark.parametrize(
    ("status", "code", "region", "moves"),
    [
        (301, "PermanentRedirect", "eu-central-1", True),
        (301, "", "eu-central-1", True),
        (307, "TemporaryRedirect", "eu-central-1", True),
        (400, "AuthorizationHeaderMalformed", "us-gov-west-1", True),
        (400, "IllegalLocationConstraintException", "ap-southeast-3", True),
        (301, "PermanentRedirect", "", False),
        (301, "PermanentRedirect", "evil.example.org/", False),
        (301, "PermanentRedirect", "eu-central-1\n", False),
        (403, "AccessDenied", "us-east-1", False),
    ],
)
def test_region_is_learnt_from_the_answer(status: int, code: str, region: str, moves: bool, tmp_path: Path) -> None:
    """Only the region's name is believed, once for all workers, and no file or destination is blamed for it."""
    store = store_of("curl", destination("bucket", ""))
    before = store.client
    body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
    answer = Answer(status, {"x-amz-bucket-region": region, "location": "http://evil.example.org/"}, body, None)
    with content(tmp_path / "f", BODY, in_memory=True) as file:
        request = store.request(file)
        errors = [_refused(store, file, request, answer) for _ in range(3)]

    assert {error.retry_immediately for error in errors[: 1 if code == "TemporaryRedirect" else 3]} == {moves}
    assert {error.scope for error in errors} == {Scope.UNKNOWN if code == "TemporaryRedirect" else Scope.EVERYBODY}
    wanted = region if moves else "us-east-1"
    assert store.endpoint.region == store.client.meta.region_name == wanted
    host = "s3.amazonaws.com" if wanted == "us-east-1" else f"s3.{wanted}.amazonaws.com"
    assert store.endpoint.url == f"https://bucket.{host}/"
    assert (store.client is before) is not moves


def test_a_store_of_ones_own_has_no_regions(tmp_path: Path) -> None:
    """What answers at endpoint_url stays the one that is asked, whatever region it speaks of."""
    store = store_of("curl", destination("b", URL))
    with content(tmp_path / "f", BODY, in_memory=True) as file:
        error = _refused(store, file, store.request(file), Answer(301, {"x-amz-bucket-region": "eu-west-1"}, b"", None))

    assert (error.scope, error.retry_immediately) == (Scope.EVERYBODY, False)
    assert store.endpoint == (f"{URL}/b/", "us-east-1")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_refused_credentials_are_looked_up_again(code: str, tmp_path: Path) -> None:
    """A person may have replaced them meanwhile."""
    store = store_of("curl", destination("b", URL))
    with content(tmp_path / "f", BODY, in_memory=True) as file:
        _refused(store, file, store.request(file), Answer(403, {}, f"<E><Code>{code}</Code></E>".encode(), None))

    assert store.credentials._asked.is_set()


def _refused(store: Store, file: Any, request: Any, answer: Answer) -> UploadError:
    with pytest.raises(UploadError) as raised:
        store.verify(file, request, answer, may_verify=True)
    return raised.value


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0.000000000"), (1, "0.000000001"), (1_700_000_000_123_456_789, "1700000000.123456789"),
     (-1, "-0.000000001"), (-1_500_000_000, "-1.500000000")],
)  # fmt: skip
def test_times_keep_their_nanoseconds(ns: int, text: str) -> None:
    """Before 1970 too."""
    assert mtime_text(ns) == text


@pytest.mark.parametrize(
    ("where", "url"),
    [
        (destination("s3spool-key", URL), f"{URL}/s3spool-key/"),
        (destination("b.dots", "", region="eu-west-1"), "https://s3.eu-west-1.amazonaws.com/b.dots/"),
        (destination("bucket", "", region="eu-west-1"), "https://bucket.s3.eu-west-1.amazonaws.com/"),
        (destination("bucket", "", region="eu-west-1", use_accelerate_endpoint=True),
         "https://bucket.s3-accelerate.amazonaws.com/"),
        (destination("bucket", "", region="eu-west-1", use_accelerate_endpoint=True, use_dualstack_endpoint=True),
         "https://bucket.s3-accelerate.dualstack.amazonaws.com/"),
        (destination("bucket", "", region="eu-west-1", use_dualstack_endpoint=True),
         "https://bucket.s3.dualstack.eu-west-1.amazonaws.com/"),
        (destination("bucket", "", region="us-east-1", use_fips_endpoint=True),
         "https://bucket.s3-fips.us-east-1.amazonaws.com/"),
        (destination("bucket", "", region="us-gov-west-1", use_fips_endpoint=True, use_dualstack_endpoint=True),
         "https://bucket.s3-fips.dualstack.us-gov-west-1.amazonaws.com/"),
        (destination("bucket", "https://s3.example.org", addressing_style="virtual"), "https://bucket.s3.example.org/"),
        (destination("bucket", "", addressing_style="path", region="eu-west-1"),
         "https://s3.eu-west-1.amazonaws.com/bucket/"),
        (destination("arn:aws:s3:eu-west-1:123456789012:accesspoint/ap", "", region="eu-west-1"),
         "https://ap-123456789012.s3-accesspoint.eu-west-1.amazonaws.com/"),
    ],
)  # fmt: skip
def test_where_objects_go(where: Any, url: str) -> None:
    """Addressing style, region and access point are botocore's rules."""
    assert Store(where, timeout_s=20.0).endpoint.url == url


@pytest.mark.parametrize(
    ("where", "style"),
    [
        (destination("bucket", "https://s3.example.org"), "path"),
        (destination("bucket", "https://s3.example.org", addressing_style="virtual"), "virtual"),
        (destination("bucket", "", region="eu-west-1"), "auto"),
    ],
)
def test_stores_of_other_makers_need_no_name_for_each_bucket(where: Any, style: str) -> None:
    """Unless the configuration says so."""
    config: Any = Store(where, timeout_s=20.0).client.meta.config
    assert config.s3["addressing_style"] == style


def test_an_unknown_profile_is_a_configuration_error() -> None:
    """With the field's name."""
    with pytest.raises(ConfigError, match=r'^destination.profile = "nobody": .*nobody'):
        store_of("curl", destination("b", URL, profile="nobody"))


class NoChecksums(EmptyOk):
    """Store, and answer as stores do that know no checksums: with an ETag."""

    def on_answer(self, exchange: Any, answer: Reply) -> Reply:
        return Reply(headers={"ETag": answer.headers["ETag"]}) if answer.status == 200 else answer


@pytest.fixture(params=["curl", "carried", "boto3"])
def sent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Send a file through a server with a fault, and judge: the ETag, or (code, scope, permanent)."""
    with FaultyS3() as server:

        def send(fault: Fault, overwrite: str = "allow", *, there: bytes | None = None) -> Any:
            if there is not None:
                server.client().put_object(Bucket=server.bucket, Key="f", Body=there)
            where = destination(server.bucket, server.endpoint_url, overwrite=overwrite)
            store = store_of(request.param, where, timeout_s=5.0)
            transport = store.transport()
            server.script(fault, match="^PUT", times=1)
            try:
                with content(tmp_path / "f", BODY, in_memory=True) as file:
                    made = store.request(file)
                    try:
                        return store.verify(file, made, put(transport, made), may_verify=True).etag
                    except UploadError as exc:
                        return exc.code, exc.scope, exc.permanent
            finally:
                transport.close()

        yield send


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (NoChecksums(store=True), MD5),
        (EmptyOk(store=True), MD5),  # a HEAD finds it
        (EmptyOk(), ("Unconfirmed", Scope.UNKNOWN, False)),
        (HtmlOk(), ("Unconfirmed", Scope.UNKNOWN, False)),
        (WrongEtag(), "0" * 32),  # the checksum proves it
        (WrongChecksum(), ("BadDigest", Scope.UNKNOWN, False)),
        (Status(code=400, error_code="BadDigest"), ("BadDigest", Scope.UNKNOWN, False)),
        (Status(code=400, body=b"<html>The plain HTTP request was sent to HTTPS port"),
         ("HTTP400", Scope.UNKNOWN, True)),
        (Status(code=503, error_code="SlowDown"), ("SlowDown", Scope.LOAD, False)),
        (Redirect(), ("PermanentRedirect", Scope.EVERYBODY, False)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_faults_and_their_verdicts(fault: Fault, verdict: object, sent: Any) -> None:
    """The same over the wire, through both transports."""
    assert sent(fault) == verdict


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.9, 0.95])
def test_a_cut_answer_is_never_proof(share: float, sent: Any) -> None:
    """Where a transport takes half of the headers for all, the store asks again, or has the file sent again."""
    verdict = sent(Truncated(share))

    assert verdict == MD5 or (isinstance(verdict, tuple) and not verdict[2])


@pytest.mark.parametrize("fault", [EmptyOk(), EmptyOk(store=True), HtmlOk()])
def test_a_portal_that_answers_every_request_proves_nothing(fault: Fault, tmp_path: Path) -> None:
    """The HEAD that should tell gets a 200 of the same kind: no ETag, no KeyError, no success."""
    with FaultyS3() as server, content(tmp_path / "f", BODY, in_memory=True) as file:
        server.script(fault, times=None)
        store = store_of("curl", destination(server.bucket, server.endpoint_url))
        transport = store.transport()
        made = store.request(file)
        answer = put(transport, made)
        transport.close()

        with pytest.raises(UploadError) as refused:
            store.verify(file, made, answer, may_verify=True)

    assert (refused.value.code, refused.value.scope) == ("Unconfirmed", Scope.UNKNOWN)


def test_many_may_ask_at_once(store_at: StoreAt, caplog: pytest.LogCaptureFixture) -> None:
    """Where only a HEAD confirms, each worker has its connection, keeps it, and no library complains of it."""
    workers = 30
    with FaultyS3() as server:
        store = store_at(server)
        for _ in range(2):
            hold = HoldUntil()
            server.script(hold, times=None)
            with ThreadPoolExecutor(workers) as pool:
                asked = [pool.submit(store_module.look, store.client, store.bucket, "a", "a") for _ in range(workers)]
                eventually(lambda: server.in_flight == workers, message="all have asked")
                server.behave()
                assert [future.result() for future in asked] == [None] * workers
        assert server.connections == workers

    assert not [record for record in caplog.records if record.name.startswith("urllib3") and record.levelno > DEBUG]


def test_boto3_asks_twice_at_most(store_at: StoreAt) -> None:
    """Files have attempts of their own: more requests for each would multiply an outage."""
    with FaultyS3() as server:
        server.script(Status(code=503), times=None)

        with pytest.raises(UploadError):
            store_module.look(store_at(server).client, server.bucket, "a", "a")

        assert server.count("^HEAD") == 2


@pytest.mark.parametrize("head", [b"", b"Transfer-Encoding: chunked\r\n"])
def test_an_answer_to_boto3_without_an_end_is_cut_off(head: bytes, store_at: StoreAt) -> None:
    """It is a failed request like any other, not all the memory there is; the next one passes."""
    piece = b"100000\r\n" + b"y" * 2**20 + b"\r\n"
    with FaultyS3() as server:
        store = store_at(server)
        server.script(Endless((b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", piece)), times=None)

        with pytest.raises(botocore.exceptions.HTTPClientError, match="more than"):
            store.client.create_multipart_upload(Bucket=server.bucket, Key="a")
        server.behave()
        server.cut()

        assert store.client.create_multipart_upload(Bucket=server.bucket, Key="a")["UploadId"]


def test_own_object_behind_a_lost_answer_is_success(sent: Any) -> None:
    """overwrite = "never": the second attempt finds what the first one left."""
    sent(LoseAnswer(), "never")
    assert sent(NoChecksums(store=True), "never") == MD5
    assert sent(NoChecksums(store=True), "never", there=OTHER) == ("PreconditionFailed", Scope.FILE, True)
