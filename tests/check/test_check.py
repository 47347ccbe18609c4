"""`s3spool check`: what it finds, what it leaves behind, and the policy it prints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import structlog
from click.testing import CliRunner

from s3spool.check import checks
from s3spool.check.iam_policy import policy
from s3spool.check.preflight import examine
from s3spool.check.result import CheckResult, ok
from s3spool.cli.commands import cli as command_line
from s3spool.config import loader as configuration
from s3spool.config.schema import Config
from s3spool.demo.seaweed import Seaweed
from s3spool.ledger.database import VERSION
from support.daemon import Daemon, to_toml
from support.faults import Fault, HtmlOk, Redirect, Status, WrongChecksum
from support.faulty import FaultyS3
from support.http_server import Exchange
from support.processes import finished
from support.s3_messages import Request
from support.stores import destination, store_of, use

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

pytestmark = pytest.mark.integration

Lines = dict[str, tuple[str, str]]  # subject to level and text


def check(daemon: Daemon) -> tuple[int, Lines]:
    """Exit code and findings; a daemon that was never started is a home with a config file."""
    daemon.config_path.write_text(to_toml(daemon.config))
    arguments = ["check", "--config", str(daemon.config_path)]
    with mock.patch.dict(os.environ, daemon.environment, clear=True), contextlib.chdir(daemon.home):
        done = CliRunner().invoke(command_line, arguments)
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, findings(done.stdout, done.exit_code)


def findings(shown: str, code: int) -> Lines:
    found: Lines = {}
    for line in shown.splitlines():
        level, rest = line[:7].strip(), line[8:]
        subject, _, text = rest.partition(": ")
        assert level in {"ok", "warning", "error"}, line
        found[subject] = (level, text)
    assert (code != 0) == any(level == "error" for level, _ in found.values()), shown
    return found


def cli(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    daemon.config_path.write_text(to_toml(daemon.config))
    return daemon.cli("check", *arguments)


@pytest.fixture(autouse=True)
def _unconfigured_log() -> Iterator[None]:
    """The command silences it for the process."""
    yield
    structlog.reset_defaults()


def test_all_is_well_and_nothing_is_left_behind(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """Against a real server: exit code 0, and neither an object nor an upload nor a directory is new."""
    state = tmp_path / "later" / "state"
    daemon = Daemon(tmp_path, seaweed, bucket=bucket, destination={"prefix": "in/%Y/"}, state={"directory": str(state)})

    done = cli(daemon)

    assert (done.returncode, done.stderr) == (0, "")
    found = findings(done.stdout, 0)
    assert {level for subject, (level, _) in found.items() if subject != "lifecycle"} == {"ok"}
    assert found["configuration"][1] == str(daemon.config_path)
    assert found["credentials"] == ("ok", "from the environment (AWS_ACCESS_KEY_ID)")
    assert "crc64nvme" in found["checksum"][1]
    assert "/s3spool-check-" in found["upload"][1]
    assert "is not there yet" in found["state"][1]
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert not state.parent.exists()


def test_no_secret_is_printed(tmp_path: Path, seaweed: Seaweed, bucket: str) -> None:
    """Neither key is in any line, not even where it is refused."""
    wrong = seaweed.environment() | {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}
    done = cli(Daemon(tmp_path, bucket=bucket, environment=wrong))

    assert done.returncode == 1
    assert "SignatureDoesNotMatch" in done.stdout
    assert "a-wrong-secret" not in done.stdout + done.stderr
    assert "AKTEST" not in done.stdout + done.stderr


def test_missing_bucket_is_named(tmp_path: Path, seaweed: Seaweed) -> None:
    code, found = check(Daemon(tmp_path, bucket="no-such-bucket", environment=seaweed.environment()))

    assert code == 1
    assert found["bucket"][0] == "error"
    assert "no-such-bucket" in found["bucket"][1]
    assert "create it" in found["bucket"][1]


def test_no_bucket_configured_is_the_last_finding(tmp_path: Path) -> None:
    """What is on this machine is looked at all the same."""
    code, found = check(Daemon(tmp_path))

    assert code == 1
    assert found["destination"][0] == "error"
    assert "destination.bucket" in found["destination"][1]
    assert found["open files"][0] == "ok"


def test_no_credentials(tmp_path: Path) -> None:
    code, found = check(Daemon(tmp_path, bucket="some-bucket"))

    assert code == 1
    assert found["credentials"][0] == "error"
    assert "no credentials found" in found["credentials"][1]


def test_nobody_listens(tmp_path: Path, faulty: FaultyS3) -> None:
    """The address is in the line, and no traceback."""
    daemon = Daemon(tmp_path, faulty)
    daemon.environment["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"

    code, found = check(daemon)

    assert code == 1
    assert "http://127.0.0.1:9" in found["endpoint"][1]


@pytest.mark.parametrize(("skew_s", "level"), [(0, "ok"), (300, "warning"), (-300, "warning"), (-1200, "error")])
def test_clock_is_compared_with_the_servers(tmp_path: Path, faulty: FaultyS3, skew_s: float, level: str) -> None:
    faulty.set_date_skew(skew_s)

    code, found = check(Daemon(tmp_path, faulty))

    assert found["clock"][0] == level
    if level != "ok":
        assert ("behind" if skew_s > 0 else "ahead of") in found["clock"][1]
    assert code == (1 if level == "error" else 0)


def test_refused_upload_says_what_to_grant(tmp_path: Path, faulty: FaultyS3) -> None:
    """HEAD of the bucket may be forbidden and all is well; the upload may not."""
    faulty.script(Status(code=403), times=None, match="^HEAD $|^HEAD /?$")
    assert check(Daemon(tmp_path, faulty))[0] == 0

    faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match=r"^POST .*uploads")
    code, found = check(Daemon(tmp_path, faulty))

    assert code == 1
    assert found["upload"][0] == "error"
    assert "AccessDenied" in found["upload"][1]
    assert "grant s3:PutObject" in found["upload"][1]


def test_refused_questions_are_told_apart(tmp_path: Path, faulty: FaultyS3) -> None:
    """Without HEAD most things work, without ListParts a restart does not, without Abort something stays."""
    denied = Status(code=403, error_code="AccessDenied")

    faulty.script(Status(code=403), times=None, match="^HEAD .*s3spool-check-")
    code, found = check(Daemon(tmp_path, faulty))
    assert (code, found["confirm"][0]) == (0, "warning")
    code, found = check(Daemon(tmp_path, faulty, destination={"overwrite": "never"}))
    assert (code, found["confirm"][0]) == (1, "error")

    faulty.behave()
    faulty.script(denied, times=None, match="^GET .*uploadId")
    code, found = check(Daemon(tmp_path, faulty))
    assert (code, found["resume"][0]) == (1, "error")
    assert "s3:ListMultipartUploadParts" in found["resume"][1]

    faulty.behave()
    faulty.script(denied, times=None, match="^DELETE ")
    code, found = check(Daemon(tmp_path, faulty))
    assert (code, found["abort"][0]) == (0, "warning")
    assert "s3:AbortMultipartUpload" in found["abort"][1]
    assert len(faulty.store.uploads) == 1
    assert not faulty.objects


def test_what_protects_objects_is_said(tmp_path: Path, faulty: FaultyS3) -> None:
    """With overwrite = "never"; else there is nothing to say."""
    assert "overwrite" not in check(Daemon(tmp_path, faulty))[1]

    _, found = check(Daemon(tmp_path, faulty, destination={"overwrite": "never"}))

    assert found["overwrite"][0] == "ok"
    assert "a HEAD before each upload" in found["overwrite"][1]


def test_an_access_key_with_a_colon_is_fine(tmp_path: Path, faulty: FaultyS3) -> None:
    daemon = Daemon(tmp_path, faulty)
    daemon.environment["AWS_ACCESS_KEY_ID"] = "account:user"

    code, found = check(daemon)

    assert code == 0
    assert {level for level, _ in found.values()} == {"ok"}


def test_wrong_secret_is_an_error_and_not_a_missing_permission(tmp_path: Path, seaweed: Seaweed, bucket: str) -> None:
    """The bucket's HEAD says 403 without a reason: the reason is asked for, and where the keys come from is said."""
    wrong = seaweed.environment() | {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}

    done = cli(Daemon(tmp_path, bucket=bucket, environment=wrong))

    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("error   credentials: ")
    assert "SignatureDoesNotMatch" in last
    assert "the environment (AWS_ACCESS_KEY_ID)" in last
    assert "s3spool check" not in done.stdout
    assert "continuing" not in done.stdout


