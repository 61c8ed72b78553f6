from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import RemoteProtocolError
from torrent import bencode
from torrent.bencode import Value

VALUES: st.SearchStrategy[Value] = st.recursive(
    st.integers(-(1 << 62), 1 << 62) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)

# BEP 3 and BEP 52 "bencoding".
EXAMPLES: list[tuple[bytes, Value]] = [
    (b"4:spam", b"spam"),
    (b"i3e", 3),
    (b"i-3e", -3),
    (b"i0e", 0),
    (b"l4:spam4:eggse", [b"spam", b"eggs"]),
    (b"d3:cow3:moo4:spam4:eggse", {b"cow": b"moo", b"spam": b"eggs"}),
    (b"d4:spaml1:a1:bee", {b"spam": [b"a", b"b"]}),
]

ILLEGAL = [
    b"",
    b"i-0e",
    b"i03e",
    b"ie",
    b"i-e",
    b"i1",
    b"i1_0e",
    b"i" + b"9" * 40 + b"e",
    b"03:abc",
    b"4:abc",
    b"-1:a",
    b"1",
    b"l",
    b"l1:a",
    b"d",
    b"d1:ae",
    b"d1:b1:x1:a1:ye",
    b"d1:a1:x1:a1:ye",
    b"di1e1:ae",
    b"1:ab",
    b"99999999999999999999:a",
    b"l" * 100_000,
]


@pytest.mark.parametrize(("data", "value"), EXAMPLES)
def test_examples(data: bytes, value: Value) -> None:
    assert bencode.decode(data) == value
    assert bencode.encode(value) == data


@pytest.mark.parametrize("data", ILLEGAL, ids=lambda data: repr(data[:20]))
def test_illegal(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        bencode.decode(data)
    assert caught.value.reason == "bad-bencoding"


@given(VALUES)
def test_round_trip(value: Value) -> None:
    assert bencode.decode(bencode.encode(value)) == value


@given(st.binary(max_size=60))
def test_what_decodes_has_one_encoding(data: bytes) -> None:
    try:
        value = bencode.decode(data)
    except RemoteProtocolError:
        return
    assert bencode.encode(value) == data
