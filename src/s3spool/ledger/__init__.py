"""The ledger: one SQLite file that says what was sent, what failed and what is half sent.

schema.sql   the tables
totals.sql   how many rows there are, kept up to date
rows.py      the rows, as the rest of the house sees them
database.py  opening, version and migrations, and who may use the file
store.py     the only writer: one thread, group commit with fsync
health.py    is the file still ours and sound; a new one where it is not
statements.py  the SQL of the writer
reader.py    questions; any thread, any process
"""
