"""`s3spool check` and `service check`: would it work, and what is missing."""
