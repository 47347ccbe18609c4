"""Whatever happens, in whatever order: names, ledger and settle against models too simple to be wrong."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3spool.discovery.deduplicate import RACY_S, Verdict, verdict
from s3spool.errors import UploadError
from s3spool.folder.filters import FileFilter
from s3spool.ledger.protocol import Known
from s3spool.ledger.reader import Reader
from s3spool.ledger.rows import Identity, Multipart, Part, Receipt, Retry, State
from s3spool.ledger.store import Ledger
from s3spool.queue.settle import Settle, SettleReason
from s3spool.s3.keys import MAX_KEY_BYTES, decoded, encoded, key_of, url_quoted
from support.rows import SOME, a_multipart, a_part, a_receipt, a_retry

WAIT_S = 30.0

# --- keys: from any name a directory can hold, and back

BYTE_NAMES = (
    st.one_of(
        st.binary(min_size=1, max_size=255),
        st.text("%2Ee.\n\x7f\u0085\u2028\u202e\u00e9e\u0301 +?#&\\", min_size=1, max_size=60).map(str.encode),
        st.text(min_size=1, max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"|")[:255])
    .filter(lambda name: name not in {b".", b".."})
)
PATHS = st.lists(BYTE_NAMES, min_size=1, max_size=16).map(b"/".join).map(os.fsdecode)
PREFIXES = st.sampled_from(["", "in/", "a/b-", "%/", "100%25/", "\u00fc/"])


@given(PATHS, PREFIXES)
@example("x" * 1024, "")
@example("x" * 1025, "")
@example("\n" * 342, "")
def test_a_key_tells_its_path_or_is_refused(path: str, prefix: str) -> None:
    """Up to 1,024 bytes of clean UTF-8 from which the path is had back; else refused, and for its length alone."""
    if len((prefix + encoded(path)).encode()) > MAX_KEY_BYTES:
        with pytest.raises(UploadError, match="S3 allows 1024") as refusal:
            key_of(path, prefix)
        assert (refusal.value.code, refusal.value.permanent) == ("KeyTooLongError", True)
        return

    key = key_of(path, prefix)

    assert len(key.encode()) <= MAX_KEY_BYTES
    assert key.startswith(prefix)
    assert decoded(key.removeprefix(prefix)) == path
    assert unquote(url_quoted(key)) == key


@given(PATHS, st.data())
def test_near_names_have_keys_of_their_own(path: str, data: st.DataObject) -> None:
    """Names made from one another by encoding, decoding, cutting, folding: no two of them share a key."""
    raw = os.fsencode(path)
    place = data.draw(st.integers(0, len(raw) - 1))
    escape = b"%%%02X" % raw[place]
    near = {
        raw,
        encoded(path).encode(),
        encoded(encoded(path)).encode(),
        os.fsencode(decoded(path)),
        raw[:place] + escape + raw[place + 1 :],
        raw[:place] + escape.lower() + raw[place + 1 :],
        raw[:place] + raw[place + 1 :],
        raw.swapcase(),
        raw.replace(b"%", b"%25"),
    }
    paths = {os.fsdecode(name) for name in near if name}

    assert len({encoded(name) for name in paths}) == len(paths)


# --- names: globs against fnmatch, in time that nobody can stretch

GLOBS = st.text("ab-*?[!]", min_size=1, max_size=10)


@given(GLOBS, st.text("ab-", max_size=14))
@example("*a*b*", "aab")
@example("*a?b*", "aaxb")
@example("a*[!b]*b", "aab")
def test_globs_of_one_component_mean_what_the_shell_means(glob: str, name: str) -> None:
    """Without `**`, which fnmatch has not, and without classes that the two close differently."""
    assume("**" not in glob)
    assume(all(re.fullmatch(r"\[!?[ab-]+\]|[^][]+", token) for token in re.findall(r"\[[^]]*\]|[^][]+|.", glob)))
    assume(not re.search(r"\[[^]]*[-!][^]]*-[^]]*\]|\[!?\]", glob))
    assume(name)

    assert FileFilter([glob], []).accepts_file(name) == fnmatch.fnmatchcase(name, glob)


@given(st.lists(st.sampled_from(["*", "*a", "*-", "?", "-", "a"]), min_size=1, max_size=12).map("".join))
@example("*-*-*-*-*")
@settings(max_examples=40)
def test_no_name_makes_a_glob_slow(glob: str) -> None:
    """The worst names for it, in a path as long as there can be: where they are tried in vain it takes minutes."""
    assume("**" not in glob)
    names = FileFilter([f"{glob}!", f"x/{glob}!"], [f"{glob}!.bak"])
    paths = ["/".join([sign * 250] * 16) for sign in ("-", "a", "-a")]

    for path in paths:
        assert not names.accepts_file(path)


# --- the ledger: three dicts

LEDGER_PATHS = st.sampled_from(["a", "b/c", os.fsdecode(b"\xff/\xe9"), "new\nline", "\u202e"])
TIMES = st.sampled_from([0.0, 10.0, 20.0, 30.0])
IDENTITIES = st.builds(
    Identity, st.just(1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62), st.integers(-9, 9), st.integers(0, 9)
)


class LedgerAgainstModel(RuleBasedStateMachine):
    """A real file with its real thread, closed and opened in between, is a dict of rows for each table."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="s3spool-ledger-"))
        self.receipts: dict[str, Receipt] = {}
        self.retries: dict[str, Retry] = {}
        self.claimed: set[str] = set()
        self.multiparts: dict[str, Multipart] = {}
        self.parts: dict[tuple[str, int], Part] = {}
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.directory / "ledger.sqlite3", destination="d")
        self.ledger.start()
        self.reader = Reader(self.ledger.path)

    def teardown(self) -> None:
        self.reader.close()
        assert self.ledger.close(WAIT_S)
        shutil.rmtree(self.directory)

    @rule(path=LEDGER_PATHS, identity=IDENTITIES, after=st.sampled_from(["keep", "delete"]))
    def uploaded(self, path: str, identity: Identity, after: str) -> None:
        row = a_receipt(path, identity=identity, after=after, destination=self.ledger.destination)
        self.ledger.record_receipt(row)
        self.receipts[path] = row
        self.retries.pop(path, None)
        self.claimed.discard(path)

    @rule(
        path=LEDGER_PATHS, identity=IDENTITIES, state=st.sampled_from(State), due_at=TIMES, attempts=st.integers(1, 9)
    )
    def failed(self, path: str, identity: Identity, state: State, due_at: float, attempts: int) -> None:
        row = a_retry(path, identity=identity, state=state, next_attempt=due_at, attempts=attempts)
        self.ledger.record_retry(row)
        self.retries[path] = row
        self.claimed.discard(path)

    @rule(paths=st.sets(LEDGER_PATHS), now=TIMES)
    def claim(self, paths: set[str], now: float) -> None:
        self.ledger.claim(sorted(paths), now)
        self.claimed |= {path for path in paths if path in self.retries and self.retries[path].next_attempt <= now}

    @rule(paths=st.none() | st.sets(LEDGER_PATHS))
    def release(self, paths: set[str] | None) -> None:
        self.ledger.release(None if paths is None else sorted(paths))
        for path in set(self.retries) - self.claimed if paths is None else paths & set(self.retries):
            self.retries[path] = self.retries[path]._replace(state=State.WAITING, next_attempt=0.0)
            self.claimed.discard(path)

    @rule(path=LEDGER_PATHS)
    def forget(self, path: str) -> None:
        self.ledger.forget(path)
        self.receipts.pop(path, None)
        self.retries.pop(path, None)
        self.claimed.discard(path)

    @rule(path=LEDGER_PATHS)
    def forget_retry(self, path: str) -> None:
        self.ledger.forget_retry(path)
        self.retries.pop(path, None)
        self.claimed.discard(path)

    @rule(paths=st.sets(LEDGER_PATHS))
    def drop_receipts(self, paths: set[str]) -> None:
        self.ledger.drop_receipts(sorted(paths))
        for path in paths:
            self.receipts.pop(path, None)

    @rule(path=LEDGER_PATHS, number=st.integers(1, 3))
    def part_of_large_file(self, path: str, number: int) -> None:
        upload = a_multipart(path)
        part = a_part(upload.upload_id, number)
        if path not in self.multiparts:
            self.ledger.record_multipart(upload)
            self.multiparts[path] = upload
        self.ledger.record_part(part)
        self.parts[upload.upload_id, number] = part

    @rule(path=LEDGER_PATHS)
    def large_file_is_through(self, path: str) -> None:
        self.ledger.forget_multipart(a_multipart(path).upload_id)
        if upload := self.multiparts.pop(path, None):
            self.parts = {key: part for key, part in self.parts.items() if key[0] != upload.upload_id}

    @rule()
    def restart(self) -> None:
        self.reader.close()
        assert self.ledger.close(WAIT_S)
        self.open()
        self.claimed.clear()  # whoever had them is dead

    @invariant()
    def holds_the_same(self) -> None:
        assert self.ledger.flush(WAIT_S)
        assert {row.path: row for row in self.reader.receipts()} == self.receipts
        assert {row.path: row for row in self.reader.retries()} == self.retries
        assert {row.path: row for row in self.reader.multiparts()} == self.multiparts
        for upload in self.multiparts.values():
            parts = {(part.upload_id, part.number): part for part in self.reader.parts(upload.upload_id)}
            assert parts == {key: part for key, part in self.parts.items() if key[0] == upload.upload_id}
        paths = sorted({*self.receipts, *self.retries})
        known = {path: Known(self.receipts.get(path), self.retries.get(path)) for path in paths}
        assert self.reader.known([*paths, "unknown"]) == known
        free = [row for path, row in self.retries.items() if row.state is State.WAITING and path not in self.claimed]
        for now in (0.0, 15.0, 30.0):
            due = self.reader.due(now, 100)
            assert {row.path for row in due} == {row.path for row in free if row.next_attempt <= now}
            assert [row.next_attempt for row in due] == sorted(row.next_attempt for row in due)
        assert self.reader.next_due() == min((row.next_attempt for row in free), default=None)


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=25, stateful_step_count=20)


