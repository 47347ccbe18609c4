"""[[rule]]: which files get which prefix, headers, tags and post-upload action, and who says so."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3spool.check.iam_policy import policy
from s3spool.check.rules import check_rules
from s3spool.config.loader import load
from s3spool.config.schema import Config
from s3spool.daemon.components import filter_of
from s3spool.demo.seaweed import Seaweed
from s3spool.errors import ConfigError
from s3spool.folder.filters import FileFilter
from s3spool.folder.rules import FileRules, FirstMatch
from support.daemon import Daemon, to_toml
from support.faults import Status
from support.faulty import FaultyS3
from support.objects import content_of
from support.waiting import eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PART = 5 * 1024 * 1024

PATTERNS = [
    "*.html",
    "*.HTML",
    "a",
    "a*",
    "*",
    "logs/*",
    "logs/**",
    "**/x.html",
    "[ab]?",
    "*.tar.gz",
    ".*",
    "*.",
    "a.b",
]
PATHS = [
    "a",
    "a.html",
    "x.html",
    "logs/x.html",
    "logs/a/b.html",
    "b/x.html",
    ".html",
    "x.tar.gz",
    "html",
    "ab",
    "a.b",
    "a.",
]


@given(
    st.lists(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3), min_size=1, max_size=5),
    st.sampled_from(PATHS) | st.text("ab./lhtm*", min_size=1, max_size=12),
)
@example([["*"], ["*.html"]], "x.html")
@example([["logs/**"], ["*.html"]], "logs/x.html")
@example([["*.html"], ["logs/**"]], "logs/x.html")
def test_the_first_rule_that_matches_wins(lists: list[list[str]], path: str) -> None:
    """One compiled matcher says what a loop over all patterns, read like `include`, says."""
    expected = next((i for i, patterns in enumerate(lists) if FileFilter(patterns, ()).accepts_file(path)), -1)

    assert FirstMatch(lists)(path) == expected


def read(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "s3spool.toml"
    file.write_text(f'[watch]\ndirectory = "{tmp_path / "in"}"\n[state]\ndirectory = "{tmp_path / "state"}"\n{text}')
    return load(file, environ={"HOME": str(tmp_path)})


RULES = """
[destination]
bucket = "bucket"
prefix = "all/"
storage_class = "STANDARD_IA"
tags = { team = "data" }
[after]
action = "delete"
[[rule]]
match = ["*.html", "site/**"]
prefix = "site/%Y/"
cache_control = "max-age=60"
storage_class = ""
after = "keep"
[[rule]]
match = ["*.log"]
tags = {}
acl = "private"
"""


def test_what_a_rule_leaves_out_comes_from_destination_and_after(tmp_path: Path) -> None:
    """And what it sets, also to nothing, counts for its files alone."""
    rules = FileRules(read(tmp_path, RULES))

    html, log, other = (rules.destination(path) for path in ("a/b.html", "a.log", "a.txt"))
    assert (html.prefix, html.storage_class, html.cache_control, html.tags) == (
        "site/%Y/", "", "max-age=60", {"team": "data"},
    )  # fmt: skip
    assert (log.prefix, log.storage_class, log.cache_control, log.tags) == ("all/", "STANDARD_IA", "", {})
    assert other == read(tmp_path, RULES).destination
    assert [rules.action(path) for path in ("a.html", "site/x", "a.log", "a.txt")] == [
        "keep",
        "keep",
        "delete",
        "delete",
    ]
    assert [rules.number(path) for path in ("a.html", "a.log", "a.txt")] == [1, 2, None]
    assert rules.name("a.html") == "rule 1 (*.html, site/**)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[[rule]]", "rule[1].match: is missing"),
        ("[rule]\nmatch = ['*']", "rule: must be tables: a line [[rule]]"),
        ("rule = 1", "rule: must be tables"),
        ("[[rule]]\nmatch = []", "rule[1].match = []: must hold at least one pattern"),
        ("[[rule]]\nmatch = '*'", 'rule[1].match = "*": must be a list of patterns'),
        (
            "[[rule]]\nmatch = ['*']\n[[rule]]\nmatch = ['a']\nprefix = '/x'",
            'rule[2].prefix = "/x": must not start with',
        ),
        ("[[rule]]\nmatch = ['*']\nstorage_class = 'a b'", 'rule[1].storage_class = "a b": must be letters'),
        ("[[rule]]\nmatch = ['*']\ncache_control = 1", "rule[1].cache_control = 1: must be a string"),
        ("[[rule]]\nmatch = ['*']\nobject_lock_mode = 'COMPLIANCE'", "needs object_lock_days of at least 1"),
        ("[[rule]]\nmatch = ['*']\nobject_lock_days = 3", "rule[1].object_lock_days = 3: needs object_lock_mode"),
        ("[[rule]]\nmatch = ['*']\nafter = 'move'", 'rule[1].after = "move": must be one of keep, delete, archive'),
        ("[[rule]]\nmatch = ['*']\nafter = 'archive'", 'rule[1].after = "archive": needs after.archive_directory'),
        ("[[rule]]\nmatch = ['*']\ncontent_typ = 'x'", "rule[1].content_typ: unknown key (did you mean content_type?)"),
        ("[[rule]]\nmatch = ['*']\nbucket = 'other'", "rule[1].bucket: unknown key (known: match, acl, after"),
        ("[[rule]]\nmatch = ['*']\ntags = { k = 'a;b' }", "tag 'k': may hold letters"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_number_and_key(text: str, line: str, tmp_path: Path) -> None:
    """At the start, in one line for each error."""
    file = tmp_path / "s3spool.toml"
    file.write_text(text)

    with pytest.raises(ConfigError) as raised:
        load(file, environ={"HOME": str(tmp_path)})

    assert line in str(raised.value)


def test_rules_do_not_come_from_the_environment(tmp_path: Path) -> None:
    """A variable that tries is refused, and told where they stand."""
    with pytest.raises(
        ConfigError, match=r"^rule = \"x\": rules stand in the file, as \[\[rule\]\].*S3SPOOL_RULE__PREFIX"
    ):
        load(environ={"HOME": str(tmp_path), "S3SPOOL_RULE__PREFIX": "x"})


def test_a_directory_is_too_deep_only_where_no_rule_has_room(tmp_path: Path) -> None:
    """A rule's shorter prefix may leave room for a key."""
    deep = "d" * 255 + "/" + "e" * 255
    long = f'[destination]\nbucket = "bucket"\nprefix = "{"p" * 512}"\n'

    assert filter_of(read(tmp_path, long)).too_deep(f"{deep}/{deep}")
    assert filter_of(read(tmp_path, long)).too_deep(f"{deep}/x")
    assert not filter_of(read(tmp_path, f'{long}[[rule]]\nmatch = ["*.a"]\nprefix = ""')).too_deep(f"{deep}/x")


