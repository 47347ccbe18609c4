-- What a node says of itself with each renewal of its lease.

ALTER TABLE nodes
    ADD COLUMN host             text NOT NULL DEFAULT '',
    ADD COLUMN version          text NOT NULL DEFAULT '',
    ADD COLUMN in_flight        integer NOT NULL DEFAULT 0,
    ADD COLUMN files_per_minute double precision NOT NULL DEFAULT 0,
    ADD COLUMN marker           text NOT NULL DEFAULT '';  -- content of this node's marker file in the folder
