"""What the tests stand on: a real daemon, a real S3 server, and one that misbehaves on demand."""