def test_check_shows_an_example_of_each_rule(tmp_path: Path) -> None:
    """And warns of a rule that applies to no file, unless there is no file at all."""
    config = read(tmp_path, RULES)
    (tmp_path / "in" / "sub").mkdir(parents=True)

    assert [(it.level, it.text) for it in check_rules(config)] == [
        ("ok", "*.html, site/**: the folder has no file yet"),
        ("ok", "*.log: the folder has no file yet"),
    ]
    (tmp_path / "in" / "sub" / "a.html").touch()
    (tmp_path / "in" / ".b.log").touch()
    html, log = check_rules(config)

    assert (html.level, html.subject) == ("ok", "rule 1")
    assert re.fullmatch(
        r"sub/a\.html would be s3://bucket/site/20\d\d/sub/a\.html \(text/html, max-age=60, keep\)", html.text
    )
    assert (log.level, log.subject, log.text) == (
        "warning",
        "rule 2",
        "*.log: applies to none of the files of the folder",
    )


def test_the_policy_grants_what_rules_need(tmp_path: Path) -> None:
    """All prefixes, and tags and ACLs that only a rule sets."""
    text = '[destination]\nbucket = "bucket"\nprefix = "a/"\nregion = "eu-west-1"\n'
    text += '[[rule]]\nmatch = ["*.x"]\nprefix = "b/"\n'
    plain = json.loads(policy(read(tmp_path, text)))
    more = json.loads(policy(read(tmp_path, f'{text}acl = "private"\ntags = {{ a = "b" }}\nlegal_hold = true')))

    assert plain["Statement"][0]["Resource"] == ["arn:aws:s3:::bucket/a/*", "arn:aws:s3:::bucket/b/*"]
    assert set(more["Statement"][0]["Action"]) - set(plain["Statement"][0]["Action"]) == {
        "s3:PutObjectTagging", "s3:PutObjectAcl", "s3:PutObjectLegalHold",
    }  # fmt: skip


def test_check_tries_what_each_rule_asks_for(tmp_path: Path) -> None:
    """A permission that only one rule needs is missing: the line names the rule and the permission."""
    with FaultyS3() as faulty:
        refused = Status(code=403, error_code="AccessDenied")
        faulty.script(refused, times=None, match=lambda request: "x-amz-tagging" in request.headers)
        daemon = Daemon(
            tmp_path,
            faulty,
            destination={"endpoint_url": faulty.endpoint_url},
            rule=[{"match": ["*.a"], "acl": "private"}, {"match": ["*.b"], "tags": {"a": "b"}}],
        )
        daemon.config_path.write_text(to_toml(daemon.config))
        checked = daemon.cli("check")

        assert checked.returncode == 1
        assert re.search(r"error +rule 2: CreateMultipartUpload: AccessDenied.*s3:PutObjectTagging", checked.stdout)
        assert not re.search(r"(error|warning) +rule 1", checked.stdout)
        assert faulty.count("DELETE.*uploadId") == faulty.count("POST.*uploads") - 1


