"""How clients of boto3 send requests here: without redirects, and with answers of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import urllib3.exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import HTTPClientError
from botocore.httpsession import URLLib3Session

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_ANSWER_BYTES = 8 * 1024 * 1024  # S3's longest answer, a list of a thousand entries, is shorter


def guarded(client: S3Client, verify: str) -> tuple[S3Client, Callable[[], None]]:
    """Return the client, with handlers for botocore's events and the proxies of its config; `verify`: the CA bundle.

    The second closes its idle connections; urllib3 itself keeps as many as ever were in use at once.
    """
    config: Any = client.meta.config
    events: Any = client.meta.events
    make: Any = URLLib3Session  # its stub knows less than it takes
    session = make(
        verify=verify,
        proxies=config.proxies,
        timeout=(config.connect_timeout, config.read_timeout),
        max_pool_connections=config.max_pool_connections,
    )

    def send(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        return None if request.stream_output else _sent(session, request)

    events.register("before-call.s3", _follow_no_redirect)
    events.register_last("before-send.s3", send)
    return client, session.close


def _follow_no_redirect(params: dict[str, Any], **_: Any) -> None:
    """Pretend that the request was redirected before: botocore's region redirector acts only once.

    It would ask again on any 301, 302 or 307. `Store.moves_to` learns the region from the answer instead.
    """
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _sent(session: Any, request: AWSPreparedRequest) -> AWSResponse:
    """Send a request in the place of botocore, which reads answers of any length into memory."""
    request.stream_output = True  # the body is read below
    for name, value in list(request.headers.items()):
        if isinstance(value, bytes):  # urllib3 cannot handle these when a 303 arrives
            request.headers[name] = value.decode("latin-1")
    received = session.send(request)
    answer = AWSResponse(received.url, received.status_code, received.headers, _Bounded(received.raw))
    try:
        _ = answer.content  # reads the body now, and keeps it
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        raise HTTPClientError(error=exc) from exc
    return answer


class _Bounded:
    """A body that raises HTTPClientError instead of growing beyond the limit."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def stream(self) -> Iterator[bytes]:
        length = 0
        for piece in self._raw.stream():
            length += len(piece)
            if length > MAX_ANSWER_BYTES:
                self._raw.close()
                raise HTTPClientError(error=f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            yield piece
