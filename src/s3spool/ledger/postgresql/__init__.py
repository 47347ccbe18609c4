"""The ledger in PostgreSQL, which several nodes share: `backend` writes, `reader` reads, `lease` keeps the claims."""
