"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import RemoteProtocolError
from channels.http.sse import MAX_EVENT, EventParser, ServerEvent

STREAM = (
    "\ufeff: a comment\n\n"
    "id: 1\ndata: one\n\n"
    'event: payment-receipt\r\ndata: {"a":\r\ndata:  1}\r\n\r\n'
    "id\rdata\rdata: é\r\r"
    "retry: 5\nunknown\n\n"
    "data: never ended"
).encode()
EVENTS = [
    ServerEvent("message", "one", "1"),
    ServerEvent("payment-receipt", '{"a":\n 1}', "1"),
    ServerEvent("message", "\né", ""),
]


def test_the_rules_of_the_standard() -> None:
    assert EventParser().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_the_same_however_it_is_cut(cuts: list[int]) -> None:
    parser, found = EventParser(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in zip(places, places[1:], strict=False):  # noqa: RUF007  # pieces may be empty
        found += parser.feed(STREAM[start:end])
    assert found == EVENTS


@given(st.binary(max_size=200))
def test_nothing_breaks_it(data: bytes) -> None:
    EventParser().feed(data)


def test_an_event_without_an_end() -> None:
    for endless in (b"data: x\n" * (MAX_EVENT // 7 + 1), b"x" * (MAX_EVENT + 1)):
        with pytest.raises(RemoteProtocolError) as refused:
            EventParser().feed(endless)
        assert refused.value.reason == "event-too-large"
