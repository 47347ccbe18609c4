"""`python -m s3spool` and the `s3spool` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line; imported late so that `--help` stays quick."""
    from s3spool.cli.commands import cli  # noqa: PLC0415 - start-up time

    cli()


if __name__ == "__main__":
    main()
