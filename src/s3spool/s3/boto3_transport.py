"""The same act through boto3: slower, for where pycurl is missing or SigV4 with one region is not enough."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from s3spool.errors import Scope, UploadError
from s3spool.s3.errors import FAILURES, from_boto3, from_curl
from s3spool.s3.options import arguments_of
from s3spool.s3.transport import Answer, Bandwidth, Request, shrunk, unreadable, wait_for_all

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_came = threading.local()  # `answer`: what the thread's last request got, before boto3 made something of it


class _Range:
    """A range of an open file as the file object botocore reads, seeks and reads again."""

    def __init__(self, request: Request, bandwidth: Bandwidth | None) -> None:
        self._request = request
        self._bandwidth = bandwidth
        self._position = 0
        self.unreadable = ""  #: why it could not be read to its end

    def read(self, size: int = -1) -> bytes:
        rest = self._request.length - self._position
        wanted = rest if size < 0 else min(size, rest)
        if wanted <= 0:
            return b""
        if self._bandwidth is not None:
            wanted = self._bandwidth(wanted) or wanted
        try:
            data = os.pread(self._request.fd, wanted, self._request.offset + self._position)
        except OSError as exc:
            self.unreadable = unreadable(exc)
            raise
        if not data:
            # Less than was announced would leave server and client waiting for each other.
            self.unreadable = shrunk(self._request, self._position)
            raise OSError(self.unreadable)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._request.length}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def __len__(self) -> int:
        return self._request.length


class Boto3Transport:
    """Follows transport.Transport. The client, made by client.body_client, may be shared: boto3's are thread-safe."""

    def __init__(self, client: Callable[[], S3Client], bucket: str, bandwidth: Bandwidth | None = None) -> None:
        """`client` is asked before each request: it changes with the bucket's region and the credentials."""
        self._client = client
        self._bucket = bucket
        self._bandwidth = bandwidth
        self._request: Request | None = None
        self._answer = Answer(0, {}, b"", None)
        self._range: _Range | None = None

    @property
    def position(self) -> int:
        """Bytes of the body that were read from the file."""
        return self._range.tell() if self._range else 0

    def prepare(self, request: Request) -> None:
        self._request = request

    def send(self) -> None:
        request = self._request
        if request is None:
            return
        body: Any = _Range(request, self._bandwidth) if request.body is None else request.body
        self._range = body if isinstance(body, _Range) else None
        if self._bandwidth is not None and request.body:
            wait_for_all(self._bandwidth, len(request.body))
        _came.answer = None
        error: Exception | None = None
        try:
            self._put(request, body)
        except (*FAILURES, OSError) as exc:
            error = exc
        if isinstance(body, _Range) and body.unreadable:
            failure = UploadError("read", request.path, "ABORTED_BY_CALLBACK", body.unreadable, scope=Scope.FILE)
            self._answer = Answer(0, {}, b"", failure)
        elif _came.answer is not None:
            self._answer = _came.answer
            if self._answer.error is not None:
                self._answer.error.path = request.path
        else:
            self._answer = Answer(0, {}, b"", from_boto3(error or OSError("no answer"), request.path))

    def answer(self) -> Answer:
        return self._answer

    def release_buffers(self) -> None:
        """boto3 keeps nothing of a body."""

    def close(self) -> None:
        self._request = self._range = None

    def _put(self, request: Request, body: Any) -> None:
        client = self._client()
        to: dict[str, Any] = {"Bucket": self._bucket, "Key": request.key, "Body": body, **arguments_of(request.headers)}
        if request.query:
            query = parse_qs(request.query)
            client.upload_part(PartNumber=int(query["partNumber"][0]), UploadId=query["uploadId"][0], **to)
        else:
            client.put_object(**to)


def hooked(client: S3Client) -> S3Client:
    """Make a client fit to carry bodies: it tells what came as it came, and does nothing on its own."""
    events = client.meta.events
    for operation in ("PutObject", "UploadPart"):
        events.register(f"before-send.s3.{operation}", _expect_nothing)
        # With "*" it comes before botocore's own handler, which makes a 500 of a 200 whose body is no XML.
        events.register(f"before-parse.*.{operation}", _keep)
    return client


def _expect_nothing(request: Any, **_: Any) -> None:
    """Without 100-continue: servers and proxies that never say it cost a second each time."""
    if "Expect" in request.headers:
        del request.headers["Expect"]


def _keep(response_dict: dict[str, Any], **_: Any) -> None:
    headers = {name.lower(): str(value) for name, value in response_dict["headers"].items()}
    body = response_dict["body"] or b""
    length = headers.get("content-length", "")
    if length.isdecimal() and len(body) < int(length):
        # The code libcurl has for it: not all that was announced has come.
        _came.answer = Answer(0, {}, b"", from_curl(18, f"{len(body)} of {length} bytes of the answer came", ""))
        return
    _came.answer = Answer(response_dict["status_code"], headers, body, None)
