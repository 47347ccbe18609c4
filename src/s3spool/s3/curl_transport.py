"""libcurl through pycurl: connection reuse, SigV4 and the wait for the answer all happen outside the GIL."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pycurl

from s3spool.s3 import plain_http
from s3spool.s3.checksums import of_range
from s3spool.s3.client import Endpoint
from s3spool.s3.credentials import Credentials, signs_with
from s3spool.s3.errors import from_code, from_curl
from s3spool.s3.keys import url_quoted
from s3spool.s3.name_lookups import NameLookups
from s3spool.s3.proxies import proxy_of
from s3spool.s3.request_timeout import Patience
from s3spool.s3.socket_backlog import Unsent
from s3spool.s3.transport import Answer, Bandwidth, Request, parsed_headers, shrunk, unreadable, wait_for_all

BUFFER_BYTES = 256 * 1024  # of a large body, as libcurl holds it: a hundred slow connections need little
FAST_BUFFER_BYTES = 512 * 1024  # a few fast ones: less CPU
FAST_BYTES_S = 32 * 2**20
SMALL_BUFFER_BYTES = 16 * 1024  # libcurl fills a new one with zeros for each request: 64 KiB by default
ANSWER_BYTES = 256 * 1024  # more than any answer of S3's to a PUT; a longer one is cut off, it might never end
CA_CACHE_S = 5  # for so long libcurl may go by a bundle that has been mended; by default it is a day
_CA_CACHE_TIMEOUT = 321  # curl.h's number, which pycurl has no name for
_CONSTANT = ("Expect:", "Content-Type:")  # no headers of libcurl's own choice
# The address may be another host's by now, which takes nothing, or has another certificate, or does not answer.
NO_CONNECTION = {
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_OPERATION_TIMEDOUT,
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_PEER_FAILED_VERIFICATION,
}


class CurlTransport:
    """One libcurl handle: one connection, one thread at a time."""

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        credentials: Credentials,
        *,
        ca: Path,
        timeout_s: float,
        bandwidth: Bandwidth | None = None,
        lookups: NameLookups | None = None,
    ) -> None:
        """`ca`: whom to trust; a bundle, or a directory of certificates named by their hashes."""
        self._lookups = lookups or NameLookups()
        self._seen_failures = 0  # of connections, by any handle
        self._dns_cache_s = -1  # set
        self._endpoint_now = endpoint
        self._ca = ca
        self._timeout_s = max(1, round(timeout_s))
        self._unsent = Unsent()
        self._patience = Patience(timeout_s, self._unsent.count)
        self._given_up = ""  # why we ended it ourselves
        self._alone = False  # set: libcurl asks us as it goes; on a carrier it is the carrier who asks
        self._credentials = credentials
        self._bandwidth = bandwidth
        self._headers: list[bytes] = []
        self._body: list[bytes] = []
        self._kept = 0
        self._request: Request | None = None
        self._error: tuple[int, str] | None = None
        self._unreadable = ""
        self._position = 0
        self._streaming = False
        self._buffer_bytes = 0  # set; 0: has not sent a large body
        self._ready = False
        self._signed_with: object = None
        # Its connection is its own, also on a carrier: one whose pool has gone stale would be tried time and again.
        self._connections = pycurl.CurlShare()
        self._connections.setopt(pycurl.SH_SHARE, pycurl.LOCK_DATA_CONNECT)
        self._curl = self._new_handle()

    def prepare(self, request: Request) -> None:
        curl = self._curl
        self._request = request
        self._headers.clear()
        self._body.clear()
        self._kept = 0
        self._error = None
        self._unreadable = ""
        self._given_up = ""
        credentials = self._credentials.current
        self._ready = credentials is not None and signs_with(credentials)
        if credentials is None or not self._ready:
            return  # the handle still holds the last request, which must not be repeated: see `set_out`
        if credentials is not self._signed_with:
            curl.setopt(pycurl.USERPWD, f"{credentials.access_key}:{credentials.secret_key}")
            self._signed_with = credentials
        if self._endpoint is not self._endpoint_now():
            self._use_endpoint(curl)
        dns_cache_s, self._seen_failures = self._lookups.cache_s(self._seen_failures)
        if dns_cache_s != self._dns_cache_s:
            curl.setopt(pycurl.DNS_CACHE_TIMEOUT, dns_cache_s)
            self._dns_cache_s = dns_cache_s
        query = f"?{request.query}" if request.query else ""
        curl.setopt(pycurl.URL, self._endpoint.url + url_quoted(request.key) + query)
        lines = [
            *_CONSTANT,
            f"x-amz-content-sha256: {self._payload_sha256(request) if self._signs_payload else 'UNSIGNED-PAYLOAD'}",
            *(f"{name}: {value}" for name, value in request.headers),
        ]
        if credentials.token:
            lines.append(f"x-amz-security-token: {credentials.token}")
        curl.setopt(pycurl.HTTPHEADER, lines)
        if request.body is not None:
            self._load_body(request.body)
        else:
            self._load_range(request.length)

    def send(self) -> None:
        if not self.set_out():
            return
        if not self._alone:
            self._curl.setopt(pycurl.NOPROGRESS, 0)
            self._alone = True
        try:
            self._curl.perform()
        except pycurl.error as exc:
            if self._given_up:
                self.failed(pycurl.E_OPERATION_TIMEDOUT, self._given_up)
            else:
                self.failed(int(exc.args[0]), str(exc.args[-1]))

    @property
    def curl(self) -> pycurl.Curl:
        """For whoever sends in our stead, between `set_out` and `answer`."""
        return self._curl

    def set_out(self) -> bool:
        """The last step before bytes move; False when nothing can be sent, which `answer` then explains."""
        request = self._request
        if not self._ready or request is None:
            return False
        if self._bandwidth is not None and request.body:
            wait_for_all(self._bandwidth, len(request.body))
        self._patience.begin(request.length, time.monotonic())
        return True

    def overdue(self, now: float) -> bool:
        """For a carrier, at times (monotonic seconds): whether it is to be broken off, which `answer` then explains."""
        why = self._patience.over(self._curl.getinfo(pycurl.SIZE_UPLOAD_T), len(self._headers) + self._kept, now)
        if why:
            self.failed(pycurl.E_OPERATION_TIMEDOUT, why)
        return bool(why)

    def failed(self, number: int, message: str) -> None:
        """Libcurl ended with this error."""
        self._error = number, message
        if number in NO_CONNECTION:
            self._lookups.failed()

    def answer(self) -> Answer:
        request = self._request
        path = request.path if request else ""
        if not self._ready:
            why = self._credentials.error or "no credentials found by boto3's chain"
            if self._credentials.current is not None:
                why = "libcurl cannot sign with the characters of the new access key: restart s3spool, then boto3 does"
            return Answer(0, {}, b"", from_code(0, "NoCredentials", why, path))
        if self._error is not None:
            number, message = self._error
            # A server that refuses early may close before we have sent all: its answer says more than our error.
            status = self._curl.getinfo(pycurl.RESPONSE_CODE)
            early = number in {pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR} and status >= 300  # noqa: PLR2004
            cut_off = number == pycurl.E_WRITE_ERROR and self._kept >= ANSWER_BYTES
            if not (early or cut_off):
                return Answer(0, {}, b"", from_curl(number, self._unreadable or message, path))
        return Answer(
            self._curl.getinfo(pycurl.RESPONSE_CODE), parsed_headers(self._headers), b"".join(self._body), None
        )

    def release_buffers(self) -> None:
        if self._buffer_bytes:
            # libcurl keeps the buffer of large bodies for as long as the handle lives.
            self._curl.close()
            self._streaming = self._alone = False
            self._buffer_bytes = 0
            self._signed_with = None
            self._dns_cache_s = -1
            self._curl = self._new_handle()

    def close(self) -> None:
        self._curl.close()
        self._connections.close()

    @staticmethod
    def _payload_sha256(request: Request) -> str:
        """Without TLS a signature that leaves the body out could be replayed with another body. Raises OSError."""
        if request.body is not None:
            return hashlib.sha256(request.body).hexdigest()
        return base64.b64decode(of_range("sha256", request.fd, request.offset, request.length)).hex()

    def _new_handle(self) -> pycurl.Curl:
        curl = pycurl.Curl()
        curl.setopt(pycurl.SHARE, self._connections)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.UPLOAD_BUFFERSIZE, SMALL_BUFFER_BYTES)
        curl.setopt(pycurl.TCP_NODELAY, 1)
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.FOLLOWLOCATION, 0)
        self._use_endpoint(curl)
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
        curl.setopt(pycurl.SOCKOPTFUNCTION, self._unsent.note)
        curl.setopt(pycurl.XFERINFOFUNCTION, self._go_on)
        curl.setopt(pycurl.CUSTOMREQUEST, "PUT")
        return curl

    def _use_endpoint(self, curl: pycurl.Curl) -> None:
        self._endpoint = self._endpoint_now()
        self._signs_payload = plain_http.beyond_loopback(self._endpoint.url)
        curl.setopt(pycurl.AWS_SIGV4, f"aws:amz:{self._endpoint.region}:s3")
        curl.setopt(pycurl.PROXY, proxy_of(self._endpoint.url))  # set, also to "": else libcurl asks the environment
        curl.setopt(pycurl.NOPROXY, "")

    def _load_body(self, body: bytes) -> None:
        curl = self._curl
        if self._streaming:
            curl.setopt(pycurl.UPLOAD, 0)
            curl.unsetopt(pycurl.READFUNCTION)
            self._streaming = False
        curl.setopt(pycurl.POSTFIELDS, body)

    def _load_range(self, length: int) -> None:
        curl = self._curl
        is_fast = self._buffer_bytes and curl.getinfo(pycurl.SPEED_UPLOAD_T) >= FAST_BYTES_S
        wanted = FAST_BUFFER_BYTES if is_fast else BUFFER_BYTES
        if wanted != self._buffer_bytes:
            curl.setopt(pycurl.UPLOAD_BUFFERSIZE, wanted)
            self._buffer_bytes = wanted
        if not self._streaming:
            curl.setopt(pycurl.UPLOAD, 1)
            curl.setopt(pycurl.READFUNCTION, self._read)
            curl.setopt(pycurl.SEEKFUNCTION, self._seek)
            self._streaming = True
        self._position = 0
        curl.setopt(pycurl.INFILESIZE_LARGE, length)

    def _read(self, size: int) -> bytes | int:
        request = self._request
        if request is None:
            return pycurl.READFUNC_ABORT
        wanted = min(size, request.length - self._position)
        if wanted <= 0:
            return b""
        if self._bandwidth is not None:
            wanted = self._bandwidth(wanted) or wanted
            self._patience.excuse(time.monotonic())
        try:
            data = os.pread(request.fd, wanted, request.offset + self._position)
        except OSError as exc:
            self._unreadable = unreadable(exc)
            return pycurl.READFUNC_ABORT
        if not data:
            self._unreadable = shrunk(request, self._position)
            return pycurl.READFUNC_ABORT  # a short body would only wait for the time-out
        self._position += len(data)
        return data

    def _seek(self, offset: int, origin: int) -> int:
        """Start over: libcurl sends again from the start when a kept-alive connection turns out to be dead."""
        self._position = offset if origin == os.SEEK_SET else self._position + offset
        return pycurl.SEEKFUNC_OK

    def _write(self, data: bytes) -> int:
        if self._kept >= ANSWER_BYTES:
            return 0  # not all of it: libcurl ends with E_WRITE_ERROR
        self._kept += len(data)
        self._body.append(data)
        return len(data)

    def _go_on(self, _wanted: int, _come: int, _length: int, sent: int) -> int:
        """Libcurl's callback, at each step and each second: anything but 0 ends the request."""
        self._given_up = self._patience.over(sent, len(self._headers) + self._kept, time.monotonic())
        return bool(self._given_up)
