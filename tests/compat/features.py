"""What a real daemon does with each S3 server: the rows of docs/compatibility.md."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from compat.servers import BUCKET, Server
from support.daemon import Daemon
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.daemon import Event

Row = dict[str, str]  # what is looked at, to what came of it

PART = 5 * 2**20
LARGE = bytes(range(256)) * (2 * PART // 256) + b"the third part"
SMALL = b"small content"
WAIT_S = 120.0
ODD_NAMES = (
    "blank +&=?#%;,@$!'().txt",
    'quote"<>[]{}|^`~.txt',
    "日本語/ümlaut é.txt",
    "back\\slash.txt",
    "line\nfeed.txt",
    "end of blank /x ",
    "a:b*c.txt",
    "%2E%41.txt",
    "x" * 200,
)


def daemon_of(server: Server, home: Path, bucket: str = BUCKET, **sections: Any) -> Daemon:
    upload = {"multipart_threshold": str(PART), "part_size": str(PART)}
    destination = {"prefix": f"{home.name}/", **sections.pop("destination", {})}
    environment = server.environment() | sections.pop("environment", {})
    return Daemon(home, bucket=bucket, environment=environment, destination=destination, upload=upload, **sections)


def result(daemon: Daemon, path: str) -> Event:
    """The event that says what became of the file, or why no file is sent."""

    def found() -> Event | None:
        for event in reversed(daemon.events(this_run=True)):
            ends = event["event"] in {"file.uploaded", "file.parked", "file.failed"} and event["path"] == path
            if ends or event["event"] == "destination.paused":
                return event
        return None

    event = eventually(found, timeout_s=WAIT_S, message=f"what became of {path}")
    assert event is not None
    return event


def sent(daemon: Daemon, path: str, content: bytes) -> Event:
    """Drop it, and compare what the server has with it."""
    daemon.drop(path, content)
    event = result(daemon, path)
    assert event["event"] == "file.uploaded", event
    return event


def body(server: Server, key: str) -> bytes:
    with closing(server.client()) as client:
        return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def usual(server: Server, home: Path) -> Row:
    """Files of all sizes, one written again, odd names; then `s3spool check` finds nothing in the way of any of it."""
    with daemon_of(server, home) as daemon:
        daemon.wait_ready(WAIT_S)
        rows = contents(server, daemon) | odd_names(server, daemon)
        done = daemon.cli("check", timeout_s=WAIT_S)
    assert done.returncode == 0, done.stdout
    warnings = {line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("warning")}
    warnings.discard("lifecycle")
    return rows | {"`s3spool check`": f"warns: {', '.join(sorted(warnings))}" if warnings else "ok"}


def contents(server: Server, daemon: Daemon) -> Row:
    rows: Row = {}
    for what, path, content in (
        ("small file", "small", SMALL),
        ("empty file", "empty", b""),
        ("large file, three parts", "large", LARGE),
    ):
        event = sent(daemon, path, content)
        assert body(server, event["key"]) == content
        rows[what] = "yes"
    rows["checksum that proves it"] = event["checksum"].partition(":")[0] or "md5"
    daemon.mark()
    event = sent(daemon, "small", b"another content")
    assert body(server, event["key"]) == b"another content"
    rows['replaced with `overwrite = "allow"`'] = "yes"
    return rows


def odd_names(server: Server, daemon: Daemon) -> Row:
    refused: list[str] = []
    for number, name in enumerate(ODD_NAMES):
        content = b"content %d" % number
        daemon.drop(name, content)
        event = result(daemon, name)
        if event["event"] == "file.uploaded":
            assert body(server, event["key"]) == content
        else:
            refused.append(f"`{name}`: {event['error_code']}".replace("|", "\\|"))
            daemon.mark()
    return {f"{len(ODD_NAMES)} odd names": f"no: {', '.join(refused)}" if refused else "yes"}


def never(server: Server, home: Path) -> Row:
    """Whatever the server does with a condition, an object that is there stays."""
    rows: Row = {}
    theirs = {f"{home.name}/small": b"theirs", f"{home.name}/large": b"theirs too"}
    with closing(server.client()) as client:
        for key, content in theirs.items():
            client.put_object(Bucket=BUCKET, Key=key, Body=content)
    with daemon_of(server, home, destination={"overwrite": "never"}) as daemon:
        daemon.wait_ready(WAIT_S)
        assert body(server, sent(daemon, "first", SMALL)["key"]) == SMALL
        for path, content in (("small", SMALL), ("large", LARGE)):
            daemon.drop(path, content)
            event = result(daemon, path)
            assert (event["event"], event["error_code"]) == ("file.parked", "PreconditionFailed"), event
        for key, content in theirs.items():
            assert body(server, key) == content
        ignored = daemon.events("destination.condition_ignored")
    rows['kept with `overwrite = "never"`'] = "yes, asks with HEAD first" if ignored else "yes, refused by the server"
    return rows


def killed(server: Server, home: Path) -> Row:
    """`kill -9` when the server has some parts of a large file."""
    content = LARGE * 4
    daemon = daemon_of(server, home)
    daemon.config["upload"]["max_bandwidth"] = "10 MiB"

    def has_parts() -> bool:
        with closing(sqlite3.connect(f"file:{daemon.state_directory}/ledger.sqlite3?mode=ro", uri=True)) as ledger:
            return bool(ledger.execute("SELECT count(*) FROM parts").fetchone()[0])

    with daemon:
        daemon.wait_ready(WAIT_S)
        daemon.drop("large", content)
        daemon.wait_event("multipart.started", WAIT_S)
        eventually(has_parts, timeout_s=WAIT_S, message="a part in the ledger")
        daemon.kill()
        del daemon.config["upload"]["max_bandwidth"]
        daemon.start()
        event = result(daemon, "large")
        assert event["event"] == "file.uploaded", event
        assert body(server, event["key"]) == content
        resumed = daemon.events("multipart.resumed", this_run=True)
    return {"killed amid a large file": "yes, goes on" if resumed else "yes, begins anew"}


def options(server: Server, home: Path) -> Row:
    """Metadata alone, and with tags, which a server may not know."""
    rows: Row = {}
    tagged = [{"match": ["tagged"], "tags": {"kind": "a b"}}]
    with daemon_of(server, home, destination={"metadata": {"team": "data"}}, rule=tagged) as daemon:
        daemon.wait_ready(WAIT_S)
        keys = [sent(daemon, path, content)["key"] for path, content in (("small", SMALL), ("large", LARGE))]
        daemon.drop("tagged", SMALL)
        event = result(daemon, "tagged")
    with closing(server.client()) as client:
        found = [client.head_object(Bucket=BUCKET, Key=key)["Metadata"] for key in keys]
    kept = all(it.get("team") == "data" and it.get("mtime") for it in found)
    rows["metadata and mtime"] = "yes" if kept else "taken, not kept"
    rows["tags"] = f"no: {event.get('error_code')}"
    if event["event"] == "file.uploaded":
        with closing(server.client()) as client:
            try:
                tags = client.get_object_tagging(Bucket=BUCKET, Key=event["key"])["TagSet"]
            except client.exceptions.ClientError:
                tags = []
        rows["tags"] = "yes" if tags == [{"Key": "kind", "Value": "a b"}] else "taken, not kept"
    return rows


def wrong_keys(server: Server, home: Path) -> Row:
    with daemon_of(server, home, environment={"AWS_SECRET_ACCESS_KEY": "wrong"}) as daemon:
        daemon.wait_ready(WAIT_S)
        daemon.drop("small", SMALL)
        event = result(daemon, "small")
    said = "taken: not checked" if event["event"] == "file.uploaded" else f"paused, {event['error_code']}"
    return {"wrong secret key": said}


def missing_bucket(server: Server, home: Path) -> Row:
    with daemon_of(server, home, bucket="no-such-bucket") as daemon:
        checked = daemon.cli("check", timeout_s=WAIT_S)
        assert checked.returncode == 1
        assert "does not exist" in checked.stdout
        daemon.wait_ready(WAIT_S)
        daemon.drop("small", SMALL)
        event = result(daemon, "small")
    said = "taken: it makes the bucket" if event["event"] == "file.uploaded" else f"paused, {event['error_code']}"
    return {"missing bucket": said}


FEATURES: tuple[Callable[[Server, Path], Row], ...] = (
    usual,
    never,
    killed,
    options,
    wrong_keys,
    missing_bucket,
)
