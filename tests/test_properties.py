"""Whatever the name, the receipt and the file: keys, globs and verdicts against models too simple to be wrong."""

from __future__ import annotations

import fnmatch
import os
import re
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from s3spool.discovery.deduplicate import RACY_S, Verdict, verdict
from s3spool.errors import UploadError
from s3spool.folder.filters import FileFilter
from s3spool.ledger.queries import Known
from s3spool.ledger.rows import Identity, Receipt, Retry
from s3spool.s3.keys import MAX_KEY_BYTES, decoded, encoded, key_of, url_quoted
from support.rows import SOME, a_receipt, a_retry

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


IDENTITIES = st.builds(
    Identity, st.just(1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62), st.integers(-9, 9), st.integers(0, 9)
)

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
