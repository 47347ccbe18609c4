"""Whom an error concerns: the tables of s3/error_table.py, what is outside of them, and what the documents say."""

from __future__ import annotations

import errno
import math
import os
import re
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import botocore.exceptions
import pycurl
import pytest

from s3spool.errors import Scope, UploadError
from s3spool.s3.error_table import BY_CODE, BY_CURL, BY_STATUS, NETWORK, Rule
from s3spool.s3.errors import from_answer, from_boto3, from_code, from_curl, parse_error, retry_after_s, untrusted
from s3spool.s3.transport import Answer
from s3spool.upload.result import translated as local_error
from support.lines import Lines
from support.stores import put_request

DOCUMENT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
TRANSIENT = BY_CODE["InternalError"]
UNREACHED = Rule(Scope.EVERYBODY, hint=NETWORK)
UNSTEADY = Rule(Scope.UNKNOWN, hint=NETWORK)
REQUEST = put_request("some/file")


def rule_of(error: UploadError) -> Rule:
    return Rule(error.scope, error.permanent, error.hint)


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, None)


@pytest.mark.parametrize("code", BY_CODE)
def test_codes_of_s3(code: str) -> None:
    """The code decides, whatever the status and the server's namespace."""
    body = f'<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Code>{code}</Code><Message>why</Message></Error>'

    for status in (0, 200, 400, 403, 500, 599):
        error = from_answer(REQUEST, answer(status, body.encode()))

        assert rule_of(error) == BY_CODE[code]
        assert (error.code, error.cause, error.path, error.operation) == (code, "why", "some/file", "upload")


@pytest.mark.parametrize("code", ["", "NeverHeardOfIt"])
def test_statuses_of_http(code: str) -> None:
    """They decide where the code does not; what is in neither table is transient, and never parks a file."""
    for status in (0, *range(200, 600)):
        error = from_code(status, code, "", "some/file")

        assert rule_of(error) == BY_STATUS.get(status, TRANSIENT), status
        assert error.code == (code or f"HTTP{status}")
        assert error.cause == f"the server answered HTTP {status}"


@pytest.mark.parametrize(
    ("body", "code", "cause"),
    [
        (b"", "HTTP418", "the server answered HTTP 418 (x-amz-request-id R)"),
        (
            b"<html>\n  <h1>Teapot</h1>" + b"x" * 9999,
            "HTTP418",
            "the server answered HTTP 418: <html> <h1>Teapot</h1>" + "x" * 476 + " (x-amz-request-id R)",
        ),
        (
            b"<Error><Code>TeaPot</Code><Message>short</Message></Error>",
            "TeaPot",
            "short (HTTP 418, x-amz-request-id R)",
        ),
        (b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>", "SlowDown", "slow"),
    ],
)
def test_what_is_unknown_is_told_with_all_that_is_known(body: bytes, code: str, cause: str) -> None:
    """Status, the body's beginning on one line, and the request's id; of what is known, S3's sentence is enough."""
    error = from_answer(REQUEST, answer(418, body, x_amz_request_id="R"))

    assert (error.code, error.cause) == (code, cause)


@pytest.mark.parametrize("number", range(1, 102))
def test_errors_of_libcurl(number: int) -> None:
    """Those in the table have libcurl's own names; all others are transient."""
    error = from_curl(number, "libcurl's sentence", "some/file")

    name, rule = BY_CURL.get(number, (f"CURL_{number}", TRANSIENT))
    assert (error.code, rule_of(error)) == (name, rule)
    assert error.cause == "libcurl's sentence"
    assert error.operation == ("read" if rule.scope is Scope.FILE else "upload")
    if number in BY_CURL:
        # pycurl knows number 8 by the name it had before HTTP servers were weird as well.
        known = getattr(pycurl, f"E_{name}", None if number > 91 else pycurl.E_FTP_WEIRD_SERVER_REPLY)
        assert known in {number, None}  # pycurl has no names for the latest ones


@pytest.mark.parametrize("name", sorted(errno.errorcode.values()))
def test_errnos(name: str) -> None:
    """All may pass, and concern the one file, but for a process that can open nothing: no file is to blame for that."""
    number = getattr(errno, name)

    error = local_error(OSError(number, os.strerror(number)), "some/file")

    denied = number in {errno.EACCES, errno.EPERM}
    exhausted = number in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    scope = Scope.LOAD if exhausted else Scope.FILE
    assert (error.scope, error.permanent, error.operation) == (scope, False, "read")
    assert error.cause == os.strerror(number)
    assert bool(error.hint) == (denied or exhausted)


@pytest.mark.parametrize(
    ("exc", "code", "rule"),
    [
        (botocore.exceptions.NoCredentialsError(), "NoCredentials", BY_CODE["NoCredentials"]),
        (
            botocore.exceptions.PartialCredentialsError(provider="env", cred_var="x"),
            "NoCredentials",
            BY_CODE["NoCredentials"],
        ),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="u"), "", UNREACHED),
        (botocore.exceptions.SSLError(endpoint_url="u", error=ValueError("e")), "", UNREACHED),
        (botocore.exceptions.ProxyConnectionError(proxy_url="u"), "", UNREACHED),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="u"), "", UNSTEADY),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="u"), "", UNSTEADY),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="u"), "", UNSTEADY),
        (botocore.exceptions.HTTPClientError(error="e"), "", UNSTEADY),
        (botocore.exceptions.UnknownServiceError(service_name="s", known_service_names=[]), "", UNSTEADY),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exceptions_of_boto3(exc: Exception, code: str, rule: Rule) -> None:
    """Some of botocore's are OSErrors as well: they are not the file's for that."""
    error = from_boto3(exc, "some/file", "list parts")

    assert (error.code, rule_of(error)) == (code or type(exc).__name__, rule)
    assert (error.operation, error.path) == ("list parts", "some/file")
    assert str(exc) in error.cause


