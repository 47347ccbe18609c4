"""The commands of README and docs/: all parse, and those that need no root and no package are run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
import pytest

from s3spool.cli.commands import cli
from s3spool.config.loader import load
from s3spool.demo.seaweed import Seaweed
from support.waiting import eventually

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 16_000
BUCKET = "my-bucket"
#: These change the system, need an account or a service, or run for minutes.
NOT_RUN = r"sudo|pipx |make |\./|curl |journalctl |echo .*\| sudo|s3spool |python -m|pip "
BACKGROUND = {"make run": ["demo", "--port", "0"], ".venv/bin/s3spool run": ["run"]}


def fenced(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def commands(document: Path) -> list[str]:
    """What a person types: console lines after `$`, and all lines of shell blocks; without comments."""
    typed = [line for block in fenced(document, "console") for line in re.findall(r"^ *\$ (.+)$", block, re.MULTILINE)]
    typed += [line for block in fenced(document, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+# .*$", "", line) for line in typed if line.strip()]


ALL = [(document.name, command) for document in DOCUMENTS for command in commands(document)]


def test_words_of_the_documents() -> None:
    """README and docs/ together stay within the limit that CONTRIBUTING.md names."""
    found = chain.from_iterable(document.read_text(encoding="utf-8").split() for document in DOCUMENTS)
    words = sum(1 for word in found if re.search(r"\w", word))  # the bars of a table are none

    assert f"at most {MOST_WORDS:,} words" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert words <= MOST_WORDS


def test_every_shell_block_is_valid_shell() -> None:
    """No quote is missing, no line is cut."""
    for document in DOCUMENTS:
        script = "\n".join(
            fenced(document, "sh") + re.findall(r"^ *\$ (.+)$", "".join(fenced(document, "console")), re.MULTILINE)
        )
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.stderr == "", document.name


def test_every_command_of_s3spool_parses() -> None:
    """Each command exists with the options and arguments that the documents show."""
    parsed = 0
    for name, line in ALL:
        for words in re.findall(r"(?:^|&& |sudo )(?:\S*/)?s3spool (?=[a-z])([^&|;>]*)", line):
            try:
                parse(shlex.split(words))
            except click.ClickException as exc:
                pytest.fail(f"{name}: s3spool {words}: {exc.format_message()}")
            parsed += 1

    assert parsed > 25


def parse(words: list[str]) -> None:
    """As click does before a command runs. Raises click.ClickException."""
    command: click.Command = cli
    context = cli.make_context("s3spool", list(words))
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found
        command = found
        context = command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("name", ["tutorial.md", "howto.md", "operations.md", "configuration.md"])
def test_examples_are_valid_configurations(name: str, tmp_path: Path) -> None:
    """A copied example has no unknown key and no value out of range."""
    for example in fenced(ROOT / "docs" / name, "toml"):
        file = tmp_path / "s3spool.toml"
        file.write_text(example)

        load(file, environ={"HOME": str(tmp_path)})


class Reader:
    """A person in a fresh checkout, who types what a document says."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.checkout = home / "checkout"
        (self.checkout / ".venv/bin").mkdir(parents=True)
        shutil.copy(ROOT / "README.md", self.checkout)
        program = self.checkout / ".venv/bin/s3spool"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m s3spool "$@"\n')
        program.chmod(0o755)
        foreign = ("AWS_", "S3SPOOL_", "NOTIFY_SOCKET")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._environment |= environment | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
        self._log = home / "log"
        self._daemon: subprocess.Popen[bytes] | None = None

    def follow(self, document: Path) -> list[str]:
        """Type all that can be run; returns it."""
        typed = []
        for kind, block in re.findall(
            r"^```(console|toml)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL
        ):
            if kind == "toml" and "[destination]" in block:
                (self.checkout / "s3spool.toml").write_text(block)
            for line in re.findall(r"^\$ (.+)$", block, re.MULTILINE):
                command = line.partition("  #")[0].strip()
                if command in BACKGROUND:
                    self._start(BACKGROUND[command])
                elif not re.match(NOT_RUN, command):
                    self._run(command)
                else:
                    continue
                typed.append(command)
        return typed

    def stop(self) -> None:
        if self._daemon:
            self._daemon.send_signal(signal.SIGINT)
            assert self._daemon.wait(60) == 0
            self._daemon = None

    def _start(self, words: list[str]) -> None:
        self.stop()
        with self._log.open("wb") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "s3spool", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.checkout,
                env=self._environment,
            )
        eventually(lambda: "daemon.ready" in self._log.read_text(), timeout_s=120)

    def _run(self, command: str) -> None:
        done = subprocess.run(  # noqa: S602 - as a person types it
            command,
            shell=True,
            cwd=self.checkout,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{self._log.read_text()}"


@pytest.fixture
def reader(tmp_path: Path, seaweed: Seaweed) -> Iterator[Reader]:
    seaweed.create_bucket(BUCKET)
    one = Reader(tmp_path, seaweed.environment())
    yield one
    one.stop()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_readme_word_by_word(reader: Reader, seaweed: Seaweed) -> None:
    """The demo, then a bucket of one's own: the file is in the bucket and gone from the folder."""
    typed = reader.follow(ROOT / "README.md")

    assert typed == [
        "make run",
        "cp README.md tmp/",
        ".venv/bin/s3spool list --all",
        "mkdir -p outbox",
        ".venv/bin/s3spool check",
        ".venv/bin/s3spool run",
        "cp README.md outbox/",
        ".venv/bin/s3spool wait",
        ".venv/bin/s3spool list --all",
    ]
    assert list((reader.checkout / "outbox").iterdir()) == []
    client = seaweed.client()
    client.head_object(Bucket=BUCKET, Key="README.md")
    client.close()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_tutorial_word_by_word(reader: Reader, seaweed: Seaweed) -> None:
    """The first two steps, which need no root: the file is in the bucket and still in the folder."""
    typed = reader.follow(ROOT / "docs" / "tutorial.md")

    assert typed[-1] == ".venv/bin/s3spool run outbox s3://my-bucket/in/ --once"
    assert len(typed) == 10
    assert (reader.checkout / "outbox" / "README.md").exists()
    client = seaweed.client()
    client.head_object(Bucket=BUCKET, Key="in/README.md")
    client.close()
