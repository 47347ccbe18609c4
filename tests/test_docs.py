"""What the documents say is there, is there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from s3spool.check.iam_policy import policy
from s3spool.cli.commands import cli
from s3spool.config.loader import load
from s3spool.daemon.limits import open_files_needed

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "s3spool"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def prose(document: Path) -> str:
    """Without fenced code, where brackets and hashes mean something else."""
    return re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    """Each link leads to a file of this repository, to a heading that exists, or to the web."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = document if not name else document.parent / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


def test_readme_shows_the_two_commands() -> None:
    """Whoever opens the repository sees how to run and how to test it, and both targets exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for target in ("run", "test"):
        assert f"$ make {target}\n" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_named_make_targets_exist() -> None:
    """CONTRIBUTING.md and the others name no target that the Makefile lacks."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for line in re.findall(r"(?:`|\$ )make ((?:[a-z]+ ?)+)", document.read_text(encoding="utf-8"))
        for target in line.split()
    }

    assert {"run", "test"} <= named
    assert named <= targets


def test_readme_lists_every_command() -> None:
    """The table has the commands of cli.py, and no other is named anywhere in the documents."""
    listed = re.findall(r"^\| `s3spool (\w+)[^`]*` \|", README, re.MULTILINE)
    named = {
        command
        for document in DOCUMENTS
        for command in re.findall(r"(?:`|\$ )s3spool ([a-z]+)", document.read_text(encoding="utf-8"))
    }

    assert sorted(listed) == sorted(cli.commands)
    assert named <= set(cli.commands)


def test_options_named_in_readme_exist() -> None:
    """Each --flag that the README shows belongs to some command."""
    known = {option for command in cli.commands.values() for parameter in command.params for option in parameter.opts}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"systemctl .*", "", README))) - {"--help"}

    assert {"--policy", "--json"} <= shown
    assert shown <= known


def test_exit_codes_of_readme_are_those_of_the_code() -> None:
    """Scripts rely on them."""
    from s3spool.cli import wait  # noqa: PLC0415 - beside its only use
    from s3spool.errors import ConfigError, S3SpoolError  # noqa: PLC0415 - beside its only use

    line = next(line for line in README.splitlines() if line.startswith("Exit codes:"))
    codes = {int(code): text for code, text in re.findall(r"(\d+) ([^,.]+)", line)}

    assert codes[S3SpoolError.exit_code] == "error"
    assert codes[ConfigError.exit_code] == "configuration"
    assert "parked" in codes[wait.SOME_PARKED]
    assert "time-out" in codes[wait.TIMED_OUT]


def test_configuration_of_readme_works(tmp_path: Path) -> None:
    """The six lines are a configuration with a folder and a bucket."""
    (example,) = re.findall(r"^ *```toml\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    file = tmp_path / "s3spool.toml"
    file.write_text(example)

    config = load(file, environ={"HOME": str(tmp_path)})

    assert len(example.splitlines()) == 6
    assert config.watch.directory == Path("outbox").absolute()
    assert config.destination.bucket == "my-bucket"
    assert config.after.action == "delete"


def test_architecture_names_every_package() -> None:
    """Its table is the map of the house: each package in the order of the import contract, and no other."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (layers,) = (one["layers"] for one in tool["importlinter"]["contracts"] if one["type"] == "layers")
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    section = ARCHITECTURE.partition("\n## The packages\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    floor = {name.strip(): number for number, layer in enumerate(layers) for name in re.split(r"[|:]", layer)}

    assert sorted(named) == sorted(packages)
    assert named == sorted(named, key=floor.__getitem__)


def test_architecture_names_modules_that_exist() -> None:
    """A module that is gone or renamed misleads."""
    packages = "|".join(sorted(path.parent.name for path in SOURCE.glob("*/__init__.py")))
    mentioned = set(re.findall(rf"`((?:{packages})/\w+\.(?:py|sql)|\w+\.(?:py|sql))`", ARCHITECTURE))

    assert "failure/breaker.py" in mentioned
    assert {name for name in mentioned if not (SOURCE / name).exists()} == set()


def test_architecture_names_the_tables_of_the_ledger() -> None:
    """The ledger's tables are those of its script."""
    schema = (SOURCE / "ledger" / "schema.sql").read_text(encoding="utf-8")
    section = ARCHITECTURE.partition("\n## The ledger\n")[2].partition("\n## ")[0]

    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == re.findall(r"CREATE TABLE (\w+)", schema)


def test_unit_names_the_descriptors_that_the_daemon_needs() -> None:
    """The unit's comment has the figures of the code, and its limit is above the larger one."""
    unit = (ROOT / "systemd" / "s3spool.service").read_text(encoding="utf-8")
    comment = " ".join(re.findall(r"^# (.+)$", unit, re.MULTILINE))
    (limit,) = re.findall(r"^LimitNOFILE=1024:(\d+)$", unit, re.MULTILINE)

    assert f"100 workers need {open_files_needed(100):,} descriptors" in comment
    assert f"1,000 workers, the most, need {open_files_needed(1000):,}." in comment
    assert open_files_needed(1000) <= int(limit)


def test_unit_and_operations_name_the_same_peak() -> None:
    """The memory that 100 workers need at their peak is one figure."""
    unit = (ROOT / "systemd" / "s3spool.service").read_text(encoding="utf-8")
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

    assert re.findall(r"Peaks at some (\d+ MiB) with 100", unit) == re.findall(
        r"100 peak at some (\d+ MiB)", operations
    )


def test_licence_is_the_one_pyproject_names() -> None:
    """The whole text stands in the repository, not a reference to it."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE"]
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004\n")
    assert "END OF TERMS AND CONDITIONS" in text


def test_security_shows_the_policy_that_check_prints() -> None:
    """Whoever copies it from there gets what `s3spool check --policy` prints for that bucket."""
    (shown,) = re.findall(r"^```json\n(.*?)^```$", SECURITY, re.MULTILINE | re.DOTALL)
    config = load(None, overrides={"destination.bucket": "my-bucket"}, environ={"HOME": "/nonexistent"})

    assert shown.rstrip("\n") == policy(config)


def test_security_names_what_version_names() -> None:
    """An advisory is for one of these, and both say which of them run."""
    said = CliRunner().invoke(cli, ["version", "--verbose"]).output
    named = {line.split()[0] for line in said.splitlines()} - {"s3spool"}

    assert named == {"Python", "SQLite", "boto3", "awscrt", "pycurl", "libcurl"}
    for name in (*named, "OpenSSL"):
        assert name in SECURITY
        assert re.search(rf"{name}[ /]\d", said), said


@pytest.mark.parametrize("template", ["s3spool.1.in", "s3spool.toml.5.in"])
def test_the_manual_pages_are_made(template: str) -> None:
    """The Debian package is built from them; `make test-system` alone would see that one fails."""
    command = [sys.executable, "packaging/manual.py", f"packaging/man/{template}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not re.search(r"@[a-z-]+@", made.stdout)
