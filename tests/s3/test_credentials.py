"""Credentials come from boto3's chain, stay fresh without any worker waiting, and are told to nobody."""

from __future__ import annotations

import json
import pprint
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import structlog

from s3spool.errors import Scope
from s3spool.s3 import credentials as module
from s3spool.s3.credentials import Credentials, Snapshot
from support.faulty import FaultyS3
from support.stores import destination, put, put_request, store_of, use
from support.waiting import eventually

KEYS = {"AWS_ACCESS_KEY_ID": "AKENV", "AWS_SECRET_ACCESS_KEY": "env-secret"}


class Home:
    """A home directory with AWS's two files."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.credentials_file = path / "credentials"
        self.config_file = path / "config"
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(self.credentials_file))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(self.config_file))

    def keys(self, access: str, secret: str = "file-secret", profile: str = "default") -> None:  # noqa: S107 - invented
        self.credentials_file.write_text(
            f"[{profile}]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"
        )

    def program(self, valid_for: timedelta) -> None:
        """A credential_process; each call gives another key, AKPROC1, AKPROC2..."""
        script = self.path / "program.py"
        until = (datetime.now(UTC) + valid_for).isoformat()
        answer = {"Version": 1, "SecretAccessKey": "p-secret", "SessionToken": "p-token", "Expiration": until}
        script.write_text(
            f"import json, pathlib\ncount = pathlib.Path({str(self.path / 'count')!r})\n"
            "count.write_text((count.read_text() if count.exists() else '') + 'x')\n"
            f"print(json.dumps({json.dumps(answer)} | {{'AccessKeyId': 'AKPROC%d' % len(count.read_text())}}))\n"
        )
        self.config_file.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    use({}, monkeypatch)
    return Home(tmp_path, monkeypatch)


def test_the_chain_decides(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment before the files, a profile where one is named; `source` says which it was."""
    home.keys("AKFILE")
    from_file = Credentials(boto3.Session())
    for name, value in {**KEYS, "AWS_SESSION_TOKEN": "token"}.items():
        monkeypatch.setenv(name, value)
    from_environment = Credentials(boto3.Session())
    home.keys("AKPROFILE", profile="other")
    from_profile = Credentials(boto3.Session(profile_name="other"))

    assert from_file.current == Snapshot("AKFILE", "file-secret", "")
    assert from_environment.current == Snapshot("AKENV", "env-secret", "token")
    assert from_profile.current is not None
    assert from_profile.current.access_key == "AKPROFILE"
    assert [found.source for found in (from_file, from_environment, from_profile)] == [
        "shared-credentials-file",
        "env",
        "shared-credentials-file",
    ]
    assert {found.error for found in (from_file, from_environment, from_profile)} == {""}


@pytest.mark.parametrize(("valid_for", "calls"), [(timedelta(minutes=10), 2), (timedelta(hours=2), 1)])
def test_refreshed_ahead_of_expiry(valid_for: timedelta, calls: int, home: Home) -> None:
    """Ten minutes before the end is time for new ones, two hours before is not."""
    home.program(valid_for)
    credentials = Credentials(boto3.Session())
    first = credentials.current
    assert first == Snapshot(first.access_key if first else "", "p-secret", "p-token")
    asked = len((home.path / "count").read_text())

    credentials.refresh()

    assert len((home.path / "count").read_text()) - asked == calls - 1
    assert (credentials.current != first) == (calls > 1)
    assert credentials.generation == 1  # boto3's clients renew such credentials themselves