def test_a_bug_is_the_files_fault_unless_an_answer_may_cause_it(lines: Lines) -> None:
    """An answer that raises may follow any file."""
    assert local_error(ValueError("a bug"), "a").scope is Scope.FILE
    assert local_error(ValueError("a bug"), "a", answered=True).scope is Scope.UNKNOWN


@pytest.mark.parametrize("exc", [ValueError("no number"), LookupError("no key"), RecursionError("too deep")])
def test_an_answer_that_boto3_cannot_parse_is_no_fault_of_the_file(exc: Exception) -> None:
    """A portal or a proxy answers each file so."""
    error = from_boto3(exc, "some/file")

    assert (error.code, error.scope) == ("UnreadableAnswer", Scope.UNKNOWN)


@pytest.mark.parametrize(
    ("status", "code", "told", "rule"),
    [
        (404, "404", "HTTP404", BY_STATUS[404]),
        (403, "403", "HTTP403", BY_STATUS[403]),
        (400, "400", "HTTP400", BY_STATUS[400]),
        (503, "SlowDown", "SlowDown", BY_CODE["SlowDown"]),
        (404, "NoSuchUpload", "NoSuchUpload", BY_CODE["NoSuchUpload"]),
    ],
)
def test_answers_to_boto3(status: int, code: str, told: str, rule: Rule) -> None:
    """A HEAD has no body: boto3 makes the status a code."""
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "3"}}
    response: Any = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": meta}

    error = from_boto3(botocore.exceptions.ClientError(response, "HeadObject"), "some/file")

    assert (error.code, rule_of(error), error.retry_after_s) == (told, rule, 3.0)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", ("", "")),
        (b"  \n<Error><Code>A</Code><Message>m</Message></Error>", ("A", "m")),
        (b"<?xml version='1.0'?><Error><Message>m</Message><Code>A</Code><RequestId/></Error>", ("A", "m")),
        (b"<Response><Errors><Error><Code>A</Code></Error></Errors></Response>", ("A", "")),
        (b"<Error><Code>A</Code><Message>two\n  lines\x0d\ttab</Message></Error>", ("A", "two lines tab")),
        (b"<Error><Code>A</Code><Message>" + b"x" * 9999 + b"</Message></Error>", ("A", "x" * 500)),
        ("<Error><Code>A</Code><Message>ü</Message></Error>".encode(), ("A", "ü")),
        (b"<Error><Code>A</Code><Message>cut", ("", "")),
        (b"<html><body>Bad Gateway</body></html>", ("", "")),
        (b"<!DOCTYPE html><html>", ("", "")),
        (b" " * 300 + b"<!DOCTYPE e [<!ENTITY x 'y'>]><Error><Code>&x;</Code></Error>", ("", "")),
        ("<!DOCTYPE e [<!ENTITY x 'y'>]><Error><Code>&x;</Code></Error>".encode("utf-16-le"), ("", "")),
        (b'{"error": "json"}', ("", "")),
        (b"\x00\xff\xfe", ("", "")),
        (b"<Error><Code>\xff</Code></Error>", ("", "")),
        (b"<?xml version='1.0' encoding='latin-1'?><Error><Code>A</Code><Message>\xfc</Message></Error>", ("A", "ü")),
        (b"<?xml version='1.0' encoding='utf-32'?><Error><Code>A</Code></Error>", ("", "")),
        (b"<?xml version='1.0' encoding='no-such'?><Error><Code>A</Code></Error>", ("", "")),
        (b"<?xml version='1.0' encoding='base64'?><Error><Code>A</Code></Error>", ("", "")),
        (b"<?xml version='1.0' encoding='idna'?><Error><Code>A</Code></Error>", ("", "")),
    ],
)
def test_error_documents(body: bytes, found: tuple[str, str]) -> None:
    """Whatever a server says: code and message on one short line, or nothing."""
    assert parse_error(body) == found


