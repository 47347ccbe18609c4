"""Prints the completion script for a shell: `completion.py bash|zsh|fish`. The script asks s3spool at each tab."""

from __future__ import annotations

import sys

from click.shell_completion import get_completion_class

from s3spool.cli.commands import cli


def script(shell: str) -> str:
    """Written from click's template; click's own command would want the shell to be here, for its version."""
    complete = get_completion_class(shell)
    if complete is None:
        raise SystemExit(f"{shell}: no completion is known for this shell (bash, zsh, fish)")
    made = complete(cli, {}, "s3spool", "_S3SPOOL_COMPLETE")
    return str(made.source_template % made.source_vars())


if __name__ == "__main__":
    sys.stdout.write(script(sys.argv[1]) + "\n")
