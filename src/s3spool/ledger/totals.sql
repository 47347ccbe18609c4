-- Version 2: what `status` asks is answered at once, however much the ledger holds.

CREATE INDEX retries_by_age ON retries (state, ctime_ns);
CREATE INDEX retries_by_error ON retries (last_error_at);

-- One row, kept by the triggers below: nobody counts millions to say how many there are.
CREATE TABLE totals (
    receipts      INTEGER NOT NULL,
    receipt_bytes INTEGER NOT NULL,
    waiting       INTEGER NOT NULL,
    parked        INTEGER NOT NULL
) STRICT;

INSERT INTO totals SELECT
    (SELECT count(*) FROM receipts),
    (SELECT coalesce(sum(size), 0) FROM receipts),
    (SELECT count(*) FROM retries WHERE state = 'waiting'),
    (SELECT count(*) FROM retries WHERE state = 'parked');

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