def test_the_thread_renews_them(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anybody asking, every REFRESH_S; the workers see it at once."""
    monkeypatch.setattr(module, "REFRESH_S", 0.05)
    home.program(timedelta(minutes=5))
    credentials = Credentials(boto3.Session())
    first = credentials.current

    credentials.start()

    eventually(lambda: credentials.current != first, timeout_s=30)
    credentials.close()


@pytest.mark.parametrize(("valid_for", "rest_s"), [(timedelta(hours=2), 105 * 60), (timedelta(minutes=10), 60)])
def test_nothing_is_asked_before_it_is_due(valid_for: timedelta, rest_s: float, home: Home) -> None:
    """The thread sleeps until 15 minutes before the end; then it asks once a minute until there are new ones."""
    home.program(valid_for)
    rest = Credentials(boto3.Session())._rest_s()

    assert rest == pytest.approx(rest_s, abs=60 if rest_s > module.REFRESH_S else 0)  # a slow machine has fewer left


def test_keys_that_last_for_ever_let_the_thread_live(home: Home) -> None:
    """Until the year 9999, say some programs: it sleeps, and still hears that S3 refuses them."""
    home.program(datetime(9999, 12, 31, tzinfo=UTC) - datetime.now(UTC))
    credentials = Credentials(boto3.Session())
    first = credentials.current
    credentials.start()

    def renewed() -> bool:
        credentials.refresh_soon()
        return credentials.current != first

    eventually(renewed, timeout_s=30)
    credentials.close()


def test_static_keys_are_never_asked_for_again(home: Home) -> None:
    """Only a refusal is a reason; and while there are none at all, once a minute is one."""
    missing = Credentials(boto3.Session())
    home.keys("AKFILE")
    static = Credentials(boto3.Session())

    assert (missing._rest_s(), static._rest_s()) == (module.REFRESH_S, None)


def test_keys_replaced_in_the_file_are_found_when_asked(home: Home) -> None:
    """S3 refused the old ones, a person put new ones there: no restart is needed."""
    home.keys("AKOLD")
    credentials = Credentials(boto3.Session())
    credentials.start()
    home.keys("AKNEW")

    def renewed() -> bool:
        credentials.refresh_soon()
        return credentials.current == Snapshot("AKNEW", "file-secret", "")

    eventually(renewed, timeout_s=30)
    credentials.close()
    assert credentials.generation == 2


def test_asking_is_cheap_and_rare(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred workers that are refused at once ask the chain once, and none of them waits for it."""
    home.keys("AKOLD")
    credentials = Credentials(boto3.Session())
    asked = 0
    release = threading.Event()

    def slow() -> None:
        nonlocal asked
        asked += 1
        release.wait(20)

    monkeypatch.setattr(credentials, "refresh", slow)
    credentials._last_refresh = 0.0
    credentials.start()

    for _ in range(100):
        credentials.refresh_soon()

    eventually(lambda: asked == 1, timeout_s=20)
    release.set()
    credentials.close()
    credentials._thread.join(20)
    assert asked == 1


def test_refusals_right_after_an_answer_ask_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that were signed with the old keys are refused a moment after the new ones have come."""
    home.keys("AKOLD")
    credentials = Credentials(boto3.Session())
    refresh, asked = credentials.refresh, list[None]()
    monkeypatch.setattr(credentials, "refresh", lambda: asked.append(refresh()))
    credentials._last_refresh = 0.0
    credentials.start()

    for _ in range(3):
        credentials.refresh_soon()
        eventually(lambda: asked and not credentials._asked.is_set(), timeout_s=20)
    credentials.close()
    credentials._thread.join(20)

    assert len(asked) == 1


def test_new_keys_reach_boto3_as_well(home: Home) -> None:
    """HEADs and multipart uploads are signed with the keys of now, not with those of the start."""
    home.keys("AKOLD")
    with FaultyS3() as server:
        store = store_of("curl", destination(server.bucket, server.endpoint_url))
        before = store.client
        before.head_bucket(Bucket=server.bucket)
        home.keys("AKNEW")
        store.credentials._forget_cached()
        store.credentials.refresh()

        assert store.client is not before
        assert store.client is store.client
        store.client.head_bucket(Bucket=server.bucket)

        used = [request.headers["authorization"].split("/")[0] for request in server.requests]
    assert used == ["AWS4-HMAC-SHA256 Credential=AKOLD", "AWS4-HMAC-SHA256 Credential=AKNEW"]


@pytest.mark.parametrize(
    ("access", "secret", "error"),
    [
        ("", "", "no credentials found by boto3's chain"),
        ("AK", "", "PartialCredentialsError: Partial credentials found in shared-credentials-file"),
        ("AK\u00e4", "s", "the credentials found hold characters that no key has"),
        ("AK", "se\x07cret", "the credentials found hold characters that no key has"),
    ],
)
def test_missing_ones_pause_the_destination(access: str, secret: str, error: str, home: Home) -> None:
    """One clear sentence, no request; and as soon as there are some, it works."""
    if access:
        home.credentials_file.write_text(
            f"[default]\naws_access_key_id = {access}\n" + (f"aws_secret_access_key = {secret}\n" if secret else "")
        )
    with FaultyS3() as server:
        store = store_of("curl", destination(server.bucket, server.endpoint_url))
        transport = store.transport()

        refused = put(transport, put_request("f")).error

        assert refused is not None
        assert (refused.code, refused.scope) == ("NoCredentials", Scope.EVERYBODY)
        assert refused.cause.startswith(error)
        assert server.requests == []
        home.keys("AKFOUND")
        store.credentials.refresh()
        assert put(transport, put_request("f")).status == 200
        transport.close()


def test_a_chain_that_does_not_answer_holds_up_no_start(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that hangs, a service that cannot be reached: the reason is told, and its answer taken at last."""
    monkeypatch.setattr(module, "FIRST_S", 0.01)
    there = home.path / "go on"
    script = home.path / "slow.py"
    script.write_text(
        "import json, os, time\n"
        f"while not os.path.exists({str(there)!r}): time.sleep(0.01)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'AKSLOW', 'SecretAccessKey': 's'}))\n"
    )
    home.config_file.write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")

    credentials = Credentials(boto3.Session())
    credentials.start()
    credentials.refresh_soon()
    assert credentials.current is None
    assert "has not answered yet" in credentials.error
    there.touch()

    eventually(lambda: credentials.current == Snapshot("AKSLOW", "s", ""), timeout_s=30)
    credentials.close()
    assert credentials.error == ""


def test_a_chain_that_fails_keeps_what_it_had(home: Home) -> None:
    """The metadata service hiccups: the credentials at hand are good until S3 says otherwise."""
    home.program(timedelta(minutes=10))
    credentials = Credentials(boto3.Session())
    had = credentials.current
    assert had is not None
    (home.path / "program.py").write_text("raise SystemExit('out of order')")

    credentials._forget_cached()
    with structlog.testing.capture_logs() as lines:
        credentials.refresh()

    assert credentials.current is had
    assert "out of order" in credentials.error
    assert [line["event"] for line in lines] == ["library.warning"]


@pytest.mark.parametrize(("valid_for", "kept"), [(timedelta(hours=2), True), (timedelta(seconds=-1), False)])
def test_a_chain_that_finds_nothing_keeps_what_still_lasts(
    valid_for: timedelta, kept: bool, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 refused one file, so the chain is asked; botocore says "none" where the metadata service only hiccups."""
    home.program(timedelta(hours=2))
    credentials = Credentials(boto3.Session())
    had = credentials.current
    credentials.expiry = datetime.now(UTC) + valid_for
    monkeypatch.setattr(credentials._session, "get_credentials", lambda: None)

    credentials.refresh()

    assert had is not None
    assert credentials.current == (had if kept else None)


def test_secrets_are_told_to_nobody(home: Home) -> None:
    """Not by repr, str, format, logs or errors, whatever holds them."""
    home.credentials_file.write_text(
        "[default]\naws_access_key_id = AKID\naws_secret_access_key = my-secret\naws_session_token = my-token\n"
    )
    with FaultyS3() as server, structlog.testing.capture_logs() as lines:
        server.store.date_skew_s = 3600
        store = store_of("curl", destination(server.bucket, server.endpoint_url))
        transport: Any = store.transport()
        answer = put(transport, put_request("f"))
        transport.close()
        snapshot = store.credentials.current
        shown = [
            repr(snapshot),
            str(snapshot),
            f"{snapshot}",
            f"{snapshot!r}",
            repr([snapshot]),
            pprint.pformat(snapshot),
        ]
        shown += [repr(store.credentials), pprint.pformat(vars(store.credentials)), pprint.pformat(vars(transport))]
        shown += [repr(answer), repr(lines)]

    assert answer.status == 403
    assert [text for text in shown if "my-secret" in text or "my-token" in text] == []
