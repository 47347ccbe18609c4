-- One row per file: its claim, its receipt, its retry. Two tables would let a claim overlook a receipt.

CREATE TABLE destinations (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);

-- The processes whose lease is not over. A row is deleted when it is, and its number never comes back.
CREATE TABLE nodes (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    destination integer NOT NULL,
    name        text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    alive_until timestamptz NOT NULL
);

CREATE TABLE files (
    destination integer NOT NULL,
    path        text COLLATE "C" NOT NULL,
    owner       bigint,                        -- nodes.id; void where that row is gone
    sent        bigint[],                      -- identity of the receipt; NULL: no receipt
    key         text,
    etag        text,
    checksum    text,
    version_id  text,
    read_at     double precision,
    uploaded_at double precision,
    after       text,
    failed      bigint[],                      -- identity of the retry; NULL: no retry
    attempts    integer,
    first_error_at double precision,
    last_error_at  double precision,
    error_code  text,
    error       text,
    hint        text,
    next_attempt double precision,
    state       text CHECK (state IN ('waiting', 'parked')),
    own_failures integer,
    provisional boolean,
    PRIMARY KEY (destination, path)
);
CREATE INDEX files_sent ON files (destination, uploaded_at) WHERE sent IS NOT NULL;
CREATE INDEX files_failed ON files (destination, state, next_attempt) WHERE failed IS NOT NULL;
CREATE INDEX files_owner ON files (owner) WHERE owner IS NOT NULL;

CREATE TABLE multiparts (
    destination integer NOT NULL,
    path        text COLLATE "C" NOT NULL,
    identity    bigint[] NOT NULL,
    bucket      text NOT NULL,
    key         text NOT NULL,
    upload_id   text NOT NULL,
    part_size   bigint NOT NULL,
    algorithm   text NOT NULL,
    started_at  double precision NOT NULL,
    PRIMARY KEY (destination, path)
);

CREATE TABLE parts (
    upload_id text NOT NULL,
    number    integer NOT NULL,
    size      bigint NOT NULL,
    etag      text NOT NULL,
    checksum  text NOT NULL,
    PRIMARY KEY (upload_id, number)
);

CREATE TABLE pause (
    destination integer PRIMARY KEY,
    since       double precision NOT NULL,
    reason      text NOT NULL
);

CREATE SEQUENCE changes;  -- goes on with each group of rows: a reader sees that there is something new