def test_libcurl_may_end_without_a_sentence() -> None:
    """Its number is then what a person can look up."""
    assert from_curl(100, "", "some/file").cause == "libcurl ended with its error 100"


DATE = "Tue, 24 Nov 2026 04:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("", "", None),
        ("0", "", 0.0),
        (" 120 ", "", 120.0),
        ("-1", "", None),
        ("1.5", "", None),
        ("\u00b2", "", None),
        ("soon", DATE, None),
        ("Tue, 24 Nov 2026 04:01:30 GMT", DATE, 90.0),
        ("Tue, 24 Nov 2026 03:00:00 GMT", DATE, 0.0),
        ("Tue, 24 Nov 2026 04:01:30 GMT", "", None),
        ("Tue, 24 Nov 2026 04:01:30 GMT", "yesterday", None),
        ("Tue, 24 Nov 2026 04:01:30 -0000", DATE, None),
        ("Tue, 99 Nov 99999 04:01:30 GMT", DATE, None),
        ("Tue, 24 Nov 9999999999 04:01:30 GMT", DATE, None),
        ("Tue, 24 Nov 2026 04:01:30 +99999999999999", DATE, None),
        (DATE, "Tue, 24 Nov 2026 04:01:30 +99999999999999", None),
        ("9" * 400, "", math.inf),
    ],
)
def test_retry_after(value: str, date: str, seconds: float | None) -> None:
    """Seconds, or a date by the server's own clock; anything else is as if it was not there."""
    headers = {"retry-after": value} | ({"date": date} if date else {})

    assert retry_after_s(headers) == seconds
    assert from_answer(REQUEST, Answer(503, headers, b"", None)).retry_after_s == seconds


def test_unconfirmed_blames_nobody() -> None:
    """One strange answer is an accident, many are a captive portal; the sentence says what to do."""
    error = untrusted(REQUEST, "a HEAD does not find the object")

    assert rule_of(error)[:2] == (Scope.UNKNOWN, False)
    assert str(error).startswith(
        "confirm some/file: Unconfirmed: the server answered success but a HEAD does not find the object ("
    )


@pytest.mark.parametrize("rule", [*BY_CODE.values(), *BY_STATUS.values(), *dict(BY_CURL.values()).values()])
def test_rules_make_sense(rule: Rule) -> None:
    """What no file could pass heals once its cause is fixed, and load passes: neither is permanent. One-line hints."""
    assert not (rule.scope in {Scope.EVERYBODY, Scope.LOAD} and rule.permanent)
    assert "\n" not in rule.hint
    assert not rule.hint.endswith(".")


FOLLOWS = {
    (Scope.EVERYBODY, False): "paused at once",
    (Scope.UNKNOWN, False): "waits",
    (Scope.UNKNOWN, True): "parked",
    (Scope.FILE, False): "waits",
    (Scope.LOAD, False): "slowed down",
}