def head(s3: S3Client, bucket: str, key: str) -> dict[str, Any]:
    return dict(s3.head_object(Bucket=bucket, Key=key))


@pytest.mark.integration
def test_a_daemon_follows_its_rules(tmp_path: Path, seaweed: Seaweed, s3: S3Client, bucket: str) -> None:
    """Small and large files, at a real store; `why`, `key` and `check` name the rule; a reload changes what comes."""
    rule: list[dict[str, Any]] = [
        {
            "match": ["*.html"],
            "prefix": "site/",
            "cache_control": "max-age=60",
            "metadata": {"kind": "page"},
            "after": "delete",
        },
        {
            "match": ["logs/**"],
            "prefix": "logs-%Y/",
            "storage_class": "STANDARD_IA",
            "tags": {"class": "log"},
            "content_type": "text/plain",
        },
        {"match": ["*.none"]},
    ]
    with Daemon(
        tmp_path,
        seaweed,
        bucket=bucket,
        upload={"multipart_threshold": PART, "part_size": PART},
        destination={"endpoint_url": seaweed.endpoint_url, "prefix": "all/", "metadata": {"from": "here"}},
        rule=rule,
    ) as daemon:
        daemon.wait_ready()
        large = content_of(PART + 1)
        daemon.drop("a.html", b"<p>")
        daemon.drop("logs/b.bin", large)
        kept = daemon.drop("c.jpg")
        daemon.wait_uploaded(3)
        keys = {event["path"]: event["key"] for event in daemon.events("file.uploaded")}

        eventually(lambda: not (daemon.folder / "a.html").exists(), message="removal by the rule")
        assert kept.exists()
        assert (daemon.folder / "logs/b.bin").exists()
        assert (keys["a.html"], keys["c.jpg"]) == ("site/a.html", "all/c.jpg")
        assert re.fullmatch(r"logs-20\d\d/logs/b\.bin", keys["logs/b.bin"])
        page, log, photo = (head(s3, bucket, keys[path]) for path in ("a.html", "logs/b.bin", "c.jpg"))
        assert (page["ContentType"], page["CacheControl"]) == ("text/html; charset=utf-8", "max-age=60")
        assert (page["Metadata"]["kind"], "from" in page["Metadata"]) == ("page", False)
        assert (log["ContentType"], log["StorageClass"], log["ContentLength"]) == (
            "text/plain",
            "STANDARD_IA",
            len(large),
        )
        assert s3.get_object_tagging(Bucket=bucket, Key=keys["logs/b.bin"])["TagSet"] == [
            {"Key": "class", "Value": "log"}
        ]
        assert (photo["ContentType"], photo["Metadata"]["from"], photo.get("CacheControl")) == (
            "image/jpeg",
            "here",
            None,
        )

        assert "rule 2 (logs/**) applies" in daemon.cli("why", "logs/b.bin").stdout
        assert json.loads(daemon.cli("why", "logs/b.bin", "--json").stdout)["rule"] == 2
        assert "no rule applies" in daemon.cli("why", "c.jpg").stdout
        told = daemon.cli("key", "new.html")
        assert (told.stdout, told.stderr) == ("site/new.html\n", "s3spool: rule 1 (*.html) applies\n")
        checked = daemon.cli("check").stdout
        assert re.search(r"ok +rule 2: logs/b\.bin would be s3://", checked)
        assert re.search(r"warning +rule 3: \*\.none: applies to none", checked)

        daemon.config["rule"] = [{"match": ["*.jpg"], "prefix": "photos/"}]
        daemon.config_path.write_text(to_toml(daemon.config))
        daemon.signal(signal.SIGHUP)
        assert daemon.wait_event("daemon.reloaded")["changed"] == ["rule"]
        daemon.drop("d.jpg")
        daemon.drop("d.html")
        daemon.wait_uploaded(5)

        keys = {event["path"]: event["key"] for event in daemon.events("file.uploaded")}
        assert (keys["d.jpg"], keys["d.html"]) == ("photos/d.jpg", "all/d.html")
        assert (daemon.folder / "d.html").exists()
        assert daemon.cli("key", "x.jpg").stdout == "photos/x.jpg\n"
        daemon.stop()
        assert daemon.cli("key", "x.jpg").stdout == "photos/x.jpg\n"
        assert "rule 1 (*.jpg) applies" in daemon.cli("why", "d.jpg").stdout
