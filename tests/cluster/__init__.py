"""Several real daemons on one folder, with one ledger in PostgreSQL; `make test-cluster`."""
