"""What reaches a program of what a provider streams: nothing but the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import RemoteProtocolError
from channels.http.sse import EventParser
from client.gateway.relay import Streamed, Whole
from client.question import CHAT, TEXT
from provider.api import ChatAnswer, TextAnswer, Usage

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.sampled_from(["payment-need-topup", "payment-receipt", "session-timeout", "ping"])


def chunk(text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {"id": "a", "object": "chat.completion.chunk", "choices": [choice]} | more


# A provider's stream, with whatever may stand between the answer's events.
MESSAGES = st.builds(
    lambda text, id_: (json.dumps(chunk(text)), f"id: {id_}\n"), TEXTS, st.integers(0, 9)
)
NAMED = st.builds(
    lambda name, text: (None, f"event: {name}\ndata: {json.dumps({'challenge': text})}\n"),
    NAMES,
    TEXTS,
)
COMMENTS = st.just((None, ": waiting\nretry: 10\n"))
STREAMS = st.lists(MESSAGES | NAMED | COMMENTS, max_size=12)


def wire(events: Sequence[tuple[str | None, str]], newline: str) -> bytes:
    said = "".join(
        (head if data is None else f"{head}data: {data}\n") + "\n" for data, head in events
    )
    return said.replace("\n", newline).encode()


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The same bytes, cut anywhere: between the bytes of a character, too."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_only_the_answer_reaches_a_program_however_the_stream_was_cut(
    events: list[tuple[str | None, str]], cuts: list[int], newline: str
) -> None:
    parser, streamed = EventParser(), Streamed(include_usage=False)
    out = b""
    for piece in pieces(wire(events, newline), cuts):
        for each in parser.feed(piece):
            if each.name == "message":
                is_silent = not json.loads(each.data)["choices"][0]["delta"]["content"]
                out += streamed.take(each.data, is_silent=is_silent)
    out += streamed.end()
    assert out.endswith(b"data: [DONE]\n\n")
    assert all(line.startswith(b"data: ") for line in out.splitlines() if line)
    read = out.decode().split("\n\n")
    assert [json.loads(each.removeprefix("data: ")) for each in read[:-2]] == [
        json.loads(data) for data, _ in events if data
    ]


@given(st.lists(TEXTS, min_size=1))
def test_a_stream_and_a_whole_answer_say_the_same(texts: list[str]) -> None:
    builder = ChatAnswer("chatcmpl-1", 1, "m", include_usage=True)
    usage = Usage.of(3, len(texts))
    parts = [*builder.opening(), *map(builder.text, texts), builder.finish("length")]
    whole = Whole(CHAT)
    for part in [*parts, builder.usage(usage)]:
        whole.take(part.decode())
    expected = json.loads(builder.whole("".join(texts), "length", usage))
    found = json.loads(whole.document())
    assert expected["choices"][0]["message"].pop("refusal") is None
    assert found == expected


def test_plain_completions() -> None:
    builder = TextAnswer("cmpl-1", 1, "m", include_usage=True)
    whole = Whole(TEXT)
    for part in (builder.text("a"), builder.text("b"), builder.finish("stop")):
        whole.take(part.decode())
    whole.take(builder.usage(Usage.of(1, 2)).decode())
    assert json.loads(whole.document()) == json.loads(builder.whole("ab", "stop", Usage.of(1, 2)))


def test_calls_of_tools_come_in_pieces() -> None:
    def part(index: int, **call: Any) -> str:
        delta = {"tool_calls": [{"index": index, **call}]}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return json.dumps(chunk("", choices=[choice]))

    whole = Whole(CHAT)
    whole.take(json.dumps(chunk("", choices=[{"index": 0, "delta": {"role": "assistant"}}])))
    whole.take(part(0, id="c0", type="function", function={"name": "add", "arguments": '{"a"'}))
    whole.take(part(0, function={"arguments": ": 1}"}))
    whole.take(part(1, id="c1", type="function", function={"name": "now", "arguments": "{}"}))
    ended = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    whole.take(json.dumps(chunk("", choices=[ended])))
    [choice] = json.loads(whole.document())["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ]


def test_what_is_not_known_here_is_passed_on() -> None:
    data = json.dumps(chunk("a", system_fingerprint="fp", service_tier="default", usage=None))
    streamed, whole = Streamed(include_usage=True), Whole(CHAT)
    whole.take(data)
    assert json.loads(whole.document())["system_fingerprint"] == "fp"
    sent = streamed.take(data, is_silent=False).decode()
    assert json.loads(sent.removeprefix("data: ")) == json.loads(data)
    # A line break in the provider's JSON must not end our event.
    broken = data.replace(", ", ",\n")
    assert streamed.take(broken, is_silent=False).decode() == sent


def test_an_answer_can_begin_anew_until_it_says_something() -> None:
    streamed = Streamed(include_usage=False)
    assert streamed.take(json.dumps(chunk("", id="first")), is_silent=True) == b""
    assert not streamed.has_begun
    streamed.restart()
    assert streamed.take(json.dumps(chunk("", id="second")), is_silent=True) == b""
    sent = streamed.take(json.dumps(chunk("a", id="second")), is_silent=False)
    assert sent.count(b"data: ") == 2 and b"first" not in sent
    assert streamed.has_begun
    assert streamed.take(json.dumps(chunk("", id="second")), is_silent=True) != b""


@pytest.mark.parametrize("data", ["", "[]", "1", '"a"', "{", '{"choices": ', "[" * 100_000])
def test_what_is_no_chunk(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Whole(CHAT).take(data)
    with pytest.raises(RemoteProtocolError):
        Streamed(include_usage=True).take(data, is_silent=True)


@pytest.mark.parametrize("index", [None, "0", 1.5, True])
def test_choices_without_a_place(index: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        Whole(CHAT).take(json.dumps({"choices": [{"index": index, "delta": {}}]}))