# --- what the sift decides: a file is skipped only where its content is in the bucket, or waits its turn


@given(
    receipt=st.none()
    | st.builds(
        lambda identity, destination, after, read_at: a_receipt(
            identity=identity, destination=destination, after=after, read_at=read_at
        ),
        IDENTITIES | st.just(SOME),
        st.sampled_from([1, 2]),
        st.sampled_from(["keep", "delete", "archive"]),
        st.sampled_from([SOME.mtime_ns / 1e9 + RACY_S / 2, SOME.mtime_ns / 1e9 + 5]),
    ),
    retry=st.none() | (IDENTITIES | st.just(SOME)).map(lambda identity: a_retry(identity=identity)),
    identity=IDENTITIES | st.just(SOME),
    hinted=st.booleans(),
)
def test_only_what_is_sent_or_waiting_is_not_sent(
    receipt: Receipt | None, retry: Retry | None, identity: Identity, hinted: bool
) -> None:
    """Whatever else the ledger says, a file that is neither goes to a worker."""
    choice = verdict(Known(receipt, retry), identity, destination=1, hinted=hinted)

    waits = retry is not None and retry.identity == identity
    sent = retry is None and receipt is not None and receipt.destination == 1 and receipt.identity == identity
    if choice is Verdict.SKIP:
        assert waits or (sent and receipt is not None and receipt.after == "keep")
    if choice is Verdict.FINISH:
        assert sent
        assert receipt is not None
        assert receipt.after != "keep"
    if choice is Verdict.CHECK:
        assert receipt is not None
        assert receipt.identity[1:4] == identity[1:4]
        assert not waits
    if not waits and not (receipt is not None and receipt.identity[1:4] == identity[1:4]):
        assert choice is Verdict.SEND


