"""Requests to S3 and their answers.

`store` and `multipart` make requests and verify answers; `curl_transport` and `multi_client` send bodies, `client` the
rest with boto3; `credentials`, `signing`, `keys`, `checksums`, `bandwidth` and `errors` with `error_table` serve them.
"""