def test_a_bucket_that_may_not_be_listed_is_fine(tmp_path: Path, faulty: FaultyS3) -> None:
    faulty.script(Status(code=403), times=None, match="^HEAD $|^HEAD /?$")
    faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match=r"^GET \S*list-type")

    code, found = check(Daemon(tmp_path, faulty))

    assert code == 0
    assert found["bucket"][0] == "ok"
    assert "s3:ListBucket is not granted" in found["bucket"][1]


DEEP = b"<?xml version='1.0'?>" + b"<a>" * 200_000 + b"</a>" * 200_000
PAGES = {
    "deep XML": DEEP,
    "HTML": b"<!DOCTYPE html><html><body><h1>Login</h1><br>",
    "XHTML": b"<html><body>Login</body></html>",
    "nothing": b"",
    "half": b"<?xml version='1.0'?><Error><Code>Acc",
    "no text": bytes(range(256)),
    "JSON": b'{"error": {"code": 7}}',
    "numbers": b"<R><UploadId>u</UploadId><Part><PartNumber>x</PartNumber></Part><MaxKeys>x</MaxKeys></R>",
}


QUESTIONS = ("^POST .*uploads", "^PUT ", "^GET .*uploadId", "^HEAD .*s3spool-check", "lifecycle", "^DELETE")


