"""Multipart uploads as a whole: create, list parts, abort."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import botocore.exceptions

from s3spool.errors import UploadError
from s3spool.ledger.rows import Identity, Multipart
from s3spool.s3.content import Content
from s3spool.s3.errors import FAILURES, from_boto3, untrusted_success
from s3spool.s3.keys import key_of
from s3spool.s3.options import arguments_of, common_headers
from s3spool.s3.store import Store

UNSUPPORTED = {"NotImplemented", "MethodNotAllowed", "HTTP501", "HTTP405"}  # s3rver
GONE = {"NoSuchUpload", "NoSuchKey"}  # S3's own codes: any server may answer 404


class Uploads:
    """Thread-safe. All public methods but `named` and `failed` send requests, block and raise UploadError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self, path: str, identity: Identity, destination: int, part_size: int, attributes: Mapping[str, str] = {}
    ) -> Multipart:
        """Create an upload with parts of `part_size` bytes for the ledger's row `destination`.

        `attributes`: of the open file, see `Store.attributes`.

        An upload whose answer is lost stays unknown: a listing does not say whose uploads it shows, and an upload that
        may belong to another program is never aborted. Only a lifecycle rule of the bucket ends it.
        """
        store = self._store
        prepared = store.rules.of(path)
        key = key_of(path, prepared.prefix.of(identity.mtime_ns / 1e9))
        headers = prepared.headers(Content(path, identity, None, -1, attributes))
        arguments = {"Bucket": store.bucket, "Key": key, **arguments_of(store.client, "CreateMultipartUpload", headers)}
        algorithm = store.algorithm
        answer: Mapping[str, Any] | None = None
        while answer is None:
            try:
                answer = self._create(arguments, algorithm)
            except FAILURES as exc:
                error = self.failed(exc, path, "create multipart upload")
                if not store.takes_md5_instead(algorithm, error):
                    raise error from exc
                algorithm = "md5"
        if not answer.get("UploadId"):
            raise untrusted_success("create multipart upload", path, "without an upload id")
        if store.auto and algorithm != "md5" and answer.get("ChecksumAlgorithm") != algorithm.upper():
            algorithm = "md5"  # the store ignores the checksum: the ETag of each part proves it
        return Multipart(
            path, identity, destination, store.bucket, key, answer["UploadId"], part_size, algorithm, time.time()
        )

    def listed(self, upload: Multipart) -> dict[int, Mapping[str, Any]] | None:
        """Return S3's parts by number; None if S3 does not know the upload, or the store lists no parts."""
        try:
            return self.list_parts(upload)
        except UploadError as exc:
            if exc.code in GONE | UNSUPPORTED:
                return None
            raise

    def list_parts(self, upload: Multipart) -> dict[int, Mapping[str, Any]]:
        """Return S3's parts by number; an unknown upload is an error."""
        found: dict[int, Mapping[str, Any]] = {}
        pages = self._store.client.get_paginator("list_parts").paginate(**self.named(upload))
        try:
            for page in pages:
                if not page.get("UploadId"):
                    raise untrusted_success("list parts", upload.path, "without an upload id")
                for part in page.get("Parts", []):
                    found[part["PartNumber"]] = part
        except FAILURES as exc:
            raise self.failed(exc, upload.path, "list parts") from exc
        return found

    def abort(self, upload: Multipart) -> None:
        """Abort the upload; succeed if S3 does not know it, or the store cannot abort uploads."""
        try:
            self.ask_abort(upload)
        except UploadError as exc:
            if exc.code not in UNSUPPORTED:
                raise

    def ask_abort(self, upload: Multipart) -> None:
        """Abort the upload; succeed if S3 does not know it."""
        try:
            self._store.client.abort_multipart_upload(**self.named(upload))
        except FAILURES as exc:
            error = self.failed(exc, upload.path, "abort multipart upload")
            if error.code not in GONE:
                raise error from exc

    def named(self, upload: Multipart) -> dict[str, Any]:
        """Return boto3's arguments that identify an upload; all operations name them alike."""
        store = self._store
        common = arguments_of(store.client, "ListParts", common_headers(store.destination))
        return {"Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.upload_id, **common}

    def failed(self, exc: Exception, path: str, operation: str) -> UploadError:
        """Return the error for an exception of boto3; learn region and credentials from it."""
        error = from_boto3(exc, path, operation)
        if isinstance(exc, botocore.exceptions.ClientError):
            answer: Any = exc.response
            told = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            if self._store.moves_to(told or answer.get("Error", {}).get("Region", ""), error):
                return error
        return self._store.refused(error)

    def _create(self, arguments: dict[str, Any], algorithm: str) -> Mapping[str, Any]:
        if algorithm != "md5":
            # The CRCs of parts can be combined to that of the whole object.
            kind = "COMPOSITE" if algorithm == "sha256" else "FULL_OBJECT"
            arguments = {**arguments, "ChecksumAlgorithm": algorithm.upper(), "ChecksumType": kind}
        return self._store.client.create_multipart_upload(**arguments)
