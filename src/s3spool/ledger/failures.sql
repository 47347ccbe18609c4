-- Version 3: the evidence of whose fault a failure is (see CircuitBreaker).

ALTER TABLE retries ADD COLUMN own_failures INTEGER NOT NULL DEFAULT 0;
ALTER TABLE retries ADD COLUMN provisional  INTEGER NOT NULL DEFAULT 0;  -- 1: parked without proof

-- Until now such rows were marked by the time at which they were parked.
UPDATE retries SET provisional = 1, next_attempt = 0 WHERE state = 'parked' AND next_attempt > 0;

CREATE INDEX retries_provisional ON retries (provisional) WHERE provisional = 1;
