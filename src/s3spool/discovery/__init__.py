"""Watch, scan, deduplicate: what is new or changed becomes items of the queue."""