def documented() -> list[tuple[str, list[str], str]]:
    """The rows of docs/errors.md: the heading above (scope and consequence), the errors, the hint."""
    rows = []
    for heading, section in re.findall(r"^## (\w+: [\w ]+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL):
        for errors, hint in re.findall(r"^\| (`.+?) \| (.*) \|$", section, re.MULTILINE):
            rows.append((heading, errors.split(", "), hint))
    return rows


def heading_of(rule: Rule) -> str:
    return f"{rule.scope.value.capitalize()}: {FOLLOWS[rule.scope, rule.permanent]}"


def boto3_error(name: str) -> UploadError:
    kind: Any = getattr(botocore.exceptions, name)
    return from_boto3(kind(endpoint_url="u", proxy_url="p", error="e"), "f")


BY_EXCEPTION = {
    name: rule_of(boto3_error(name))
    for name in (
        "EndpointConnectionError",
        "ProxyConnectionError",
        "SSLError",
        "ConnectTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
        "ReadTimeoutError",
    )
}
BY_ERRNO = {name: rule_of(local_error(OSError(getattr(errno, name), "x"), "f")) for name in errno.errorcode.values()}
OTHER_ERRNO = Rule(Scope.FILE)


def test_document_shows_every_error() -> None:
    """docs/errors.md lists each error of the tables once, with its scope, what follows and its hint, and no other."""
    rules = {
        **{f"`{code}`": rule for code, rule in BY_CODE.items()},
        **{f"`{status}`": rule for status, rule in BY_STATUS.items()},
        **{f"`{name}` {number}": rule for number, (name, rule) in BY_CURL.items()},
        **{f"`{name}`": rule for name, rule in BY_EXCEPTION.items()},
        **{f"`{name}`": rule for name, rule in BY_ERRNO.items() if rule != OTHER_ERRNO},
    }
    shown = [(error, (heading, hint)) for heading, errors, hint in documented() for error in errors]

    assert len(dict(shown)) == len(shown)
    assert dict(shown) == {error: (heading_of(rule), rule.hint) for error, rule in rules.items()}


def test_document_has_one_row_per_hint() -> None:
    """Errors with the same consequence and hint share a row."""
    rows = [(heading, hint) for heading, _, hint in documented()]

    assert len(set(rows)) == len(rows)


def test_errors_without_a_row_are_as_the_document_says() -> None:
    """Any other exception of boto3 waits with the hint of the network; any other errno waits without a hint."""
    assert rule_of(boto3_error("BotoCoreError")) == UNSTEADY
    assert all(rule == OTHER_ERRNO for rule in BY_ERRNO.values() if not rule.hint)


OTHERS = r"FTP|LDAP|TELNET|TFTP|SSH|RTSP|^(REMOTE_|QUOTE_ERROR|FILE_COULDNT_READ_FILE|MALFORMAT_USER)"
OUTDATED = {"BAD_PASSWORD_ENTERED", "ALREADY_COMPLETE"}  # libcurl returns them no more


def test_libcurl_is_covered() -> None:
    """Each error that pycurl knows is in the table, but for those of protocols which are not ours."""
    names: dict[int, list[str]] = {}
    for name in dir(pycurl):
        if name.startswith("E_") and not name.startswith(("E_MULTI_", "E_CALL_MULTI")):
            names.setdefault(getattr(pycurl, name), []).append(name[2:])
    foreign = {number for number, found in names.items() if all(re.search(OTHERS, name) for name in found)}
    gone = {number for number, found in names.items() if OUTDATED & set(found)}

    assert set(names) - foreign - gone - set(BY_CURL) == {pycurl.E_OK}


def test_every_rule_has_a_hint() -> None:
    """Whatever happens, the line says what a person can do."""
    rules = {**BY_CODE, **{str(status): rule for status, rule in BY_STATUS.items()}, **dict(BY_CURL.values())}

    assert [name for name, rule in rules.items() if not rule.hint] == []


@pytest.mark.parametrize(("skew_s", "word"), [(-3600, "behind"), (3600, "ahead of"), (0, "")])
def test_a_wrong_clock_is_measured(skew_s: float, word: str) -> None:
    """A refused signature with a Date far from ours: the hint says how far, and in which direction."""
    date = formatdate(time.time() - skew_s, usegmt=True)

    error = from_code(403, "RequestTimeTooSkewed", "too large", "f", {"date": date})
    other = from_code(503, "SlowDown", "slow", "f", {"date": date})

    assert (error.cause, other.cause, other.hint) == ("too large", "slow", BY_CODE["SlowDown"].hint)
    match = re.fullmatch(r"set .*\)(?:; this machine's clock is (\d+) s (ahead of|behind) the server's)?", error.hint)
    assert match
    assert (match[2] or "") == word
    assert not word or abs(int(match[1]) - abs(skew_s)) < 60


@pytest.mark.parametrize("status", [400, 401, 403, 404, 503])
def test_a_wrong_clock_is_told_where_it_may_be_the_cause(status: int) -> None:
    """Servers refuse a skewed signature with 400, 401 or 403."""
    date = formatdate(time.time() - 3600, usegmt=True)

    error = from_code(status, "Odd", "no", "f", {"date": date})

    assert ("this machine's clock is" in error.hint) is (status in {400, 401, 403})