# --- settle: nothing is handed out too early, nothing is kept, nothing gets lost


@given(
    settle_s=st.sampled_from([0.0, 0.05, 1.0]),
    size=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.sampled_from("abcdef"), st.sampled_from(SettleReason), st.sampled_from([0.0, 0.03, 0.5, 2.0, 6.0])
        ),
        max_size=40,
    ),
)
def test_every_accepted_path_comes_out_once_and_in_time(
    settle_s: float, size: int, steps: list[tuple[str, SettleReason, float]]
) -> None:
    """Whatever the events: a path that was taken in comes out, not before it was left alone for `settle_s`."""
    now = 0.0
    settle = Settle(settle_s, size, clock=lambda: now)
    inside: dict[str, float] = {}  # path -> when it was last changed or first seen

    def take() -> None:
        for path, _, _ in settle.due(now)[0]:
            assert now - inside.pop(path) >= settle_s

    for path, quiet, pause_s in steps:
        if settle.add(path, quiet):
            if quiet is SettleReason.CHANGED or path not in inside:
                inside[path] = now
        else:
            assert path not in inside
            assert len(inside) == size or quiet is SettleReason.BUSY  # these leave half of the room to others
        now += pause_s
        take()
    now += 2 * (settle_s + 5.0)  # BUSY_S is the longest there is
    take()

    assert not inside
    assert len(settle) == 0
