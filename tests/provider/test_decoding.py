import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.decoding import Decoding, Token


def sent(data: bytes, *stop: str, max_tokens: int | None = None) -> tuple[Token, ...]:
    """Feed bytes until the answer is finished."""
    decoding = Decoding(max_tokens or len(data), stop)
    tokens = []
    for byte in data:
        tokens.append(decoding.feed(byte))
        if decoding.finish_reason is not None:
            break
    return tuple(tokens)


def texts(tokens: tuple[Token, ...]) -> list[str]:
    return [token.text for token in tokens]


def test_plain_text_is_sent_as_it_comes() -> None:
    tokens = sent(b"abc")
    assert texts(tokens) == ["a", "b", "c"]
    assert [token.finish_reason for token in tokens] == [None, None, "length"]
    assert [token.id for token in tokens] == [97, 98, 99]


def test_a_character_is_sent_when_it_is_whole() -> None:
    assert texts(sent("é€😀".encode())) == ["", "é", "", "", "€", "", "", "", "😀"]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert texts(sent(b"a\xffb")) == ["a", "\ufffd", "b"]
    # Two bytes of "€", then something else: one replacement for the broken character.
    assert texts(sent(b"\xe2\x82b")) == ["", "", "\ufffdb"]


def test_a_character_cut_off_by_the_end_is_replaced_there() -> None:
    assert texts(sent(b"a\xe2\x82")) == ["a", "", "\ufffd"]


def test_a_stop_sequence_is_held_back_and_cut() -> None:
    tokens = sent(b"abSTOPcd", "STOP")
    assert texts(tokens) == ["a", "b", "", "", "", ""]
    assert tokens[-1].finish_reason == "stop"


def test_what_only_began_like_a_stop_sequence_is_sent_later() -> None:
    assert texts(sent(b"aSTOXb", "STOP")) == ["a", "", "", "", "STOX", "b"]
    # "aab" begins inside "aaab": the first "a" is let go of, the rest is still held.
    assert texts(sent(b"aaab", "aab")) == ["", "", "a", ""]


def test_what_is_held_at_the_end_is_sent() -> None:
    tokens = sent(b"abST", "STOP")
    assert texts(tokens) == ["a", "b", "", "ST"]
    assert tokens[-1].finish_reason == "length"


def test_a_stop_sequence_in_the_very_last_token_is_a_stop() -> None:
    tokens = sent(b"ab", "b")
    assert texts(tokens) == ["a", ""]
    assert tokens[-1].finish_reason == "stop"


def test_the_stop_sequence_that_begins_first_cuts() -> None:
    assert "".join(texts(sent(b"xbc", "c", "bc"))) == "x"
    assert "".join(texts(sent("x€y".encode(), "€"))) == "x"


def test_nothing_follows_the_end() -> None:
    decoding = Decoding(1)
    decoding.feed(97)
    with pytest.raises(ValueError, match="finished"):
        decoding.feed(97)


@pytest.mark.parametrize("bad", [-1, 256])
def test_only_bytes_are_tokens(bad: int) -> None:
    with pytest.raises(ValueError, match="range"):
        Decoding(5).feed(bad)


def test_senseless_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Decoding(0)
    with pytest.raises(ValueError, match="at least one"):
        Decoding(1, ("",))


few = st.text("ab€", max_size=30).map(str.encode) | st.binary(max_size=30)
stops = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3)


@given(few.filter(len), stops)
def test_the_pieces_are_the_text_up_to_the_first_stop(data: bytes, stop: list[str]) -> None:
    tokens = sent(data, *stop)
    whole = data[: len(tokens)].decode("utf-8", "replace")
    got = "".join(texts(tokens))
    assert not any(s in got for s in stop)
    if tokens[-1].finish_reason == "stop":
        assert any(whole.startswith(got + s) for s in stop)
    else:
        assert got == whole


@given(few.filter(len), stops, st.data())
def test_a_replay_goes_on_where_it_was(data: bytes, stop: list[str], draw: st.DataObject) -> None:
    tokens = sent(data, *stop)
    cut = draw.draw(st.integers(0, len(tokens)))
    again = Decoding(len(data), tuple(stop))
    ids = [token.id for token in tokens]
    assert again.replay(ids[:cut]) + again.replay(ids[cut:]) == tokens
