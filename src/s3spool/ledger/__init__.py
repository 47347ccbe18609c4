"""The ledger: one SQLite file that says what was sent, what failed and what is half sent."""
