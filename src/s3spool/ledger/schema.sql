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
    own_failures INTEGER NOT NULL,         -- the evidence of whose fault it is (see CircuitBreaker)
    provisional  INTEGER NOT NULL,         -- 1: parked without proof
    claimed      INTEGER NOT NULL          -- 1: handed to the workers, reset at start
) STRICT, WITHOUT ROWID;

CREATE INDEX retries_due ON retries (state, claimed, next_attempt);
CREATE INDEX retries_by_age ON retries (state, ctime_ns);
CREATE INDEX retries_by_error ON retries (last_error_at);
CREATE INDEX retries_provisional ON retries (provisional) WHERE provisional = 1;

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

-- One row, kept by the triggers below: nobody counts millions to say how many there are.
CREATE TABLE totals (
    receipts      INTEGER NOT NULL,
    receipt_bytes INTEGER NOT NULL,
    waiting       INTEGER NOT NULL,
    parked        INTEGER NOT NULL
) STRICT;

INSERT INTO totals VALUES (0, 0, 0, 0);

-- INSERT OR REPLACE would not fire those for what it deletes: rows are replaced with ON CONFLICT DO UPDATE.
CREATE TRIGGER receipts_inserted AFTER INSERT ON receipts BEGIN
    UPDATE totals SET receipts = receipts + 1, receipt_bytes = receipt_bytes + NEW.size;
END;
CREATE TRIGGER receipts_updated AFTER UPDATE OF size ON receipts WHEN NEW.size <> OLD.size BEGIN
    UPDATE totals SET receipt_bytes = receipt_bytes + NEW.size - OLD.size;
END;
CREATE TRIGGER receipts_deleted AFTER DELETE ON receipts BEGIN
    UPDATE totals SET receipts = receipts - 1, receipt_bytes = receipt_bytes - OLD.size;
END;
CREATE TRIGGER retries_inserted AFTER INSERT ON retries BEGIN
    UPDATE totals SET waiting = waiting + (NEW.state = 'waiting'), parked = parked + (NEW.state = 'parked');
END;
CREATE TRIGGER retries_updated AFTER UPDATE OF state ON retries WHEN NEW.state <> OLD.state BEGIN
    UPDATE totals SET waiting = waiting + (NEW.state = 'waiting') - (OLD.state = 'waiting'),
                      parked = parked + (NEW.state = 'parked') - (OLD.state = 'parked');
END;
CREATE TRIGGER retries_deleted AFTER DELETE ON retries BEGIN
    UPDATE totals SET waiting = waiting - (OLD.state = 'waiting'), parked = parked - (OLD.state = 'parked');
END;

-- A pause by hand survives a restart.
CREATE TABLE pause (
    id     INTEGER PRIMARY KEY CHECK (id = 1),  -- one row, or none
    since  REAL NOT NULL,
    reason TEXT NOT NULL
) STRICT;
