"""The commands. Thin: each loads the configuration, asks the daemon or the ledger, and prints the answer.

Heavy modules are imported where they are used, so that `--help` and `status` answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s3spool import __version__
from s3spool.cli.service import service
from s3spool.errors import ConfigError, S3SpoolError

if TYPE_CHECKING:
    from s3spool.config.loader import Config
    from s3spool.control.client import Desk

PARKED = 3
TIMED_OUT = 4

_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, readable=False),  # what is wrong with it, `load` says, with exit code 78
    help="The TOML file; else ./s3spool.toml, the user's and the system's are looked for.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_RUN_OPTIONS = {
    "settle_s": ("watch.settle_s", "SECONDS", "A file is complete when unchanged for so long."),
    "after": ("after.action", "ACTION", "keep, delete or archive what was uploaded."),
    "archive_directory": ("after.archive_directory", "DIR", "Where --after archive moves files to."),
    "endpoint_url": ("destination.endpoint_url", "URL", "An S3-compatible store instead of AWS."),
    "region": ("destination.region", "NAME", "The bucket's region."),
    "profile": ("destination.profile", "NAME", "A profile of AWS's shared files."),
    "workers": ("upload.workers", "N", "How many files are sent at the same time."),
    "max_bandwidth": ("upload.max_bandwidth", "RATE", 'Like "50MiB/s".'),
    "state_directory": ("state.directory", "DIR", "Where the ledger is kept."),
    "log_level": ("log.level", "LEVEL", "debug, info, warning or error."),
    "log_format": ("log.format", "FORMAT", "auto, console, json or journal."),
}


class _Commands(click.Group):
    """Turns each error of ours into one line and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal knows every name's characters
        try:
            return super().invoke(ctx)
        except S3SpoolError as exc:
            from s3spool.logs.text import printable  # noqa: PLC0415 - start-up time

            for error in exc.errors if isinstance(exc, ConfigError) else (exc,):
                click.echo(f"s3spool: {printable(str(error))}", err=True)
            ctx.exit(exc.exit_code)
        except BrokenPipeError:
            _abandon_output()  # the reader has seen enough (`| head`)
            ctx.exit(0)
        except OSError as exc:
            if exc.errno != errno.ENOSPC or exc.filename:
                raise
            _abandon_output()
            click.echo(f"s3spool: the output cannot be written: {exc.strerror}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="s3spool")
def cli() -> None:
    """Drop files into a folder, find them in S3.

    `s3spool demo` shows it without any account; `s3spool check` says whether your own configuration would work.
    """


cli.add_command(service)


def _abandon_output() -> None:
    """What is still in its buffer would fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, (_, metavar, text) in reversed(_RUN_OPTIONS.items()):
        function = click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, help=text)(function)
    return function


@cli.command()
@click.argument("directory", required=False)
@click.argument("destination", required=False, metavar="[s3://BUCKET[/PREFIX]]")
@_config_option
@_run_flags
def run(directory: str | None, destination: str | None, config_file: Path | None, **flags: str | None) -> None:
    """Watch DIRECTORY (default ./tmp) and upload what is dropped there, until stopped."""
    from s3spool.daemon.main import run_daemon  # noqa: PLC0415 - start-up time

    sys.exit(run_daemon(config_file, _overrides(directory, destination, flags)))


@cli.command()
@click.option("--directory", default="./tmp", show_default=True, help="The folder to watch.")
@click.option("--port", default=8333, show_default=True, help="Where the embedded S3 server listens.")
def demo(directory: str, port: int) -> None:
    """Try it without an account: an embedded S3 server, a bucket, and the daemon on ./tmp."""
    from s3spool.demo.demo import run_demo  # noqa: PLC0415 - start-up time

    sys.exit(run_demo(Path(directory), port))


@cli.command()
@click.argument("directory", required=False)
@click.argument("destination", required=False, metavar="[s3://BUCKET[/PREFIX]]")
@_config_option
@_run_flags
@click.option("--policy", is_flag=True, help="Print the least IAM policy that suffices, and nothing else.")
def check(
    directory: str | None, destination: str | None, config_file: Path | None, policy: bool, **flags: str | None
) -> None:
    """Say whether the daemon would work: configuration, folder, limits, state disk, clock and bucket."""
    from s3spool.check import checks  # noqa: PLC0415 - start-up time

    config = _load(config_file, _overrides(directory, destination, flags))
    if policy:
        click.echo(checks.policy(config))
        return
    failed = False
    for finding in checks.run(config):
        failed |= finding.level == "error"
        click.echo(f"{finding.mark} {finding.subject}: {finding.text}")
    sys.exit(1 if failed else 0)


def _asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that asks the daemon, or the ledger where none runs."""

    @_config_option
    @functools.wraps(function)
    def command(config_file: Path | None, **arguments: Any) -> Any:
        from s3spool.control.client import Desk  # noqa: PLC0415 - start-up time

        desk = Desk(_load(config_file, {}))
        if doubt := desk.doubt():
            click.echo(f"s3spool: {doubt}", err=True)
        return function(desk, **arguments)

    return command


@cli.command()
@_asking
@_json_option
def status(desk: Desk, as_json: bool) -> None:
    """What the daemon is doing. Uploads are counted since its start; without a daemon, all that the ledger knows."""
    from s3spool.cli.output import print_status, to_json  # noqa: PLC0415 - start-up time

    answer = desk.status()
    click.echo(to_json(answer)) if as_json else print_status(answer)


@cli.command()
@_asking
def top(desk: Desk) -> None:
    """A live view of the daemon; q ends it."""
    from s3spool.cli.live import run_top  # noqa: PLC0415 - start-up time

    run_top(desk)


@cli.command(name="list")
@_asking
@_json_option
@click.option(
    "--state",
    type=click.Choice(["queued", "uploading", "waiting", "parked", "uploaded"]),
    help="Only files in this state.",
)
def list_(desk: Desk, as_json: bool, state: str | None) -> None:
    """The files that are known, a line each."""
    from s3spool.cli.output import print_rows  # noqa: PLC0415 - start-up time

    print_rows(desk.rows(state), as_json=as_json)


@cli.command()
@_asking
@click.argument("file")
@_json_option
def why(desk: Desk, file: str, as_json: bool) -> None:
    """Where FILE stands, and why."""
    from s3spool.cli.output import print_why, to_json  # noqa: PLC0415 - start-up time

    answer = desk.why(file)
    click.echo(to_json(answer)) if as_json else print_why(answer)


@cli.command()
@_asking
@click.argument("file")
@_json_option
def key(desk: Desk, file: str, as_json: bool) -> None:
    """The key that FILE has, or would have, in the bucket.

    Direction marks and the like, which a key may hold, are shown as escapes; with --json exactly.
    """
    from s3spool.cli.output import to_json  # noqa: PLC0415 - start-up time
    from s3spool.logs.text import printable  # noqa: PLC0415 - start-up time

    answer = desk.key(file)
    click.echo(to_json(answer) if as_json else printable(answer))


@cli.command()
@_asking
@click.argument("files", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All waiting and parked files.")
def retry(desk: Desk, files: tuple[str, ...], everything: bool) -> None:
    """Try FILES that wait or are parked again now."""
    if bool(files) == everything:
        raise click.UsageError("name FILES, or --all")
    count = desk.retry(files, everything=everything)
    click.echo(f"{count} file{'' if count == 1 else 's'} released")


@cli.command()
@_asking
@click.argument("file")
def forget(desk: Desk, file: str) -> None:
    """Drop what the ledger knows of FILE. If it is still in the folder, it is sent again."""
    click.echo("forgotten" if desk.forget(file) else "nothing was known of it")


@cli.command()
@_asking
def rescan(desk: Desk) -> None:
    """Walk the folder now."""
    desk.rescan()
    click.echo("rescan asked for")


@cli.command()
@_asking
@click.option("--reason", default="", metavar="TEXT", help="Why; shown wherever the pause is shown.")
def pause(desk: Desk, reason: str) -> None:
    """Take no new file until `s3spool resume`, also after a restart. Uploads in flight finish."""
    desk.pause(reason.strip())
    click.echo("paused: `s3spool resume` ends it")


@cli.command()
@_asking
def resume(desk: Desk) -> None:
    """End a pause by hand."""
    click.echo("uploads go on" if desk.resume() else "uploads were not paused by hand")


@cli.command()
@_config_option
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N receipts, chosen at random.")
@click.option("--repair", is_flag=True, help="Send again what differs and is still in the folder.")
@_json_option
def verify(config_file: Path | None, sample: int | None, repair: bool, as_json: bool) -> None:
    """Compare the receipts with the bucket: exit code 1 where an object is missing or is not what was sent."""
    from s3spool.cli.verify import Options  # noqa: PLC0415 - start-up time
    from s3spool.cli.verify import verify as verify_receipts  # noqa: PLC0415 - the same
    from s3spool.control.client import Desk  # noqa: PLC0415 - the same

    config = _load(config_file, {})
    sys.exit(verify_receipts(Desk(config), config, Options(sample, repair, as_json)))


@cli.command()
@_asking
@click.argument("files", nargs=-1)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up after so long (exit code 4).",
)
def wait(desk: Desk, files: tuple[str, ...], timeout_s: float | None) -> None:
    """Return when nothing (or none of FILES) is left to send: exit code 0 all sent, 3 some parked, 4 time-out."""
    from s3spool.cli.wait import wait_for_all, wait_for_files  # noqa: PLC0415 - start-up time

    results = wait_for_files(desk, files, timeout_s) if files else wait_for_all(desk, timeout_s)
    if results:
        click.echo(
            "timed out" if results == TIMED_OUT else "some files are parked: s3spool list --state parked", err=True
        )
    sys.exit(results)


@cli.command()
@click.option(
    "--verbose", is_flag=True, help="Also Python, SQLite, boto3, awscrt, pycurl, and its libcurl and OpenSSL."
)
def version(verbose: bool) -> None:
    """Print the version."""
    from s3spool.cli.versions import lines  # noqa: PLC0415 - start-up time

    for line in lines() if verbose else [f"s3spool {__version__}"]:
        click.echo(line)


def _load(config_file: Path | None, overrides: dict[str, object]) -> Config:
    from s3spool.config.loader import load  # noqa: PLC0415 - start-up time
    from s3spool.logs.text import printable  # noqa: PLC0415 - the same

    return load(config_file, overrides=overrides, tell=lambda line: click.echo(f"s3spool: {printable(line)}", err=True))


def _overrides(directory: str | None, destination: str | None, flags: dict[str, str | None]) -> dict[str, object]:
    if directory and directory.startswith("s3://") and destination is None:
        directory, destination = None, directory
    overrides: dict[str, object] = {"watch.directory": directory}
    if destination is not None:
        if not destination.startswith("s3://"):
            raise ConfigError("destination.bucket", destination, "must look like s3://BUCKET or s3://BUCKET/PREFIX")
        bucket, _, prefix = destination.removeprefix("s3://").partition("/")
        overrides["destination.bucket"] = bucket
        if prefix:
            overrides["destination.prefix"] = prefix
    overrides |= {_RUN_OPTIONS[name][0]: value for name, value in flags.items()}
    return {name: value for name, value in overrides.items() if value is not None}
