"""boto3 reads each answer into memory, however long it is: here one that never ends is cut off."""

from __future__ import annotations

from typing import Any, TypeVar

import botocore.exceptions
import urllib3.exceptions

ANSWER_BYTES = 8 * 1024 * 1024  # more than S3's longest, a list of a thousand entries
Client = TypeVar("Client")


class BoundedSession:
    """In the place of a client's HTTP session."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def send(self, request: Any) -> Any:
        if request.stream_output:  # an object: whoever asked for it reads it piece by piece
            return self._session.send(request)
        request.stream_output = True  # the body is left to us
        for name, value in list(request.headers.items()):
            if isinstance(value, bytes):  # urllib3 fails over these when a 303 comes
                request.headers[name] = value.decode("latin-1")
        response = self._session.send(request)
        pieces: list[bytes] = []
        length = 0
        try:
            for piece in response.raw.stream():
                length += len(piece)
                if length > ANSWER_BYTES:
                    response.raw.close()
                    raise botocore.exceptions.HTTPClientError(error=f"an answer of more than {ANSWER_BYTES} bytes")
                pieces.append(piece)
        # What botocore makes of it where it reads by itself.
        except urllib3.exceptions.ReadTimeoutError as exc:
            raise botocore.exceptions.ReadTimeoutError(endpoint_url=request.url, error=exc) from exc
        except urllib3.exceptions.ProtocolError as exc:
            raise botocore.exceptions.ConnectionClosedError(
                endpoint_url=request.url, request=request, error=exc
            ) from exc
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise botocore.exceptions.HTTPClientError(error=exc) from exc
        response._content = b"".join(pieces)  # noqa: SLF001 - where botocore keeps it
        return response

    def close(self) -> None:
        self._session.close()


def bounded(client: Client) -> Client:
    """The same client, which then takes no longer answers than that."""
    endpoint: Any = client._endpoint  # type: ignore[attr-defined] # noqa: SLF001 - no public way
    endpoint.http_session = BoundedSession(endpoint.http_session)
    return client
