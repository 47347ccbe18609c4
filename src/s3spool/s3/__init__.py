"""Requests to S3 and their answers: transports, credentials, keys, checksums, multipart, the error table."""
