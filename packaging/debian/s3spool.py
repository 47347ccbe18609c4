#!/usr/lib/s3spool/bin/python3 -I
"""The `s3spool` command, in the package's own virtual environment and isolated from the user's Python settings."""

from s3spool.__main__ import main

main()
