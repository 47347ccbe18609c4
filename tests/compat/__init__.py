"""S3 servers and programs that write files, none of them made here."""
