"""Every log event by its stable name: the public list, repeated for people in docs/logging.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from s3spool.logs.text import printable, shown
from s3spool.logs.units import duration, size

if TYPE_CHECKING:
    from collections.abc import Mapping

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class EventSpec:
    """How an event is usually logged.

    `message` is the sentence for people: `{field}` stands for a value, and a part in [brackets] disappears
    where one of its fields is absent. `message_id` never changes once released: alerts are tied to it.
    """

    level: Level
    message: str
    message_id: str = ""


EVENTS: dict[str, EventSpec] = {
    "daemon.starting": EventSpec("info", "starting[ s3spool {version}][, configuration from {config}]"),
    "daemon.ready": EventSpec(
        "info",
        "ready[: everything dropped into {directory} goes to s3://{bucket}/[{prefix}]]",
        "96f1ecfaad574d76826c4c4680ad5ed2",
    ),
    "daemon.after_upload": EventSpec("info", "{outcome}"),
    "daemon.reloaded": EventSpec(
        "info", "configuration read again[; changed now: {changed}][; a restart is needed for {restart_needed}]"
    ),
    "daemon.draining": EventSpec("info", "draining[ for up to {drain_s}]; a second Ctrl-C or signal stops at once"),
    "daemon.stopped": EventSpec(
        "info",
        "stopped[ in {duration_s}][; {uploaded} files uploaded since the start]",
        "6a67e91a91ae42b9a29c95646e7d2fed",
    ),
    "daemon.unhealthy": EventSpec(
        "error",
        "these components died or hang: {components}[; {hint}]",
        "b9a06f1dfb3d4a0aa6b6ab8f7a0f5c13",
    ),
    "config.refused": EventSpec("error", "the new configuration is wrong, and nothing was changed[: {error}]"),
    "config.untrusted": EventSpec("warning", "other users could have written the configuration[: {reason}]"),
    "daemon.user_changed": EventSpec("info", "root becomes the owner of the state directory[: {reason}]"),
    "systemd.missing": EventSpec("warning", "no native journal entries[: {reason}]"),
    "destination.condition_ignored": EventSpec(
        "warning",
        "the server ignores If-None-Match: each upload asks with HEAD first whether an object is there",
    ),
    "watch.started": EventSpec("info", "watching[ {directory}][ by {backend}]"),
    "watch.overflowed": EventSpec(
        "warning",
        "the kernel dropped file events; scanning the folder for the files",
        "5df12dda5bf6463e9e1d4faf8d272c03",
    ),
    "watch.lost": EventSpec(
        "error",
        "the folder is gone[: {directory}][; {hint}]; waiting for its return",
        "c9d4ba881f2e4e148c3a1e9d6e5dcbf7",
    ),
    "watch.restored": EventSpec(
        "info", "the folder is back[: {directory}]; scanning it", "38a178a210a7499e9fe957f055ced055"
    ),
    "watch.polling": EventSpec(
        "warning", "file events miss some directories; scanning[ {directory}] as well[: {reason}]"
    ),
    "directory.too_deep": EventSpec(
        "warning", "{path} is not scanned: every key below it would be longer than S3's 1,024 bytes"
    ),
    "scan.started": EventSpec("debug", "scanning the folder[ ({reason})]"),
    "scan.finished": EventSpec(
        "info",
        "scanned[ {files} files][ in {duration_s}][, {offered} of them new]",
    ),
    "scan.failed": EventSpec("warning", "could not scan[ {path}][: {error}]; the next scan tries again"),
    "file.uploaded": EventSpec("info", "uploaded {path}[ to s3://{bucket}/{key}][, {bytes}][ in {duration_s}]"),
    "log.summarized": EventSpec("warning", "{lines} more lines like the {summarized} before[: {error_code}]"),
    "file.hanging": EventSpec("warning", "cannot open or read {path}: its file system does not answer[; {hint}]"),
    "file.failed": EventSpec(
        "warning",
        "could not upload {path}[: {error_code}][: {error}][; {hint}][; {fault}][; next try in {next_attempt_s}]",
    ),
    "file.parked": EventSpec(
        "error",
        "parked {path}[: {error_code}][: {error}][; {hint}]; it stays in the folder",
        "ce5eebd821044193ab4da738d1e0151d",
    ),
    "file.vanished": EventSpec("info", "{path} was removed by another program before it was sent"),
    "file.changed": EventSpec("info", "{path} changed while it was read; it is sent again"),
    "file.claim_lost": EventSpec(
        "warning", "another daemon may have {path}: this one was away for longer than its lease; nothing is removed"
    ),
    "file.skipped": EventSpec("debug", "skipped {path}[: {reason}]"),
    "multipart.started": EventSpec("info", "sending {path} in[ {parts}] parts[, {bytes}]"),
    "multipart.resumed": EventSpec("info", "resuming {path}[, {parts_done} of {parts} parts are there]"),
    "multipart.aborted": EventSpec("info", "dropped an unfinished multipart upload[ of {path}][ to {key}][: {reason}]"),
    "destination.paused": EventSpec(
        "error",
        "uploads[ to {destination}] are paused[: {evidence}][: {error}][; {hint}][; next try in {next_attempt_s}]",
        "6ec460595fde44ca9024c842f8190c01",
    ),
    "destination.resumed": EventSpec(
        "info", "uploads[ to {destination}] continue[ after {duration_s}]", "322602214c8f4e4193037a4d3279e47c"
    ),
    "destination.slowed": EventSpec(
        "warning",
        "[{destination} ]asks for fewer requests[: {error_code}][: {error}]; {workers} workers continue[; {hint}]",
    ),
    "destination.unencrypted": EventSpec("warning", "{endpoint} is plain http[: {hint}]"),
    "destination.throttle_ended": EventSpec(
        "info", "[{destination} ]accepts the full request rate again[ after {duration_s}]"
    ),
    "exec.failed": EventSpec("warning", "the command of after.exec failed[: {error}]"),
    "uploads.paused": EventSpec("warning", "uploads are paused by hand[ since {since}][: {reason}]"),
    "uploads.resumed": EventSpec("info", "uploads go on after a pause by hand[ of {duration_s}]"),
    "workers.limited": EventSpec("warning", "{workers} of {wanted} workers start[: {reason}]"),
    "worker.replaced": EventSpec(
        "error", "a worker died and was replaced[: {worker}][: {error}]", "476d79b67d5e4d81a6d4366677525d84"
    ),
    "thread.died": EventSpec(
        "error", "an unexpected error ended {thread}[: {error}]", "3c0e7b1f3a5d4a0f9d0f6a4a1b8c2e57"
    ),
    "ledger.failed": EventSpec(
        "error", "the ledger cannot be used[: {path}][: {error}][; {hint}]", "dd30828904304b429015c89f6b0f19b5"
    ),
    "ledger.recovered": EventSpec(
        "info", "the ledger can be written again[ after {duration_s}]", "43ca0aed99154297a170a985bd0e9de0"
    ),
    "ledger.rollback_failed": EventSpec("debug", "the ledger had nothing left to roll back[: {error}]"),
    "library.warning": EventSpec("warning", "[{logger}: ]{message}"),
    "log.dropped": EventSpec("warning", "{lines} log lines are lost: the reader was too slow"),
}

# Fields that hold sentences: in quotes they would read like names.
_PROSE = frozenset(("error", "hint", "message", "outcome", "reason"))
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_PLACE = re.compile(r"s3://\{bucket\}/(?:\{(key|prefix)\})?|\{(\w+)\}")
_FIELD = re.compile(r"\{(\w+)\}")


def message(event: str, fields: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    """The sentence for people, always one printable line, and the fields it has used up.

    Values are put in once, at the end: a file named "{key}" is not a template.
    """
    if event not in EVENTS:
        return "", frozenset()

    def keep(part: re.Match[str]) -> str:
        there = all(fields.get(name) not in (None, "", [], ()) for name in _FIELD.findall(part[1]))
        return part[1] if there else ""

    template = EVENTS[event].message
    while (shorter := _OPTIONAL.sub(keep, template)) != template:  # from the innermost brackets outwards
        template = shorter

    def fill(place: re.Match[str]) -> str:
        if place[0].startswith("s3://"):  # quoted as a whole, so that it can be pasted
            return shown(f"s3://{fields.get('bucket', '?')}/{fields.get(place[1] or '', '')}")
        return readable(place[2], fields.get(place[2], "?"))

    sentence = _PLACE.sub(fill, template)
    return sentence, frozenset(_FIELD.findall(template))


def readable(name: str, value: Any) -> str:
    """A field's value as people write it, with the unit that its name promises."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        if name.endswith("bytes"):
            return size(value)
        return duration(value) if name.endswith("_s") and not name.endswith("_per_s") else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(shown(str(item)) for item in value)
    text = value if isinstance(value, str) else str(value)
    return printable(text) if name in _PROSE else shown(text)
