-- Version 4: a pause by hand survives a restart.

CREATE TABLE pause (
    id     INTEGER PRIMARY KEY CHECK (id = 1),  -- one row, or none
    since  REAL NOT NULL,
    reason TEXT NOT NULL
) STRICT;
