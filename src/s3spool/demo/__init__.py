"""`s3spool demo`: an S3 server of its own, and a daemon that uploads to it.

`demo` runs both, `home` says where each demo keeps its state and keys, `seaweed` is the server (the tests use it,
too), `seaweed_keys` makes the keys between its parts.
"""
