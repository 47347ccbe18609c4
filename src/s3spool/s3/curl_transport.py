"""Sends bodies with libcurl: connection reuse, SigV4 and the wait for the answer happen outside the GIL."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pycurl

from s3spool.s3 import plain_http
from s3spool.s3.checksums import of_range
from s3spool.s3.client import Endpoint
from s3spool.s3.credentials import Credentials, Snapshot
from s3spool.s3.errors import from_code, from_curl
from s3spool.s3.keys import url_quoted
from s3spool.s3.proxies import proxy_of
from s3spool.s3.signing import libcurl_signs, signed
from s3spool.s3.transport import Answer, Bandwidth, FileRange, Request, parsed_headers, wait_for_all

BUFFER_BYTES = 256 * 1024  # libcurl's buffer for a range of a file: a hundred slow connections need little memory
FAST_BUFFER_BYTES = 512 * 1024  # the same on a fast connection: less CPU
FAST_BYTES_S = 32 * 2**20
SMALL_BUFFER_BYTES = 16 * 1024  # libcurl fills a new buffer with zeros for each request; its default is 64 KiB
LOW_SPEED_BYTES_S = 1  # a slower request makes no progress
# libcurl counts bytes when the kernel takes them. The kernel takes no more while so many bytes are unsent, hence bytes
# that leave a thin line are progress for libcurl as well.
UNSENT_BYTES = 16 * 1024  # a body in memory
UNSENT_RANGE_BYTES = 64 * 1024  # a range of a file: fewer system calls
MAX_ANSWER_BYTES = 256 * 1024  # S3 answers a PUT with less; the rest of a longer answer is not read
MAX_ANSWER_PIECES = 64  # likewise for an answer that arrives byte by byte
DNS_CACHE_S = 1  # a new connection uses an older DNS answer no more; libcurl's default is a minute
CA_CACHE_S = 5  # libcurl reads a replaced bundle after this time; its default is a day
_CA_CACHE_TIMEOUT = 321  # CURLOPT_CA_CACHE_TIMEOUT in curl.h; pycurl has no name for it
_CONSTANT = ("Expect:", "Content-Type:")  # no headers of libcurl's own choice


class CurlTransport:
    """One libcurl handle with a connection of its own, for one worker. Not thread-safe.

    `prepare` is quick; `send` blocks without the GIL until `answer` is ready, and raises nothing. One `send` is one
    attempt: redirects are not followed, and errors not retried, except for a kept connection that turns out to be dead.
    An answer is returned as it arrived: a 200 alone proves nothing.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        credentials: Credentials,
        *,
        ca: Path,
        timeout_s: float,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """`endpoint` is called for each request; `ca` is a bundle, or a directory of certificates named by hash.

        A request fails after `timeout_s` (rounded to whole seconds) without progress: of a MultiClient up to two
        seconds late, otherwise up to eight, because libcurl compares an average of five seconds with its limit.
        """
        self._endpoint_now = endpoint
        self._ca = ca
        self._timeout_s = max(1, round(timeout_s))
        self._credentials = credentials
        self._bandwidth = bandwidth
        self._path = ""
        self._request: Request | None = None  # None: the handle holds nothing that may be sent
        self._headers: list[bytes] = []
        self._body: list[bytes] = []
        self._error: tuple[int, str] | None = None
        self._progress = 0  # bytes that were sent and received, as of `_progress_at`
        self._progress_at = 0.0  # monotonic seconds
        self._range: FileRange | None = None
        self._streaming = False
        self._buffer_bytes = 0  # 0: this handle has not sent a range yet
        self._signed_with: Snapshot | None = None
        self._endpoint: Endpoint | None = None
        self._libcurl_signs = True
        self._signs_payload = False
        # The connection is not shared with other handles of a MultiClient: a pool of stale connections would be tried
        # one by one.
        self._connections = pycurl.CurlShare()
        self._connections.setopt(pycurl.SH_SHARE, pycurl.LOCK_DATA_CONNECT)
        self.curl = self._new_handle()  #: for MultiClient, between `start` and `answer`

    @property
    def position(self) -> int:
        """Bytes of a large body that were read from the file to be sent. Any thread may ask."""
        return 0 if self._range is None else self._range.tell()

    def prepare(self, request: Request) -> None:
        """Raises OSError where the payload has to be signed and the file cannot be read."""
        self._request = None
        self._path = request.path
        self._headers.clear()
        self._body.clear()
        self._error = None
        self._range = None
        credentials = self._credentials.current
        if credentials is None:
            return
        endpoint = self._endpoint_now()
        if credentials is not self._signed_with or endpoint is not self._endpoint:
            self._sign_for(endpoint, credentials)
        curl = self.curl
        query = f"?{request.query}" if request.query else ""
        url = endpoint.url + url_quoted(request.key) + query
        curl.setopt(pycurl.URL, url)
        payload = _payload_sha256(request) if self._signs_payload else "UNSIGNED-PAYLOAD"
        lines = [*_CONSTANT]
        if self._libcurl_signs:
            lines += [f"{name}: {value}" for name, value in request.headers]
            lines.append(f"x-amz-content-sha256: {payload}")
            if credentials.token:
                lines.append(f"x-amz-security-token: {credentials.token}")
        else:
            headers = signed(url, request.headers, payload, credentials, endpoint.region)
            lines += [f"{name}: {value}" for name, value in headers.items()]
        curl.setopt(pycurl.HTTPHEADER, lines)
        if request.body is not None:
            self._load_body(request.body)
        else:
            self._load_range(request)
        self._request = request

    def send(self) -> None:
        if self.start():
            # Not for a MultiClient, which has `is_silent`: libcurl would set a timer for each request.
            self.curl.setopt(pycurl.LOW_SPEED_LIMIT, LOW_SPEED_BYTES_S)
            self.curl.setopt(pycurl.LOW_SPEED_TIME, self._timeout_s)
            try:
                self.curl.perform()
            except pycurl.error as exc:
                self.failed(int(exc.args[0]), str(exc.args[-1]))

    def start(self) -> bool:
        """Wait for the bandwidth limit; return False if nothing can be sent (`answer` then has the error)."""
        request = self._request
        if request is None:
            return False
        if self._bandwidth is not None and request.body:
            wait_for_all(self._bandwidth, len(request.body))
        self._progress = 0
        self._progress_at = time.monotonic()
        return True

    def is_silent(self, now: float) -> bool:
        """Whether the request has made no progress for too long; `answer` then has the error. For MultiClient."""
        curl = self.curl
        progress = curl.getinfo(pycurl.SIZE_UPLOAD_T) + curl.getinfo(pycurl.SIZE_DOWNLOAD_T)
        if progress != self._progress:
            self._progress = progress
            self._progress_at = now
        elif now - self._progress_at >= self._timeout_s:
            self.failed(pycurl.E_OPERATION_TIMEDOUT, f"no progress for {self._timeout_s} s")
            return True
        return False

    def failed(self, number: int, message: str) -> None:
        """Record libcurl's error for `answer`."""
        self._error = number, message

    def answer(self) -> Answer:
        if self._request is None:
            why = self._credentials.error or "no credentials found by boto3's chain"
            return Answer(0, {}, b"", from_code(0, "NoCredentials", why, self._path))
        status = self.curl.getinfo(pycurl.RESPONSE_CODE)
        if self._error is not None:
            number, message = self._error
            # A server that refuses early may close before the whole body is sent: its answer explains more.
            early = number in {pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR} and status >= 300  # noqa: PLR2004
            if not (early or (number == pycurl.E_WRITE_ERROR and self._is_full())):
                why = self._range.error if self._range else ""
                return Answer(0, {}, b"", from_curl(number, why or message, self._path))
        return Answer(status, parsed_headers(self._headers), b"".join(self._body), None)

    def release_buffers(self) -> None:
        """Free the memory that a large body needed; the transport stays usable."""
        if self._buffer_bytes:
            self._renew_handle()  # libcurl keeps the buffer of a range for as long as the handle lives

    def close(self) -> None:
        self.curl.close()
        self._connections.close()

    def _new_handle(self) -> pycurl.Curl:
        curl = pycurl.Curl()
        curl.setopt(pycurl.SHARE, self._connections)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.UPLOAD_BUFFERSIZE, SMALL_BUFFER_BYTES)
        curl.setopt(pycurl.TCP_NODELAY, 1)
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.FOLLOWLOCATION, 0)
        curl.setopt(pycurl.DNS_CACHE_TIMEOUT, DNS_CACHE_S)
        curl.setopt(pycurl.CONNECTTIMEOUT, self._timeout_s)
        if self._ca.is_dir():
            curl.unsetopt(pycurl.CAINFO)  # the wheel's own bundle
            curl.setopt(pycurl.CAPATH, str(self._ca))
            curl.setopt(pycurl.PROXY_CAPATH, str(self._ca))
        else:
            curl.setopt(pycurl.CAINFO, str(self._ca))
            curl.setopt(pycurl.PROXY_CAINFO, str(self._ca))
        with contextlib.suppress(pycurl.error):  # before 7.87 libcurl reads the bundle for each connection
            curl.setopt(_CA_CACHE_TIMEOUT, CA_CACHE_S)
        curl.setopt(pycurl.HEADERFUNCTION, self._headers.append)
        curl.setopt(pycurl.WRITEFUNCTION, self._write)
        curl.setopt(pycurl.SOCKOPTFUNCTION, self._limit_unsent)
        curl.setopt(pycurl.CUSTOMREQUEST, "PUT")
        return curl

    def _renew_handle(self) -> None:
        self.curl.close()
        self._streaming = False
        self._buffer_bytes = 0
        self._signed_with = None
        self.curl = self._new_handle()

    def _sign_for(self, endpoint: Endpoint, credentials: Snapshot) -> None:
        if self._signed_with is not None:
            self._renew_handle()  # pycurl cannot unset AWS_SIGV4
        self._endpoint, self._signed_with = endpoint, credentials
        self._libcurl_signs = libcurl_signs(credentials, endpoint.url)
        self._signs_payload = plain_http.beyond_loopback(endpoint.url)
        curl = self.curl
        if self._libcurl_signs:
            curl.setopt(pycurl.USERPWD, f"{credentials.access_key}:{credentials.secret_key}")
            curl.setopt(pycurl.AWS_SIGV4, f"aws:amz:{endpoint.region}:s3")
        curl.setopt(pycurl.PROXY, proxy_of(endpoint.url))  # set, also to "": else libcurl asks the environment
        curl.setopt(pycurl.NOPROXY, "")

    def _load_body(self, body: bytes) -> None:
        curl = self.curl
        if self._streaming:
            curl.setopt(pycurl.UPLOAD, 0)
            curl.unsetopt(pycurl.READFUNCTION)
            self._streaming = False
        curl.setopt(pycurl.POSTFIELDS, body)

    def _load_range(self, request: Request) -> None:
        curl = self.curl
        wanted = BUFFER_BYTES
        if self._buffer_bytes and curl.getinfo(pycurl.SPEED_UPLOAD_T) >= FAST_BYTES_S:
            wanted = FAST_BUFFER_BYTES
        if wanted != self._buffer_bytes:
            curl.setopt(pycurl.UPLOAD_BUFFERSIZE, wanted)
            self._buffer_bytes = wanted
        if not self._streaming:
            curl.setopt(pycurl.UPLOAD, 1)
            curl.setopt(pycurl.READFUNCTION, self._read)
            curl.setopt(pycurl.SEEKFUNCTION, self._seek)
            self._streaming = True
        self._range = FileRange(request, self._bandwidth)
        curl.setopt(pycurl.INFILESIZE_LARGE, request.length)

    def _read(self, size: int) -> bytes | int:
        try:
            return pycurl.READFUNC_ABORT if self._range is None else self._range.read(size)
        except OSError:
            return pycurl.READFUNC_ABORT

    def _seek(self, offset: int, _origin: int) -> int:
        """Libcurl counts from the start of the body (CURLOPT_SEEKFUNCTION)."""
        if self._range is not None:
            self._range.seek(offset)
        return pycurl.SEEKFUNC_OK

    def _write(self, data: bytes) -> int:
        if self._is_full():
            return 0  # libcurl ends the request with E_WRITE_ERROR
        self._body.append(data)
        return len(data)

    def _is_full(self) -> bool:
        pieces = self._body
        return len(pieces) >= MAX_ANSWER_PIECES or sum(map(len, pieces)) >= MAX_ANSWER_BYTES

    def _limit_unsent(self, descriptor: int, _purpose: int) -> int:
        """Libcurl's callback for a new socket."""
        connection = socket.socket(fileno=descriptor)
        unsent = UNSENT_RANGE_BYTES if self._streaming else UNSENT_BYTES
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)
        connection.detach()
        return 0


def _payload_sha256(request: Request) -> str:
    """Sign the body as well: without TLS the signature could be replayed with another body. Raises OSError."""
    if request.body is not None:
        return hashlib.sha256(request.body).hexdigest()
    return base64.b64decode(of_range("sha256", request.fd, request.offset, request.length)).hex()
