"""Random faults: each request meets a fault of its own, or none, chosen by a seed."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING

from support.faults import (
    Delay,
    EmptyOk,
    Fault,
    Garbage,
    HtmlOk,
    LoseAnswer,
    Redirect,
    Reset,
    Silent,
    Status,
    Truncated,
    WrongChecksum,
    WrongEtag,
)
from support.s3_messages import Answer

if TYPE_CHECKING:
    from support.http_server import Exchange

TIMEOUT_S = 1.0  # what the daemons of these tests are configured to wait for a silent server

_ERRORS = [
    (400, "BadDigest"),
    (400, "IncompleteBody"),
    (400, "InvalidRequest"),
    (400, "RequestTimeout"),
    (400, "EntityTooLarge"),
    (400, "ExpiredToken"),
    (403, "AccessDenied"),
    (403, "InvalidAccessKeyId"),
    (403, "RequestTimeTooSkewed"),
    (403, "SignatureDoesNotMatch"),
    (404, "NoSuchBucket"),
    (404, "NoSuchKey"),
    (404, "NoSuchUpload"),
    (409, "OperationAborted"),
    (411, "MissingContentLength"),
    (412, "PreconditionFailed"),
    (413, ""),
    (429, "TooManyRequests"),
    (500, "InternalError"),
    (501, "NotImplemented"),
    (502, ""),
    (503, "ServiceUnavailable"),
    (503, "SlowDown"),
    (504, ""),
    (507, "InsufficientStorage"),
]


def faults() -> dict[str, Fault]:
    """All that can happen to one request, by name."""
    kinds: dict[str, Fault] = {
        "reset before the body": Reset("before"),
        "reset inside the body": Reset("inside"),
        "reset after the body": Reset("after"),
        "silence": Silent(),
        "late answer": Delay(0.6 * TIMEOUT_S),
        "answer after the time-out": Delay(1.5 * TIMEOUT_S),
        "half of the headers": Truncated(0.3),
        "half an answer": Truncated(0.9),
        "answer lost": LoseAnswer(),
        "200, empty": EmptyOk(),
        "200, empty, but stored": EmptyOk(store=True),
        "200, HTML": HtmlOk(),
        "200, an error in the body": Status(code=200, body=Answer.error(500, "InternalError").body),
        "wrong ETag": WrongEtag(),
        "wrong checksum": WrongChecksum(),
        "301": Redirect(),
        "307": Redirect(code=307),
        "garbage": Garbage(),
        "503 with Retry-After": Status(code=503, error_code="SlowDown", headers={"Retry-After": "1"}),
    }
    kinds |= {f"{status} {code}".strip(): Status(code=status, error_code=code) for status, code in _ERRORS}
    return kinds


class RandomFaults(Fault):
    """The n-th request of one kind for one key meets the same fault whenever the seed is the same."""

    def __init__(self, seed: int) -> None:
        self.share = 0.0  #: of the requests that meet a fault
        self.only = ""  #: the one fault of an outage; "": any
        self.met: Counter[str] = Counter()
        self._seed = seed
        self._kinds = faults()
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._current = threading.local()  # one request at a time on each of the server's threads

    @property
    def kinds(self) -> list[str]:
        return list(self._kinds)

    def on_headers(self, exchange: Exchange) -> None:
        fault = self._current.fault = self._choose(exchange)
        fault.on_headers(exchange)

    def instead(self, exchange: Exchange) -> Answer | None:
        return self._fault().instead(exchange)

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        return self._fault().on_answer(exchange, answer)

    def _fault(self) -> Fault:
        fault: Fault = self._current.fault
        return fault

    def _choose(self, exchange: Exchange) -> Fault:
        request = exchange.request
        kind = self._pick(f"{request.line} {request.query.get('partNumber', '')}")
        return self._kinds[kind] if kind else Fault()

    def _pick(self, line: str) -> str:
        """The name of a fault; "" for none."""
        with self._lock:
            self._seen[line] += 1
            rng = random.Random(f"{self._seed} {line} {self._seen[line]}")
            if rng.random() >= self.share:
                return ""
            kind = self.only or rng.choice(self.kinds)
            self.met[kind] += 1
            return kind
