"""`s3spool service ...`: s3spool as a service of systemd."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from s3spool.systemd.units import service_of


def _before(ctx: click.Context) -> str:
    """The --name that stands before the command."""
    return str(ctx.find_root().params.get("name") or "")


_name_option = click.option(
    "--name",
    default="",
    callback=lambda ctx, _, name: name or _before(ctx),
    help="An instance beside the first: s3spool@NAME.service.",
)
_root_option = click.option(
    "--root", default="/", hidden=True, type=click.Path(path_type=Path), help="Below this directory, for tests."
)


@click.group()
def service() -> None:
    """Run as a service of systemd: install, check, uninstall."""


@service.command()
@_name_option
@click.option("--directory", type=click.Path(path_type=Path), help="The folder to watch. [default: in /var/spool]")
@click.option("--user", default="s3spool", show_default=True, help="The user of the service; s3spool is made.")
@_root_option
def install(name: str, directory: Path | None, user: str, root: Path) -> None:
    """Write the unit, and make the user, the folder and a configuration to fill in, where they are missing."""
    from s3spool.systemd.install import Installation  # noqa: PLC0415 - start-up time

    for line in Installation(service_of(name), root=root).install(directory, user):
        click.echo(line)


@service.command()
@_name_option
@_root_option
def uninstall(name: str, root: Path) -> None:
    """Remove what install has made. Files in the folder, a changed configuration and the ledger stay."""
    from s3spool.systemd.install import Installation  # noqa: PLC0415 - start-up time

    for line in Installation(service_of(name), root=root).uninstall():
        click.echo(line)


@service.command()
@_name_option
def check(name: str) -> None:
    """Run `s3spool check` as the service would: its user, credentials, limits and sandbox."""
    from s3spool.check.sandbox_check import run_as_service, secret_is_private  # noqa: PLC0415 - start-up time

    text, code = run_as_service(service_of(name))
    click.echo(text, nl=False)
    warning = secret_is_private(service_of(name).credentials)
    if warning is not None:
        click.echo(f"{warning.mark} {warning.subject}: {warning.text}")
    sys.exit(code)
