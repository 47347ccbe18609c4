"""Options that several commands share, and the configuration that they lead to."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from s3spool.config.finding import as_the_unit_has_it, named, salvaged
from s3spool.config.loader import load, locate, places
from s3spool.config.schema import Config
from s3spool.control.client import ControlClient
from s3spool.demo.home import homes_here, running_demo, use_keys
from s3spool.errors import ConfigError
from s3spool.logs.text import printable


class _Directory(click.ParamType[str]):
    """A directory for the completion; `load` reports what is wrong with it, with exit code 78."""

    name = "directory"

    def shell_complete(self, _: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:

        return [CompletionItem(incomplete, type="dir")]


_ACTIONS = click.Choice(["keep", "delete", "archive"])
_FOLDER = _Directory()
_LEVELS = click.Choice(["debug", "info", "warning", "error"])
_FORMATS = click.Choice(["auto", "console", "json", "journal"])
_RUN_OPTIONS: dict[str, tuple[str, str, str, click.ParamType[Any] | None]] = {
    "settle_s": ("watch.settle_s", "SECONDS", "A file is complete when it did not change for so long.", None),
    "after": ("after.action", "ACTION", "Keep, delete or archive uploaded files.", _ACTIONS),
    "archive_directory": ("after.archive_directory", "DIR", "Where --after archive moves files.", _FOLDER),
    "endpoint_url": ("destination.endpoint_url", "URL", "An S3-compatible store instead of AWS.", None),
    "region": ("destination.region", "NAME", "The bucket's region.", None),
    "profile": ("destination.profile", "NAME", "A profile of AWS's shared files.", None),
    "workers": ("upload.workers", "N", "How many files are sent at the same time.", None),
    "max_bandwidth": ("upload.max_bandwidth", "RATE", 'Like "50MiB/s".', None),
    "state_directory": ("state.directory", "DIR", "Where the ledger is kept.", _FOLDER),
    "log_level": ("log.level", "LEVEL", "debug, info, warning or error.", _LEVELS),
    "log_format": ("log.format", "FORMAT", "auto, console, json or journal.", _FORMATS),
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def group_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --name."""
    # `load` reports a file that cannot be read, with exit code 78.
    path = click.Path(path_type=Path, readable=False)
    text = "The TOML file. [default: $S3SPOOL_CONFIG, ./s3spool.toml, the user's, the system's]"
    function = click.option("--name", default="", metavar="NAME", help="Use /etc/s3spool/NAME.toml.")(function)
    return click.option("--config", "config_file", type=path, help=text)(function)


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --name, which may also stand before the command."""

    @group_options
    @functools.wraps(function)
    def command(config_file: Path | None, name: str, **arguments: Any) -> Any:
        before = click.get_current_context().find_root().params
        return function(
            config_file=config_file or before.get("config_file"), name=name or before.get("name") or "", **arguments
        )

    return command


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """DIRECTORY, the URL, --config, --name and a flag for the most used keys; the command gets a `Run`."""

    @click.argument("directory", required=False, type=_FOLDER)
    @click.argument("destination", required=False, metavar="[s3://BUCKET[/PREFIX]]")
    @config_options
    @functools.wraps(function)
    def command(
        directory: str | None, destination: str | None, config_file: Path | None, name: str, **arguments: Any
    ) -> Any:
        flags = {_RUN_OPTIONS[flag][0]: arguments.pop(flag) for flag in _RUN_OPTIONS}
        return function(_run(directory, destination, config_file, name, flags), **arguments)

    for name, (_, metavar, text, kind) in reversed(_RUN_OPTIONS.items()):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, metavar=metavar, help=text, type=kind)(command)
    return command


class Run(NamedTuple):
    """A configuration as typed for `run` or `check`, and what a reload has to apply again."""

    config: Config
    overrides: Mapping[str, object]
    warnings: list[str]  #: lines about the file that was found


def _run(
    directory: str | None, destination: str | None, config_file: Path | None, name: str, flags: Mapping[str, object]
) -> Run:

    if directory and directory.startswith("s3://") and destination is None:
        directory, destination = None, directory
    overrides: dict[str, object] = {"watch.directory": directory, **_typed(destination), **flags}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    warnings: list[str] = []
    if directory and destination:  # nothing is inherited from a file that was not typed
        source = named(config_file, name, environ={})
    else:
        source = found(config_file, name, warnings.append, overrides)
    config = load(source, overrides=overrides, search=False, tell=warnings.append)
    use_keys(config)
    return Run(config, overrides, warnings)


def _typed(destination: str | None) -> dict[str, object]:
    """The bucket and prefix of a URL; the objects go below the prefix."""
    if destination is None:
        return {}
    if not destination.startswith("s3://"):
        raise ConfigError("destination.bucket", destination, "must look like s3://BUCKET or s3://BUCKET/PREFIX")
    bucket, _, prefix = destination.removeprefix("s3://").partition("/")
    below = f"{prefix}/" if prefix and not prefix.endswith("/") else prefix
    return {"destination.bucket": bucket, "destination.prefix": below}


def found(
    config_file: Path | None, name: str, tell: Callable[[str], object], overrides: Mapping[str, object] = {}
) -> Path | None:
    """The configuration that is named, else the first one in sight, else that of a running demo of this directory."""
    source = named(config_file, name) or locate(overrides=overrides, tell=tell)
    if source is None and not overrides.get("watch.directory"):
        source = running_demo()
    return source


def asks_daemon(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that asks the daemon, or the ledger if none runs; it gets a ControlClient."""

    @config_options
    @functools.wraps(function)
    def command(config_file: Path | None, name: str, **arguments: Any) -> Any:
        return function(client_of(config_file, name), **arguments)

    return command


def client_of(config_file: Path | None, name: str) -> ControlClient:
    """Raises ConfigError, unless a daemon answers that has read an earlier state of a broken file."""
    source = found(config_file, name, say)
    try:
        client = ControlClient(as_the_unit_has_it(load(source, search=False, tell=say)))
    except ConfigError as exc:
        client = ControlClient(salvaged(source))
        if not client.answers():
            raise
        for error in exc.errors:
            say(f"{error}; the daemon that runs has an earlier state of the configuration")
        return client
    if client.nothing_here():
        looked = ", ".join(map(str, places(os.environ)))
        home = next(homes_here(), None)
        advice = f"for the demo add --config {shlex.quote(str(home.config))}" if home else "name one with --config"
        say(f"no configuration is there ({looked}), and no daemon has run here: {advice}")
    return client


def say(line: str) -> None:
    """One line on stderr."""
    click.echo(f"s3spool: {printable(line)}", err=True)