@pytest.mark.parametrize("page", PAGES)
def test_no_answer_ends_in_a_traceback(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Whatever a server says, to everything or to one question."""
    use(faulty.environment(), monkeypatch)
    store = store_of("curl", destination(faulty.bucket, faulty.endpoint_url))
    answers = [(status, "") for status in (200, 204, 302, 400, 403, 500, 999)]
    for status, match in [*answers, *((200, match) for match in QUESTIONS)]:
        faulty.behave()
        faulty.script(
            Status(code=status, body=PAGES[page], headers={"Last-Modified": "never"}), times=None, match=match
        )

        found = list(examine(store, ""))

        assert found[-1].level == "error" or match, (status, found)
        assert all(len(finding.text) < 1500 for finding in found)


def test_a_failure_of_the_check_itself_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others are looked at all the same."""

    def fails(_: object) -> Iterator[CheckResult]:
        raise RuntimeError("oh")

    monkeypatch.setitem(checks._SUBJECTS, "archive", fails)

    found = {finding.subject: finding for finding in checks.run(local(tmp_path))}

    assert found["archive"].level == "error"
    assert "RuntimeError: oh" in found["archive"].text
    assert found["state"].level == "ok"


@pytest.mark.parametrize(
    ("message", "grant"),
    [
        (
            "User: arn:aws:iam::1:user/u is not authorized to perform: kms:GenerateDataKey on resource: x",
            "kms:GenerateDataKey",
        ),
        ("is not authorized to perform: s3:PutObjectTagging on resource: y", "s3:PutObjectTagging"),
        ("Access Denied", "s3:PutObject, s3:PutObjectTagging, s3:PutObjectAcl"),
    ],
)
def test_the_permission_that_is_missing_is_named(tmp_path: Path, faulty: FaultyS3, message: str, grant: str) -> None:
    """As AWS names it, else what the options take; and the operation that was refused."""
    body = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>".encode()
    faulty.script(Status(code=403, body=body), times=None, match="^POST .*uploads")

    _, found = check(Daemon(tmp_path, faulty, destination={"tags": {"a": "b"}, "acl": "private"}))

    assert found["upload"][0] == "error"
    assert found["upload"][1].startswith("CreateMultipartUpload: AccessDenied")
    assert f"grant {grant} " in found["upload"][1]


@pytest.mark.parametrize(
    ("answer", "options", "level", "says"),
    [
        (Status(code=400, error_code="MalformedXML"), {"checksum": "crc32"}, "error", 'destination.checksum = "crc32"'),
        (
            Status(code=501, error_code="NotImplemented"),
            {"overwrite": "never", "checksum": "md5"},
            "error",
            "overwrite",
        ),
        (Status(code=503, error_code="SlowDown"), {"checksum": "sha256"}, "warning", "SlowDown"),
    ],
)
def test_a_store_that_refuses_only_the_completion_is_found(
    tmp_path: Path, faulty: FaultyS3, answer: Status, options: dict[str, str], level: str, says: str
) -> None:
    """Swift takes the parts with their checksums and refuses to put them together."""
    faulty.script(answer, times=None, match="^POST .*uploadId")

    code, found = check(Daemon(tmp_path, faulty, destination=options))

    assert found["complete"][0] == level
    assert says in found["complete"][1]
    assert (code == 1) == (level == "error")
    assert not faulty.store.uploads
    assert not faulty.objects


def test_a_server_that_completes_anything_is_told_of(tmp_path: Path, faulty: FaultyS3) -> None:
    """s3rver looks at no ETag: the object that the rehearsal made is named."""

    class Sloppy(Fault):
        def on_headers(self, exchange: Exchange) -> None:
            exchange.read_body()
            etag = hashlib.md5(b"s3spool check\n", usedforsecurity=False).hexdigest().encode()
            exchange.request.body = exchange.request.body.replace(b"0" * 32, etag)

    faulty.script(Sloppy(), times=None, match="^POST .*uploadId")

    code, found = check(Daemon(tmp_path, faulty))

    (key,) = faulty.objects
    assert (code, found["complete"][0]) == (0, "warning")
    assert f"remove the object {key}" in found["complete"][1]
    assert "upload" not in found


def test_upload_is_aborted_where_the_part_is_refused(tmp_path: Path, faulty: FaultyS3) -> None:
    faulty.script(WrongChecksum(), times=None, match="^PUT ")

    code, found = check(Daemon(tmp_path, faulty))

    assert code == 1
    assert found["upload"][0] == "error"
    assert "BadDigest" in found["upload"][1]
    assert not faulty.store.uploads


def test_store_without_our_checksum_gets_md5(tmp_path: Path, faulty: FaultyS3) -> None:
    """`auto` learns it from the refusal, as the daemon does; a checksum that was asked for is an error."""

    def has_checksum(request: Request) -> bool:
        return request.method == "PUT" and "x-amz-checksum-crc64nvme" in request.headers

    body = b"<Error><Code>InvalidRequest</Code><Message>unknown checksum header</Message></Error>"
    faulty.script(Status(code=400, body=body), times=None, match=has_checksum)

    code, found = check(Daemon(tmp_path, faulty))
    assert code == 0, found
    assert "MD5" in found["checksum"][1]
    assert not faulty.store.uploads

    code, found = check(Daemon(tmp_path, faulty, destination={"checksum": "crc64nvme"}))
    assert code == 1
    assert "unknown checksum header" in found["upload"][1]


def test_captive_portal_is_no_bucket(tmp_path: Path, faulty: FaultyS3) -> None:
    faulty.script(HtmlOk(), times=None)

    code, _ = check(Daemon(tmp_path, faulty))

    assert code == 1


def test_redirect_elsewhere_is_not_followed(tmp_path: Path, faulty: FaultyS3) -> None:
    """The Location of an answer is nowhere asked."""
    with FaultyS3() as elsewhere:
        faulty.script(Redirect(location=elsewhere.endpoint_url, region="us-east-1"), times=None)

        code, _ = check(Daemon(tmp_path, faulty))

        assert code == 1
        assert not elsewhere.requests


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (Status(code=404, error_code="NoSuchLifecycleConfiguration"), "warning"),
        (Status(code=403, error_code="AccessDenied"), None),
        (Status(code=501, error_code="NotImplemented"), None),
    ],
    ids=["none", "may-not-look", "unknown"],
)
def test_lifecycle_is_asked_for_but_not_needed(
    tmp_path: Path, faulty: FaultyS3, answer: Status, level: str | None
) -> None:
    faulty.script(answer, times=None, match=r"\?lifecycle")

    code, found = check(Daemon(tmp_path, faulty))

    assert code == 0
    assert found.get("lifecycle", (None,))[0] == level


