-- The ledger remembers what the folder cannot: what was sent, what failed, what is half sent.
-- Times are Unix seconds; paths are relative to the spool folder (see rows.py for names that are not UTF-8).

CREATE TABLE destinations (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE          -- endpoint|bucket|prefix: a receipt counts for its own destination only
) STRICT;

CREATE TABLE receipts (
    path        TEXT PRIMARY KEY,
    dev         INTEGER NOT NULL,
    inode       INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    mtime_ns    INTEGER NOT NULL,
    ctime_ns    INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    key         TEXT NOT NULL,
    etag        TEXT NOT NULL,
    checksum    TEXT NOT NULL,         -- algorithm:base64 of what was read
    version_id  TEXT NOT NULL,
    read_at     REAL NOT NULL,
    uploaded_at REAL NOT NULL,
    after       TEXT NOT NULL          -- what was to happen locally then: keep | delete | archive
) STRICT, WITHOUT ROWID;

CREATE INDEX receipts_by_time ON receipts (uploaded_at);

CREATE TABLE retries (
    path         TEXT PRIMARY KEY,
    dev          INTEGER NOT NULL,
    inode        INTEGER NOT NULL,
    size         INTEGER NOT NULL,
    mtime_ns     INTEGER NOT NULL,
    ctime_ns     INTEGER NOT NULL,
    attempts     INTEGER NOT NULL,
    first_error_at REAL NOT NULL,
    last_error_at  REAL NOT NULL,
    error_code   TEXT NOT NULL,
    error        TEXT NOT NULL,
    hint         TEXT NOT NULL,
    next_attempt REAL NOT NULL,            -- parked: 0
    state        TEXT NOT NULL CHECK (state IN ('waiting', 'parked')),
    claimed      INTEGER NOT NULL DEFAULT 0  -- 1: handed to the workers, reset at start
) STRICT, WITHOUT ROWID;

CREATE INDEX retries_due ON retries (state, claimed, next_attempt);

CREATE TABLE multiparts (
    path        TEXT PRIMARY KEY,
    dev         INTEGER NOT NULL,
    inode       INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    mtime_ns    INTEGER NOT NULL,
    ctime_ns    INTEGER NOT NULL,
    destination INTEGER NOT NULL,
    bucket      TEXT NOT NULL,
    key         TEXT NOT NULL,
    upload_id   TEXT NOT NULL,
    part_size   INTEGER NOT NULL,
    algorithm   TEXT NOT NULL,
    started_at  REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE parts (
    upload_id TEXT NOT NULL,
    number    INTEGER NOT NULL,
    size      INTEGER NOT NULL,
    etag      TEXT NOT NULL,
    checksum  TEXT NOT NULL,
    PRIMARY KEY (upload_id, number)
) STRICT, WITHOUT ROWID;
