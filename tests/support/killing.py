"""The real program, which kills itself at a named step: `python -m support.killing STEP COUNT -- run ...`.

STEP is "before:NAME" or "after:NAME" of a name in STEPS; SIGKILL comes around the COUNT-th such call. "stop:NAME" of a
name in STOPS is SIGSTOP before it: time for somebody to come in between. The product knows nothing of this: its own
functions are wrapped before its command line runs.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from s3spool.folder.folder import REMOVING
from s3spool.s3.content import Content
from support.power import cut


class Step(NamedTuple):
    """A function of the product (or one it calls) as "module:attribute", and which of its calls count."""

    function: str
    counts: Callable[..., bool] = lambda *_, **__: True


def _has_receipt(_ledger: object, group: list[Any], *_: object) -> bool:
    return any(work.table == "receipts" for work in group)


def _is_receipts(_ledger: object, table: str, *_: object) -> bool:
    return table == "receipts"


def _is_by_descriptor(*_: object, dir_fd: int | None = None, **__: object) -> bool:
    return dir_fd is not None  # as only the spool folder's files are removed


def _is_aside(_: int, __: str, target: str, ___: int) -> bool:
    return target.startswith(REMOVING[:-1])  # a number follows where the ledger is shared


def _is_read_twice(_store: object, content: Content) -> bool:
    return content.fd >= 0  # for its checksum, then for the body


STEPS = {
    # One file's way, in its order.
    "send": Step("s3spool.s3.curl_transport:CurlTransport.start"),
    "answer": Step("s3spool.s3.curl_transport:CurlTransport.answer"),  # S3 has it, and only S3 knows
    "record": Step("s3spool.ledger.store:Ledger.record_receipt"),
    "commit": Step("s3spool.ledger.store:Ledger._commit", _has_receipt),
    "insert": Step("s3spool.ledger.store:Ledger._insert", _is_receipts),  # inside the commit's transaction
    "committed": Step("s3spool.upload.post_upload:PostUpload.receipt_committed"),
    "compare+unlink": Step("s3spool.folder.folder:Folder.unlink_if_same"),
    "aside": Step(
        "s3spool.folder.rename:noreplace", _is_aside
    ),  # taken out of the way under a reserved name, and looked at again
    "unlink": Step("os:unlink", _is_by_descriptor),
    "compare+rename": Step("s3spool.folder.folder:Folder.move_if_same"),
    "rename": Step("s3spool.folder.rename:noreplace"),
    "finished": Step("s3spool.upload.post_upload:PostUpload._apply_action"),
    # A large file's.
    "resumed": Step("s3spool.upload.resume:ResumableUploads.resumed"),
    "create": Step("s3spool.s3.multipart_uploads:Uploads.create"),
    "record multipart": Step("s3spool.ledger.store:Ledger.record_multipart"),
    "record part": Step("s3spool.ledger.store:Ledger.record_part"),
    "complete": Step("s3spool.s3.multipart:MultipartStore.complete"),
    "forget multipart": Step("s3spool.ledger.store:Ledger.forget_multipart"),
    "abort": Step("s3spool.s3.multipart_uploads:Uploads.abort"),
    # A failed file's, and one's whose removal was cut short.
    "record retry": Step("s3spool.ledger.store:Ledger.record_retry"),
    "claim": Step("s3spool.ledger.store:Ledger.claim"),
    "restore": Step("s3spool.folder.folder:Folder.restore"),
    # The start, in its order.
    "lock": Step("s3spool.ledger.database:DirectoryLock.__init__"),
    "migrate": Step("s3spool.ledger.database:_migrate"),
    "ledger": Step("s3spool.ledger.store:Ledger.__init__"),
    "watch": Step("s3spool.discovery.watch:Watch.start"),
    "control": Step("s3spool.control.server:ControlServer.start"),
    "scan": Step("s3spool.discovery.scan:Scan._scan"),
}

STOPS = {"checksum": Step("s3spool.s3.store:Store.request", _is_read_twice)}


def program(step: str, count: int = 1, *, module: str = "support.killing") -> tuple[str, ...]:
    """For `Daemon.program`; needs PYTHONPATH to lead to the tests."""
    return (sys.executable, "-m", module, step, str(count), "--")


def _wrap(when: str, step: Step, count: int) -> None:
    module, _, dotted = step.function.partition(":")
    *owners, name = dotted.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function = getattr(owner, name)
    calls = itertools.count(1)  # its next() is atomic: a hundred workers may call at once

    @functools.wraps(function)
    def killing(*args: Any, **kwargs: Any) -> Any:
        fatal = step.counts(*args, **kwargs) and next(calls) == count
        if fatal and when == "stop":
            # This very thread: it would run on for a moment after a signal to the process.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        if fatal and when == "before":
            _die()
        result = function(*args, **kwargs)
        if fatal and when == "after":
            _die()
        return result

    setattr(owner, name, killing)


def _die() -> None:
    """With the power of the file systems that CUT_POWER names, if it names any."""
    for place in filter(None, os.environ.get("CUT_POWER", "").split(":")):
        cut(place)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    step, count, dashes, *arguments = sys.argv[1:]
    when, _, name = step.partition(":")
    if when not in {"before", "after", "stop"} or dashes != "--":
        usage = "before:NAME|after:NAME|stop:NAME COUNT -- ARGUMENTS OF s3spool"
        raise SystemExit(f"usage: python -m support.killing {usage}")
    _wrap(when, (STOPS if when == "stop" else STEPS)[name], int(count))

    from s3spool.cli.commands import cli  # noqa: PLC0415 - as late as the program itself does it

    cli(arguments)


if __name__ == "__main__":
    main()