@pytest.mark.parametrize(("covered", "level"), [("", "ok"), ("in/", "ok"), ("out/", "warning")])
def test_lifecycle_rule_has_to_cover_the_prefix(tmp_path: Path, faulty: FaultyS3, covered: str, level: str) -> None:
    rule = (
        f"<Rule><ID>a</ID><Filter><Prefix>{covered}</Prefix></Filter><Status>Enabled</Status>"
        "<AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>"
    )
    body = f"<LifecycleConfiguration>{rule}</LifecycleConfiguration>".encode()
    faulty.script(Status(code=200, body=body), times=None, match=r"\?lifecycle")

    _, found = check(Daemon(tmp_path, faulty, destination={"prefix": "in/{hostname}/"}))

    assert found["lifecycle"][0] == level


def test_folder_that_is_missing_is_not_made(tmp_path: Path, faulty: FaultyS3) -> None:
    """The line has the field, the path and the command."""
    folder = tmp_path / "no" / "folder"

    code, found = check(Daemon(tmp_path, faulty, watch={"directory": str(folder)}))

    assert code == 1
    problem = f'watch.directory = "{folder}": does not exist; make it with: mkdir -p {folder}'
    assert found["folder"] == ("error", problem)
    assert not folder.exists()


def test_archive_on_another_file_system_is_an_error(tmp_path: Path, faulty: FaultyS3) -> None:
    memory = "/dev/shm"  # noqa: S108 - mounted by every Linux; nothing is written there
    if os.stat(memory).st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    after = {"action": "archive", "archive_directory": f"{memory}/s3spool-archive"}

    code, found = check(Daemon(tmp_path, faulty, after=after))

    assert (code, found["archive"][0]) == (1, "error")
    assert "another file system" in found["archive"][1]


