"""The plain boto3 way, as a client to compare with: 100 threads and `upload_file`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config


def main(endpoint_url: str, bucket: str, prefix: str, directory: str, workers: int) -> None:
    config = Config(max_pool_connections=workers, s3={"addressing_style": "path"})
    s3 = boto3.client("s3", endpoint_url=endpoint_url, region_name="us-east-1", config=config)
    with ThreadPoolExecutor(workers) as pool:
        for upload in [
            pool.submit(s3.upload_file, str(path), bucket, prefix + path.name) for path in Path(directory).iterdir()
        ]:
            upload.result()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
