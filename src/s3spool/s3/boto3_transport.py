"""Sends bodies with boto3, several times slower: where pycurl is missing, or libcurl cannot sign."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from s3spool.errors import Scope, UploadError
from s3spool.s3.errors import FAILURES, from_boto3, from_curl
from s3spool.s3.transport import Answer, Bandwidth, FileRange, Request, wait_for_all

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_NO_ANSWER = Answer(0, {}, b"", None)
_now = threading.local()  # the thread's `request`, and its `answer` before boto3 has parsed it


class Boto3Transport:
    """A `Sender`. Not thread-safe, but the client may be shared."""

    def __init__(self, client: Callable[[], S3Client], bucket: str, bandwidth: Bandwidth | None = None) -> None:
        """`client` is `Clients.bodies`; it is called for each request."""
        self._client = client
        self._bucket = bucket
        self._bandwidth = bandwidth
        self._request: Request | None = None
        self._answer = _NO_ANSWER
        self._range: FileRange | None = None

    @property
    def position(self) -> int:
        return 0 if self._range is None else self._range.tell()

    def prepare(self, request: Request) -> None:
        self._request = request

    def send(self) -> None:
        request = self._request
        if request is None:
            return
        if self._bandwidth is not None and request.body:
            wait_for_all(self._bandwidth, len(request.body))
        self._range = FileRange(request, self._bandwidth) if request.body is None else None
        body = request.body if self._range is None else self._range
        _now.request, _now.answer = request, None
        error: Exception = OSError("no answer")
        try:
            self._put(request, body)
        except (*FAILURES, OSError) as exc:
            error = exc
        if isinstance(body, FileRange) and body.error:
            unreadable = UploadError("read", request.path, "ABORTED_BY_CALLBACK", body.error, scope=Scope.FILE)
            self._answer = _NO_ANSWER._replace(error=unreadable)
        else:
            self._answer = _now.answer or _NO_ANSWER._replace(error=from_boto3(error, request.path))

    def answer(self) -> Answer:
        return self._answer

    def release_buffers(self) -> None:
        """Do nothing: boto3 keeps no buffers."""

    def close(self) -> None:
        self._request = self._range = None

    def _put(self, request: Request, body: Any) -> None:
        client = self._client()
        if request.query:
            query = {name: values[0] for name, values in parse_qs(request.query).items()}
            part = {"PartNumber": int(query["partNumber"]), "UploadId": query["uploadId"]}
            client.upload_part(Bucket=self._bucket, Key=request.key, Body=body, **part)  # type: ignore[arg-type]
        else:
            client.put_object(Bucket=self._bucket, Key=request.key, Body=body)


def hooked(client: S3Client) -> S3Client:
    """Return the client, with handlers that add a request's headers, and record its answer as it arrived."""
    events = client.meta.events
    for operation in ("PutObject", "UploadPart"):
        events.register(f"before-call.s3.{operation}", _add_headers)
        events.register(f"before-send.s3.{operation}", _expect_nothing)
        # With "*" it runs before botocore's own handler, which turns a 200 with a body that is no XML into a 500.
        events.register(f"before-parse.*.{operation}", _record)
    return client


def _add_headers(params: dict[str, Any], **_: Any) -> None:
    params["headers"].update(_now.request.headers)


def _expect_nothing(request: Any, **_: Any) -> None:
    """Send without 100-continue: servers and proxies that do not know it cost a second each time."""
    request.headers.pop("Expect", None)


def _record(response_dict: dict[str, Any], **_: Any) -> None:
    headers = {name.lower(): str(value) for name, value in response_dict["headers"].items()}
    body = response_dict["body"] or b""
    _now.answer = Answer(response_dict["status_code"], headers, body, None)
    length = headers.get("content-length", "")
    if length.isdecimal() and len(body) < int(length):
        cut = from_curl(18, f"{len(body)} of {length} bytes of the answer came", _now.request.path)
        _now.answer = _NO_ANSWER._replace(error=cut)
