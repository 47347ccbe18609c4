"""From names to keys: nothing collides, nothing odd reaches S3, and the way back is known."""

from __future__ import annotations

import os
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from s3spool.errors import Scope, UploadError
from s3spool.s3.keys import MAX_KEY_BYTES, Prefix, decoded, encoded, key_of, too_deep, url_quoted

# What a directory may hold: any bytes but NUL and the slash, except the two names that are taken.
NAMES = (
    st.one_of(
        st.binary(min_size=1, max_size=20),
        st.text("ab.%2F5EC\\\n\u0085\u2028ü", min_size=1, max_size=12).map(str.encode),
        st.sampled_from([b"%", b"%2E", b"%2e", b"100%", b"%25", b"..", b"...", b"%%", b"\xff", b"a%0A"]),
    )
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"|"))
    .filter(lambda name: name not in {b".", b".."})
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join).map(os.fsdecode)
ANY_SEGMENTS = st.lists(st.sampled_from(["", ".", "..", "a", "%", "%2E", "...", ".a", "a.", "\n"]), min_size=1)


@given(PATHS)
@example("%2e")
@example("100%.txt")
@example("%41\n")
def test_every_name_comes_back_from_its_key(path: str) -> None:
    """Whatever bytes a name is made of, its key tells them."""
    key = encoded(path)

    assert decoded(key) == path


@given(ANY_SEGMENTS.map("/".join))
def test_dot_segments_come_back_too(path: str) -> None:
    """Even what no directory can hold is mapped reversibly."""
    key = encoded(path)

    assert decoded(key) == path
    assert not {".", ".."} & set(key.split("/"))


@given(PATHS, PATHS)
@example("%2E", ".")
@example("%0A", "\n")
@example("%5C", "\\")
@example("a\\b", "a/b")
@example("%25", "%")
@example("%250A", "%0A")
def test_two_names_never_share_a_key(one: str, other: str) -> None:
    """Two files that share a key would overwrite each other, and both count as sent."""
    assume(one != other)

    assert encoded(one) != encoded(other)


@given(PATHS)
def test_a_key_is_clean_text(path: str) -> None:
    """Keys are UTF-8 without control characters and line separators: XML and log lines survive them."""
    key = encoded(path)

    key.encode()
    assert "\\" not in key
    assert not [c for c in key if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.txt", "a.txt"),
        ("sub/with space+and&=?.txt", "sub/with space+and&=?.txt"),
        ("über/日本.txt", "über/日本.txt"),
        ("100%.txt", "100%.txt"),
        ("%2e%zz", "%2e%zz"),
        ("%2E", "%252E"),
        ("two\nlines", "two%0Alines"),
        ("50%\nodd", "50%25%0Aodd"),
        ("tab\t.%41", "tab%09.%2541"),
        (os.fsdecode(b"latin-\xfc"), "latin-%FC"),
        ("next\u0085line", "next%C2%85line"),
        ("sep\u2028", "sep%E2%80%A8"),
        ("../up", "%2E%2E/up"),
        ("a/./b", "a/%2E/b"),
        ("a/..", "a/%2E%2E"),
        ("100%/..", "100%25/%2E%2E"),
        (".hidden/..a", ".hidden/..a"),
        ("...", "..."),
        ("100%/.a", "100%/.a"),
    ],
)
def test_names_and_their_keys(path: str, key: str) -> None:
    """The documented mapping, by example: odd names are encoded, all others stay as they are."""
    assert key_of(path, "") == key
    assert key_of(path, "in/") == f"in/{key}"


@pytest.mark.parametrize("name", ["x", "ü", "日", "\n", "\udcff"])
def test_a_key_may_have_1024_bytes(name: str) -> None:
    """The limit counts bytes of the whole key, prefix and encoding included."""
    size = len(encoded(name).encode())
    fitting = name * ((MAX_KEY_BYTES - 4) // size)
    padding = "p" * (MAX_KEY_BYTES - 1 - size * len(fitting))

    assert len(key_of(fitting, f"{padding}/").encode()) == MAX_KEY_BYTES
    with pytest.raises(UploadError) as raised:
        key_of(f"{fitting}x", f"{padding}/")

    assert (raised.value.code, raised.value.permanent, raised.value.scope) == ("KeyTooLongError", True, Scope.FILE)
    assert raised.value.operation == "map"
    assert "1025 bytes" in str(raised.value)


@pytest.mark.parametrize(("prefix_bytes", "deep"), [(963, False), (964, True), (5000, True)])
def test_a_directory_is_too_deep_where_no_name_fits(prefix_bytes: int, deep: bool) -> None:
    """With its slash, 60 bytes leave one for a name below the shorter prefix."""
    assert too_deep("d" * 59, ["p" * prefix_bytes]) is deep


def test_prefix_knows_host_and_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """{hostname} is filled in once, strftime fields come from each file's own mtime, in UTC."""
    monkeypatch.setattr("socket.gethostname", lambda: "web-7")

    prefix = Prefix("{hostname}/%Y/%m/%d/")

    assert prefix.of(0.0) == "web-7/1970/01/01/"
    assert prefix.of(1_700_000_000.9) == "web-7/2023/11/14/"
    assert Prefix("logs/").of(0.0) == "logs/"


@given(PATHS, st.sampled_from(["", "in/", "a//", "/"]))
@example("../a", "")
def test_a_url_leads_to_its_key_alone(path: str, prefix: str) -> None:
    """In a URL every byte is quoted, and no segment is left that a client would resolve away."""
    key = key_of(path, prefix)

    quoted = url_quoted(key)

    assert quoted.isascii()
    assert unquote(quoted) == key
    assert not {".", ".."} & set(quoted.split("/"))
    assert not set(quoted) & set(' "<>\\^`{|}?#+&=')