def test_foreign_ledger_is_an_error(tmp_path: Path, faulty: FaultyS3) -> None:
    daemon = Daemon(tmp_path, faulty)
    (daemon.state_directory / "ledger.sqlite3").write_bytes(b"not a database, " * 100)

    code, found = check(daemon)

    assert (code, found["ledger"][0]) == (1, "error")
    assert "keeps it as ledger.sqlite3.broken-TIME" in found["ledger"][1]


def test_state_directory_is_left_as_it_was(tmp_path: Path, faulty: FaultyS3) -> None:
    """SQLite is tried there, and nothing of it stays."""
    daemon = Daemon(tmp_path, faulty)

    code, found = check(daemon)

    assert (code, found["ledger"][0]) == (0, "ok")
    assert not list(daemon.state_directory.iterdir())


def test_beside_a_running_daemon(tmp_path: Path, faulty: FaultyS3) -> None:
    """Both go on, and the check says who runs."""
    with Daemon(tmp_path, faulty) as daemon:
        daemon.wait_ready(30)

        code, found = check(daemon)

        assert code == 0
        assert f"pid {daemon.pid}" in found["ledger"][1]
        assert f"version {VERSION}" in found["ledger"][1]
        daemon.drop("a.txt")
        daemon.wait_uploaded(1)


def test_too_few_open_files_for_the_workers(tmp_path: Path, faulty: FaultyS3) -> None:
    daemon = Daemon(tmp_path, faulty)
    cli(daemon)  # writes the config file
    limited = f"ulimit -n 200; exec {sys.executable} -m s3spool check --config {daemon.config_path}"
    done = finished("sh", "-c", limited, env=daemon.environment)

    assert done.returncode == 1
    assert "100 workers need 660, the limit is 200" in done.stdout


def local(tmp_path: Path, **overrides: object) -> Config:
    """A configuration for the checks that ask nobody."""
    (tmp_path / "spool").mkdir(exist_ok=True)
    names = {"watch.directory": str(tmp_path / "spool"), "state.directory": str(tmp_path / "state")}
    return configuration.load(None, overrides=names | overrides, environ={"HOME": "/nonexistent"})


