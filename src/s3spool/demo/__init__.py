"""`s3spool demo`: an S3 server of one's own, and a daemon that uploads to it."""
