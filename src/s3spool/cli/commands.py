"""The command group, and the commands that upload or say whether that would work.

Heavy modules are imported where they are used, so that `--help` and `status` answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from s3spool import __version__
from s3spool.cli import queries
from s3spool.cli.ledger import ledger
from s3spool.cli.options import Run, group_options, run_options, say
from s3spool.cli.service import service
from s3spool.errors import ConfigError, S3SpoolError

_INTERRUPTED = 130  # as a shell reports SIGINT


class _Commands(click.Group):
    """Turns each error of s3spool into one line and an exit code, for every command."""

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character of a name
        try:
            return super().invoke(ctx)
        except S3SpoolError as exc:
            for error in exc.errors if isinstance(exc, ConfigError) else (exc,):
                say(str(error))
            ctx.exit(exc.exit_code)
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)
        except BrokenPipeError:
            _abandon_output()  # the reader has ended (`| head`)
            ctx.exit(0)
        except OSError as exc:
            if exc.errno != errno.ENOSPC or exc.filename:
                raise
            _abandon_output()
            click.echo(f"s3spool: the output cannot be written: {exc.strerror}", err=True)
            ctx.exit(1)


def _abandon_output() -> None:
    """Discard what is buffered, which would fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="s3spool")
@group_options
def cli(**_: object) -> None:
    """Drop files into a folder, find them in S3.

    `s3spool demo` shows it without any account; `s3spool check` says whether your own configuration would work.
    """


cli.add_command(service)
cli.add_command(ledger)
for command in queries.COMMANDS:
    cli.add_command(command)


@cli.command()
@run_options
@click.option("--once", is_flag=True, help="Send the files that are there, then exit: 0 all sent, 3 some are not.")
@click.option("--dry-run", is_flag=True, help="Only list what would be sent, and what is excluded.")
def run(run: Run, once: bool, dry_run: bool) -> None:
    """Watch DIRECTORY and upload its files. The default is ./tmp; it runs until stopped.

    With DIRECTORY and a URL, no configuration file is read unless one is named.
    """
    if dry_run:
        from s3spool.cli.dry_run import print_plan  # noqa: PLC0415 - start-up time

        print_plan(run.config, run.warnings)
        return
    from s3spool.daemon.main import run as run_daemon  # noqa: PLC0415 - start-up time

    sys.exit(run_daemon(run.config, run.overrides, run.warnings, once=once))


@cli.command()
@click.option("--directory", default="./tmp", show_default=True, type=click.Path(), help="The folder to watch.")
@click.option("--port", type=int, help="Where the embedded S3 server listens. [default: as the last time, or 8333]")
def demo(directory: str, port: int | None) -> None:
    """Try it without an account. It starts an S3 server of its own, makes a bucket, and watches ./tmp."""
    from s3spool.demo.demo import run_demo  # noqa: PLC0415 - start-up time

    sys.exit(run_demo(Path(directory), port))


@cli.command()
@run_options
@click.option("--policy", is_flag=True, help="Print the least IAM policy that suffices, and nothing else.")
def check(run: Run, policy: bool) -> None:
    """Say whether the daemon would work. Checks configuration, folder, limits, state disk, clock and bucket."""
    if policy:
        from s3spool.check.iam_policy import policy as least_policy  # noqa: PLC0415 - start-up time

        click.echo(least_policy(run.config))
        return
    from s3spool.check import checks  # noqa: PLC0415 - start-up time

    for warning in run.warnings:
        say(warning)
    failed = False
    for result in checks.run(run.config):
        failed |= result.level == "error"
        click.echo(f"{result.mark} {result.subject}: {result.text}")
    sys.exit(1 if failed else 0)


@cli.command()
@click.option(
    "--verbose", is_flag=True, help="Also Python, SQLite, boto3, awscrt, pycurl, and its libcurl and OpenSSL."
)
def version(verbose: bool) -> None:
    """Print the version."""
    from s3spool.cli.versions import lines  # noqa: PLC0415 - start-up time

    for line in lines() if verbose else [f"s3spool {__version__}"]:
        click.echo(line)
