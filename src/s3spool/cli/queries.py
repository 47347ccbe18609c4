"""The commands that ask the daemon, or the ledger if none runs.

Heavy modules are imported where they are used, so that these commands answer at once.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stderr, suppress
from io import StringIO
from itertools import islice
from typing import Any

import click
from click.shell_completion import CompletionItem
from msgspec import to_builtins

from s3spool.cli.options import asks_daemon, client_of, json_option, say
from s3spool.cli.output import print_nodes, print_rows, print_status, print_why, to_json
from s3spool.cli.wait import SOME_PARKED, TIMED_OUT, wait_for_all, wait_for_files
from s3spool.control.client import ControlClient
from s3spool.control.views import STATES
from s3spool.errors import S3SpoolError
from s3spool.logs.text import printable

_COMPLETIONS = 100


class File(click.ParamType[str]):
    """The name of a file of the watched folder; `state` limits the names that a shell completes."""

    name = "file"

    def __init__(self, state: str | None = None) -> None:
        self._state = state

    def shell_complete(self, ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files of the current directory, and files that the daemon or the ledger knows."""
        options = {**ctx.find_root().params, **{name: value for name, value in ctx.params.items() if value}}
        known: list[str] = []
        with suppress(S3SpoolError, OSError), redirect_stderr(StringIO()):
            rows = client_of(options.get("config_file"), options.get("name") or "").rows(self._state)
            paths = (str(row["path"]) for row in islice(rows, 100 * _COMPLETIONS))
            known = [*islice((path for path in paths if path.startswith(incomplete)), _COMPLETIONS)]
        names = [CompletionItem(path) for path in known]
        return names if names and self._state else [*names, CompletionItem(incomplete, type="file")]


@click.command()
@asks_daemon
@json_option
def status(client: ControlClient, as_json: bool) -> None:
    """Say what the daemon is doing. Without a daemon the ledger answers."""
    answer = client.status()
    click.echo(to_json(to_builtins(answer))) if as_json else print_status(answer)


@click.command()
@asks_daemon
@json_option
def nodes(client: ControlClient, as_json: bool) -> None:
    """List the daemons that share the ledger. Each line has load, lease, start, host and version."""
    found = client.status().nodes
    if as_json:
        click.echo(to_json(to_builtins(found)))
    elif found:
        print_nodes(found)
    elif client.config.state.ledger:
        click.echo("no daemon of this destination runs")
    else:
        click.echo("the ledger is a SQLite file, which one daemon uses alone (state.ledger)")


@click.command()
@asks_daemon
def top(client: ControlClient) -> None:
    """Show a live view of the daemon; q ends it."""
    from s3spool.cli.live import run_top  # noqa: PLC0415 - start-up time

    run_top(client)


@click.command(name="list")
@asks_daemon
@json_option
@click.option("--state", type=click.Choice(STATES), help="Only files in this state.")
@click.option("--all", "everything", is_flag=True, help="Uploaded files as well.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N files.")
def list_(client: ControlClient, as_json: bool, state: str | None, everything: bool, limit: int | None) -> None:
    """List unsent files. Each line has state, size, age and name, and the error if there is one."""
    rows = client.rows(state or (None if everything else "unsent"))
    print_rows(rows, as_json=as_json, limit=limit)


@click.command()
@asks_daemon
@click.argument("file", type=File())
@json_option
def why(client: ControlClient, file: str, as_json: bool) -> None:
    """Say where FILE stands, and why. Exit code 1 if it is neither there nor known."""
    answer = client.why(file)
    click.echo(to_json(answer)) if as_json else print_why(answer)
    sys.exit(1 if answer["state"] == "unknown" else 0)


@click.command()
@asks_daemon
@click.argument("file", type=File())
@json_option
def key(client: ControlClient, file: str, as_json: bool) -> None:
    """Print the key that FILE has, or would have, in the bucket.

    Direction marks and the like, which a key may hold, are shown as escapes; with --json exactly.
    """
    answer = client.key(file)
    if rule := client.rule(file):
        say(f"{rule} applies")
    click.echo(to_json(answer) if as_json else printable(answer))


@click.command()
@asks_daemon
@click.argument("files", nargs=-1, type=File("unsent"))
@click.option("--all", "everything", is_flag=True, help="All waiting and parked files.")
def retry(client: ControlClient, files: tuple[str, ...], everything: bool) -> None:
    """Try waiting or parked FILES now. A paused destination is tried at once."""
    if bool(files) == everything:
        raise click.UsageError("name FILES, or --all")
    answer = client.retry(files, everything=everything)
    released = f"{answer.released} file{'' if answer.released == 1 else 's'} released"
    click.echo(f"the paused destination is tried now; {released}" if answer.probing else released)


@click.command()
@asks_daemon
@click.argument("file", type=File())
def forget(client: ControlClient, file: str) -> None:
    """Drop what the ledger knows of FILE. If it is still in the folder, it is sent again."""
    click.echo("forgotten" if client.forget(file) else "nothing was known of it")


@click.command()
@asks_daemon
def rescan(client: ControlClient) -> None:
    """Walk the folder now."""
    client.rescan()
    click.echo("rescan asked for")


@click.command()
@asks_daemon
@click.option("--reason", default="", metavar="TEXT", help="Why; shown wherever the pause is shown.")
def pause(client: ControlClient, reason: str) -> None:
    """Take no new file until `s3spool resume`, also after a restart. Uploads in flight finish."""
    client.pause(reason.strip())
    click.echo("paused: `s3spool resume` ends it")


@click.command()
@asks_daemon
def resume(client: ControlClient) -> None:
    """End a pause by hand."""
    click.echo("uploads go on" if client.resume() else "uploads were not paused by hand")


@click.command(name="verify")
@asks_daemon
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N receipts, chosen at random.")
@click.option("--repair", is_flag=True, help="Send again what differs and is still in the folder.")
@json_option
def verify_(client: ControlClient, sample: int | None, repair: bool, as_json: bool) -> None:
    """Compare the receipts with the bucket. Exit code 1 if an object is missing or is not what was sent."""
    from s3spool.cli import verify  # noqa: PLC0415 - start-up time

    sys.exit(verify.verify(client, sample=sample, repair=repair, as_json=as_json))


@click.command()
@asks_daemon
@click.argument("files", nargs=-1, type=File("unsent"))
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up after so long (exit code 4).",
)
def wait(client: ControlClient, files: tuple[str, ...], timeout_s: float | None) -> None:
    """Return when nothing is left to send, or none of FILES. Exit code: 0 all sent, 3 some parked, 4 time-out."""
    code = wait_for_files(client, files, timeout_s) if files else wait_for_all(client, timeout_s)
    said = {TIMED_OUT: "timed out", SOME_PARKED: "some files are parked: s3spool list --state parked"}
    if code in said:
        click.echo(said[code], err=True)
    sys.exit(code)


COMMANDS: list[Any] = [status, nodes, top, list_, why, key, retry, forget, rescan, pause, resume, verify_, wait]
