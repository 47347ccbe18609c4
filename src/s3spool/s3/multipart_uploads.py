"""Unfinished uploads in parts, each as a whole: begin, list, abort, through boto3."""

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
from s3spool.s3.options import arguments_of
from s3spool.s3.store import Store

UNSUPPORTED = {"NotImplemented", "MethodNotAllowed", "HTTP501", "HTTP405"}  # s3rver
GONE = {"NoSuchUpload", "NoSuchKey"}  # S3's own words: any server may say 404


class Uploads:
    """Thread-safe. Everything asks S3 and blocks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self, path: str, identity: Identity, destination: int, part_size: int, attributes: Mapping[str, str] = {}
    ) -> Multipart:
        """Raises UploadError. `attributes`: of the open file, see `Store.attributes`.

        What is begun and not answered stays unknown: a listing shows uploads of this key, but not whose they are, and
        one that may be another's is not ours to abort. Only a lifecycle rule of the bucket ends it.
        """
        store = self._store
        prepared = store.rules.of(path)
        key = key_of(path, prepared.prefix.of(identity.mtime_ns / 1e9))
        headers = prepared.headers(Content(path, identity, None, -1, attributes))
        arguments = {"Bucket": store.bucket, "Key": key, **arguments_of(headers)}
        algorithm = store.algorithm
        try:
            answer = self._create(arguments, algorithm)
        except FAILURES as exc:
            error = self.failed(exc, path, "create multipart upload")
            if not store.takes_md5_instead(algorithm, error):
                raise error from exc
            algorithm = "md5"
            try:
                answer = self._create(arguments, algorithm)
            except FAILURES as again:
                raise self.failed(again, path, "create multipart upload") from again
        if not answer.get("UploadId"):
            raise untrusted_success("create multipart upload", path, "without an upload id")
        if store.auto and algorithm != "md5" and answer.get("ChecksumAlgorithm") != algorithm.upper():
            algorithm = "md5"  # the store does not know it: each part's ETag is to prove it
        return Multipart(
            path, identity, destination, store.bucket, key, answer["UploadId"], part_size, algorithm, time.time()
        )

    def listed(self, upload: Multipart) -> dict[int, Mapping[str, Any]] | None:
        """What S3 has of it, by part number; None when S3 no longer knows the upload, or lists no parts at all.

        Raises UploadError.
        """
        try:
            return self.list_parts(upload)
        except UploadError as exc:
            if exc.code in GONE | UNSUPPORTED:
                return None
            raise

    def list_parts(self, upload: Multipart) -> dict[int, Mapping[str, Any]]:
        """The same; an upload that S3 does not know is an error."""
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
        """Raises UploadError; an upload S3 does not know is fine, and so is a store that aborts none: nothing helps."""
        try:
            self.ask_abort(upload)
        except UploadError as exc:
            if exc.code not in UNSUPPORTED:
                raise

    def ask_abort(self, upload: Multipart) -> None:
        """The same; a store that aborts no uploads is an error."""
        try:
            self._store.client.abort_multipart_upload(**self.named(upload))
        except FAILURES as exc:
            error = self.failed(exc, upload.path, "abort multipart upload")
            if error.code not in GONE:
                raise error from exc

    def named(self, upload: Multipart) -> dict[str, Any]:
        """The arguments that say which upload is meant."""
        common = arguments_of(self._store.options.common_headers)
        return {"Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.upload_id, **common}

    def failed(self, exc: Exception, path: str, operation: str) -> UploadError:
        """What boto3 raised, in our terms."""
        error = from_boto3(exc, path, operation)
        if isinstance(exc, botocore.exceptions.ClientError):
            answer: Any = exc.response
            told = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            if self._store.moves_to(told or answer.get("Error", {}).get("Region", ""), error):
                return error
        return self._store.refused(error)

    def _create(self, arguments: dict[str, Any], algorithm: str) -> Mapping[str, Any]:
        if algorithm != "md5":
            # A checksum of checksums depends on the size of the parts; CRCs can be put together to that of the whole.
            kind = "COMPOSITE" if algorithm == "sha256" else "FULL_OBJECT"
            arguments = {**arguments, "ChecksumAlgorithm": algorithm.upper(), "ChecksumType": kind}
        return self._store.client.create_multipart_upload(**arguments)
