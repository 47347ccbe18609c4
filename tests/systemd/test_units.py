"""The shipped units, users, folders and texts say what the code relies on, and nothing that systemd would ignore."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from s3spool.config import directories as config_directories
from s3spool.config import loader as configuration
from s3spool.config.finding import as_the_unit_has_it
from s3spool.daemon.limits import open_files_needed
from s3spool.daemon.supervisor import TICK_S
from s3spool.errors import ConfigError
from s3spool.heartbeat import HEARTBEAT_TIMEOUT_S
from s3spool.logs.events import EVENTS
from s3spool.systemd.install import _FOLDER_MODE, USER
from s3spool.systemd.units import Service, for_systemd, service_of, shipped
from support.processes import finished

UNITS = ("s3spool.service", "s3spool@.service")
MOST_WORKERS = 1000
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(unit: str) -> dict[str, list[str]]:
    """What follows each key, in order."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", shipped(unit), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def seconds(value: str) -> float:
    return float(value.removesuffix("min")) * 60 if value.endswith("min") else float(value)


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
    return finished("systemd-analyze", *arguments, env=environ)


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_is_low(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze security` gives at most 1.5 of 10."""
    file = tmp_path / unit
    file.write_text(shipped(unit))

    told = systemd_analyze("security", "--no-pager", "--offline=true", "--threshold=15", file)

    assert "Overall exposure level" in told.stdout, told.stderr
    assert told.returncode == 0, told.stdout


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_each_line(unit: str, tmp_path: Path) -> None:
    """A misspelt key or value is only a warning to systemd, and a hole in the sandbox."""
    file = tmp_path / unit.replace("@", "@name")
    text = re.sub("^(ExecStart|Documentation)=.*", "", shipped(unit), flags=re.MULTILINE)
    file.write_text(text.replace("[Service]", "[Service]\nExecStart=/bin/true"))

    told = systemd_analyze("verify", "--man=no", file)

    assert [line for line in told.stderr.splitlines() if "s3spool" in line] == []


def test_each_setting_has_its_reason() -> None:
    """No more than a group of three settings stands without a comment above it."""
    service = shipped(UNITS[0]).partition("[Service]")
    lines = [line for line in "".join(service[1:]).splitlines() if line]
    kinds = "".join("c" if line.startswith("#") else "h" if line.startswith("[") else "s" for line in lines)

    assert re.findall("hs|s{4,}", kinds) == []


def test_template_is_the_unit_but_for_names() -> None:
    """What is hardened or limited in one is so in the other."""
    first, template = (settings(unit) for unit in UNITS)
    per_instance: dict[str, Callable[[str], str]] = {
        "Description": lambda text: text.replace("s3spool:", "s3spool %i:"),
        "RequiresMountsFor": lambda _: "/var/spool/s3spool-%i /var/lib/s3spool-%i",
        "ExecStart": lambda text: text.replace("s3spool.toml", "%i.toml"),
        "StateDirectory": lambda _: "s3spool-%i",
        "RuntimeDirectory": lambda _: "s3spool-%i",
        "LoadCredential": lambda _: "aws:/etc/s3spool/%i.credentials",
        "Environment": lambda text: text.replace("HOME=/var/lib/s3spool", "HOME=/var/lib/s3spool-%i"),
    }
    expected = {key: [per_instance.get(key, str)(value) for value in values] for key, values in first.items()}

    assert template == expected


@pytest.mark.parametrize("service", [service_of(""), service_of("two")], ids=["first", "instance"])
def test_unit_and_code_agree_on_names(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`status` and its like look for state and socket where the unit has them."""
    unit = {
        key: [value.replace("%i", service.name) for value in values]
        for key, values in settings(service.template).items()
    }
    etc = tmp_path / "etc"
    etc.mkdir()
    monkeypatch.setattr(configuration, "SYSTEM_FILE", etc / "s3spool.toml")
    file = etc / service.config.name
    file.write_text('[watch]\ndirectory = "/srv"\n')
    asked = as_the_unit_has_it(
        configuration.load(file, environ={"HOME": str(tmp_path)}), environ={"HOME": str(tmp_path)}
    )

    assert unit["ExecStart"] == [f"/usr/bin/s3spool run --config {service.config}"]
    assert unit["LoadCredential"] == [f"aws:{service.credentials}"]
    assert unit["RequiresMountsFor"] == [f"{service.folder} {service.state}"]
    assert Path("/var/lib", *unit["StateDirectory"]) == service.state == asked.state.directory
    assert Path("/run", *unit["RuntimeDirectory"], "control.sock") == asked.service.control_socket
    assert service.folder.is_relative_to(unit["ReadWritePaths"][0])


@pytest.mark.parametrize("unit", UNITS)
def test_a_reload_is_waited_for_where_systemd_can(unit: str) -> None:
    """From 253 on the type says it, and no command of ours sends the signal; nothing else changes."""
    old, new = shipped(unit), for_systemd(shipped(unit), 253)

    assert for_systemd(old, 252) == old
    gone, come = ([line for line in a.splitlines() if line not in b.splitlines()] for a, b in ((old, new), (new, old)))
    assert come == ["Type=notify-reload"]
    settings_gone = [line.partition("=")[0] for line in gone if not line.startswith("#")]
    assert settings_gone == ["Type", "ExecReload"]


def test_limits_fit_the_daemon() -> None:
    """Time-outs are longer than what they wait for, and limits hold for the most workers that can be configured."""
    unit = settings(UNITS[0])
    defaults = configuration.load(environ={"HOME": "/nonexistent"}, overrides={"upload.workers": str(MOST_WORKERS)})
    soft, hard = (int(value) for value in unit["LimitNOFILE"][0].split(":"))

    assert unit["RestartPreventExitStatus"] == [str(ConfigError.exit_code)]
    assert seconds(unit["TimeoutStopSec"][0]) > defaults.service.drain_s + 10
    assert seconds(unit["WatchdogSec"][0]) / 2 >= HEARTBEAT_TIMEOUT_S > TICK_S
    assert soft <= 1024, "select(2)"
    assert hard >= open_files_needed(MOST_WORKERS)
    assert int(unit["TasksMax"][0]) >= MOST_WORKERS + 50
    with pytest.raises(ConfigError):
        configuration.load(environ={"HOME": "/nonexistent"}, overrides={"upload.workers": str(MOST_WORKERS + 1)})


def test_folder_and_user_are_those_of_the_unit() -> None:
    """What the package makes is what the unit and `service install` expect."""
    (folder,) = re.findall(r"^d +(\S+) +(\d+) +(\S+) +(\S+)", shipped("s3spool.tmpfiles.conf"), re.MULTILINE)
    (user,) = re.findall(r'^u +(\S+) +- +"[^"]+" +(\S+) +(\S+)$', shipped("s3spool.sysusers.conf"), re.MULTILINE)

    assert folder == (str(service_of("").folder), f"{_FOLDER_MODE:o}", USER, USER)
    assert user == (USER, str(service_of("").state), "/usr/sbin/nologin")
    assert settings(UNITS[0])["User"] == settings(UNITS[0])["Group"] == [USER]


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-sysusers takes root")
def test_user_can_be_made(tmp_path: Path) -> None:
    """systemd-sysusers accepts the line."""
    (tmp_path / "etc").mkdir()
    place = tmp_path / "usr/lib/sysusers.d"
    place.mkdir(parents=True)
    (place / "s3spool.conf").write_text(shipped("s3spool.sysusers.conf"))

    done = finished("systemd-sysusers", f"--root={tmp_path}", "s3spool.conf")

    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^s3spool:.*:/var/lib/s3spool:/usr/sbin/nologin$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE
    )


@pytest.mark.parametrize(
    ("folder", "flag", "hint"),
    [
        ("locked/out", 0, "the unit hides it: a drop-in has to say ProtectHome=tmpfs and BindPaths="),
        ("drop", os.ST_RDONLY, "it is read-only here: for a service a drop-in has to say ReadWritePaths="),
        ("drop", 0, ""),
    ],
)
def test_sandbox_in_the_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, flag: int, hint: str
) -> None:
    """From a shell all rights are right; only the daemon can see that its unit keeps it out, so it says which line."""
    (tmp_path / "locked").mkdir(mode=0)  # as ProtectHome=yes shows /home
    (tmp_path / "drop").mkdir()
    monkeypatch.setattr(config_directories, "_HOMES", (tmp_path / "locked",))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flag))

    said = config_directories.sandbox(tmp_path / folder)

    assert said == (f"; {hint}{tmp_path / folder}" if hint else "")


def catalog() -> dict[str, tuple[str, str]]:
    """Header and text by MESSAGE_ID."""
    entries = re.split(r"^-- ", shipped("s3spool.catalog"), flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        message_id, _, rest = entry.partition("\n")
        head, _, text = rest.partition("\n\n")
        assert message_id not in found
        found[message_id] = (head, text)
    return found


def test_catalog_explains_each_alert() -> None:
    """Each MESSAGE_ID has an entry, and no entry is about an event that is gone."""
    assert set(catalog()) == {spec.message_id for spec in EVENTS.values() if spec.message_id}


@pytest.mark.parametrize("message_id", sorted(catalog()))
def test_catalog_entry_says_what_to_do(message_id: str) -> None:
    """A subject, what it means, what to do; and only fields that journald fills in: letters and underscores."""
    head, text = catalog()[message_id]

    assert re.search(r"^Subject: .{10,60}$", head, re.MULTILINE)
    assert re.search(r"^Defined-By: s3spool$", head, re.MULTILINE)
    assert text.strip().count("\n\n") >= 1, "what it means, and what to do"
    assert max(len(line) for line in text.splitlines()) <= 90
    assert re.findall(r"@[^@\s]*@", text) == re.findall(r"@[A-Z_]+@", text)


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="journalctl is not installed")
def test_catalog_compiles(tmp_path: Path) -> None:
    """journalctl takes it, whole."""
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    (place / "s3spool.catalog").write_text(shipped("s3spool.catalog"))

    done = finished("journalctl", f"--root={tmp_path}", "--update-catalog")
    listed = finished("journalctl", f"--root={tmp_path}", "--list-catalog")

    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[0] for line in listed.stdout.splitlines()} == set(catalog())
