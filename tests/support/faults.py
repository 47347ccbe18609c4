"""The ways in which a server misbehaves; `FaultyS3.script` says when."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Literal

from support.http_server import Exchange, HangUp
from support.s3_messages import Answer


class Fault:
    """Does nothing wrong by itself. Any method may raise HangUp."""

    def on_headers(self, exchange: Exchange) -> None:
        """Before the body is read."""

    def instead(self, exchange: Exchange) -> Answer | None:
        """After the body is read: an answer here means that the store never sees the request."""
        return None

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        """After the store has done its work."""
        return answer

    def release(self) -> None:
        """The server stops: let go of whom you hold."""


@dataclass(kw_only=True)
class Status(Fault):
    """An S3 error, `Status(code=503, error_code="SlowDown", headers={"Retry-After": "1"})`."""

    code: int
    error_code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  #: instead of S3's XML

    def instead(self, exchange: Exchange) -> Answer:
        if self.body is not None or not self.error_code:
            return Answer(status=self.code, headers=dict(self.headers), body=self.body or b"")
        return Answer.error(self.code, self.error_code, headers=self.headers)


@dataclass
class Delay(Fault):
    """The right answer, late."""

    duration_s: float

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        exchange.pause(self.duration_s)
        return answer


class Late(Fault):
    """The right answer, once the client has given up."""

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        exchange.wait_for_hangup()
        return answer


@dataclass
class Reset(Fault):
    """RST before, inside or after the body; nothing is stored."""

    when: Literal["before", "inside", "after"]

    def on_headers(self, exchange: Exchange) -> None:
        if self.when == "inside":
            exchange.read_body(share=0.5)
        if self.when != "after":
            raise HangUp(reset=True)

    def instead(self, exchange: Exchange) -> Answer:
        raise HangUp(reset=True)


class Silent(Fault):
    """Take the request, store nothing, never answer."""

    def instead(self, exchange: Exchange) -> Answer:
        exchange.wait_for_hangup()
        raise HangUp


@dataclass
class Truncated(Fault):
    """Store, then close after a share of the answer's bytes.

    Some clients take half of the headers for all of them: 200, but without what was to come.
    """

    share: float = 0.5

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        raw = exchange.render(answer)
        exchange.send_raw(raw[: int(len(raw) * self.share)])
        raise HangUp


@dataclass
class EmptyOk(Fault):
    """200 without ETag or checksum: a broken proxy, or (`store=True`) a store that confirms nothing."""

    store: bool = False

    def instead(self, exchange: Exchange) -> Answer | None:
        return None if self.store else Answer()

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        return Answer()


class HtmlOk(Fault):
    """200 with a captive portal's page."""

    def instead(self, exchange: Exchange) -> Answer:
        page = b"<!DOCTYPE html><html><body><h1>Welcome to Hotel WLAN</h1><br>Log in"
        return Answer(headers={"Content-Type": "text/html"}, body=page)


@dataclass
class WrongEtag(Fault):
    """Store, but answer another ETag."""

    etag: str = '"00000000000000000000000000000000"'

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        answer.headers["ETag"] = self.etag
        return answer


@dataclass
class WrongChecksum(Fault):
    """Store, but answer another value for each checksum the client sent."""

    value: str = "AAAAAAAAAAA="

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        repeated = [name for name in answer.headers if name.startswith("x-amz-checksum-")]
        answer.headers |= dict.fromkeys(repeated, self.value)
        return answer


@dataclass
class Redirect(Fault):
    """The bucket is elsewhere: S3's answer to the wrong region."""

    location: str = "http://127.0.0.1:9/"
    region: str = "eu-central-1"
    code: int = 301

    def instead(self, exchange: Exchange) -> Answer:
        headers = {"Location": self.location, "x-amz-bucket-region": self.region}
        return Answer.error(self.code, "PermanentRedirect", headers=headers)


@dataclass
class Garbage(Fault):
    """Bytes that are not HTTP."""

    raw: bytes = b"\x16\x03\x01\x00not http at all\r\n\r\n"

    def instead(self, exchange: Exchange) -> Answer:
        exchange.send_raw(self.raw)
        raise HangUp


@dataclass
class Endless(Fault):
    """The pieces of an answer, the last of them again and again until the client hangs up."""

    pieces: tuple[bytes, ...]
    pause_s: float = 0.0

    def instead(self, exchange: Exchange) -> Answer:
        for piece in chain(self.pieces, repeat(self.pieces[-1])):
            exchange.send_raw(piece)
            if self.pause_s:
                exchange.pause(self.pause_s)
        raise AssertionError("there is always another piece")


class LoseAnswer(Fault):
    """Store, then close without a word: the client cannot know."""

    def on_answer(self, exchange: Exchange, answer: Answer) -> Answer:
        raise HangUp


@dataclass
class HoldUntil(Fault):
    """Hold requests back until the event is set, then treat them well.

    Neither side has finished meanwhile: the body has arrived, nothing is stored, no answer is sent.
    """

    event: threading.Event = field(default_factory=threading.Event)

    def instead(self, exchange: Exchange) -> Answer | None:
        self.event.wait()
        return None

    def release(self) -> None:
        self.event.set()
