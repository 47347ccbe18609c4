"""The ledger: the SQLite file that remembers sent files, failed files and uploads in parts.

`protocol` says what a ledger does, `queries` what it answers; `store` writes, `reader` reads, `rows` are what both
speak of; `database`, `files` and `health` open and guard the file.
"""