def test_more_directories_than_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Excluded ones do not count, and without recursion there is only one."""
    limit = tmp_path / "max_user_watches"
    limit.write_text("3\n")
    monkeypatch.setattr(checks, "WATCHES", limit)
    for name in ("a", "a/b", ".hidden", ".hidden/c"):
        (tmp_path / "spool" / name).mkdir(parents=True)

    (_, watch) = checks._folder(local(tmp_path))
    assert (watch.level, watch.text.partition(" inotify")[0]) == ("warning", "3 of 3")
    (_, watch) = checks._folder(local(tmp_path, **{"watch.recursive": False}))
    assert (watch.level, watch.text.partition(" inotify")[0]) == ("ok", "1 of 3")


@pytest.mark.parametrize(("backend", "level"), [("auto", "warning"), ("poll", "ok")])
def test_network_file_system_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, level: str
) -> None:
    """Chosen by itself it is worth a warning, asked for it is fine."""
    monkeypatch.setattr("s3spool.check.checks.remote_file_system", lambda _: "nfs4")

    (_, watch) = checks._folder(local(tmp_path, **{"watch.backend": backend}))

    assert watch.level == level
    assert "nfs4" in watch.text
    assert "every 300 s" in watch.text


@pytest.mark.parametrize(("free_mib", "level"), [(8, "error"), (100, "warning"), (1000, "ok")])
def test_room_for_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, level: str) -> None:
    space = type("Space", (), {"f_bavail": free_mib * 256, "f_frsize": 4096})
    monkeypatch.setattr(os, "statvfs", lambda _: space)

    (state,) = checks._state(local(tmp_path))

    assert state.level == level
    assert f"{free_mib} MiB free" in state.text


def test_odd_names_are_one_line() -> None:
    assert ok("folder", "two\nlines \x1b[2J \udce9").text == "two lines \\x1b[2J \\xdce9"


# --- the policy


def policy_of(**settings: str | dict[str, str]) -> dict[str, dict[str, Any]]:
    """The statements by Sid."""
    overrides = {"destination.bucket": "pail"} | {f"destination.{name}": value for name, value in settings.items()}
    document = json.loads(policy(configuration.load(None, overrides=overrides, environ={"HOME": "/nonexistent"})))
    assert document["Version"] == "2012-10-17"
    return {statement["Sid"]: statement for statement in document["Statement"]}


@pytest.fixture(autouse=True)
def _no_aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_policy_is_what_the_code_calls() -> None:
    """Nothing that deletes, nothing that is not used."""
    statements = policy_of(region="eu-central-1")

    assert {action for s in statements.values() for action in s["Action"]} == {
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
        "s3:GetObject",
        "s3:ListBucket",
    }
    assert statements["Upload"]["Resource"] == "arn:aws:s3:::pail/*"
    assert statements["TellAbsentFromForbidden"]["Resource"] == "arn:aws:s3:::pail"


@pytest.mark.parametrize(
    ("prefix", "pattern"),
    [
        ("in/", "in/*"),
        ("logs/%Y/%m/", "logs/*"),
        ("{hostname}/in/", "*"),
        ("a{hostname}", "a*"),
        ("100%%/x/", "100%/x/*"),
        ("100%%/%d/", "100%/*"),
        ("what?*/$1/", "what${?}${*}/${$}1/*"),
        ("mañana/文/", "mañana/*/*"),
    ],
)
def test_policy_has_the_prefix_up_to_its_first_template(prefix: str, pattern: str) -> None:
    assert policy_of(prefix=prefix)["Upload"]["Resource"] == f"arn:aws:s3:::pail/{pattern}"


def test_policy_follows_the_options() -> None:
    key = "arn:aws:kms:eu-central-1:111122223333:key/abcd"
    statements = policy_of(acl="private", tags={"a": "b"}, sse="aws:kms", kms_key_id=key)

    assert {"s3:PutObjectAcl", "s3:PutObjectTagging"} <= set(statements["Upload"]["Action"])
    assert statements["Encrypt"]["Action"] == ["kms:GenerateDataKey", "kms:Decrypt"]
    assert statements["Encrypt"]["Resource"] == key


@pytest.mark.parametrize(
    ("key", "resource", "alias"),
    [
        ("abcd-1234", "arn:aws:kms:*:*:key/abcd-1234", None),
        ("alias/mine", "arn:aws:kms:*:*:key/*", "alias/mine"),
        ("arn:aws:kms:eu-west-1:111122223333:alias/mine", "arn:aws:kms:eu-west-1:111122223333:key/*", "alias/mine"),
    ],
)
def test_policy_knows_the_ways_to_name_a_key(key: str, resource: str, alias: str | None) -> None:
    """An alias cannot be the resource of kms:GenerateDataKey."""
    statement = policy_of(sse="aws:kms", kms_key_id=key)["Encrypt"]

    assert statement["Resource"] == resource
    condition = statement.get("Condition")
    assert condition == (alias and {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}})


def test_policy_of_other_partitions_and_access_points() -> None:
    assert policy_of(region="cn-north-1")["Upload"]["Resource"] == "arn:aws-cn:s3:::pail/*"
    arn = "arn:aws:s3:eu-west-1:111122223333:accesspoint:door"
    statements = policy_of(bucket=arn, region="eu-west-1", prefix="in/")
    slashed = arn.replace("accesspoint:", "accesspoint/")
    assert statements["Upload"]["Resource"] == f"{slashed}/object/in/*"
    assert statements["TellAbsentFromForbidden"]["Resource"] == slashed


def test_policy_command_prints_json_alone(tmp_path: Path, faulty: FaultyS3) -> None:
    """So that it can be piped; nothing is asked of the network."""
    done = cli(Daemon(tmp_path, faulty), "--policy")

    assert done.returncode == 0
    assert json.loads(done.stdout)["Statement"]
    assert not faulty.requests
