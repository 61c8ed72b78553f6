"""What engines send, as they send it, and as nobody should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import RemoteProtocolError
from channels.http.sse import EventParser, ServerEvent
from provider import upstream_answer
from provider.decoding import Token, merged_objects
from provider.upstream import most_prompt_tokens
from provider.upstream_answer import UpstreamAnswer

# Read off llama.cpp's server (commit 0c1e570), shortened to what matters.
LLAMA_CPP = b"""\
data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],\
"system_fingerprint":"b1-0c1e570","object":"chat.completion.chunk"}

data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"h"}}]}

data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"i"}}]}

data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}]}

data: {"choices":[],"usage":{"completion_tokens":2,"prompt_tokens":26,"total_tokens":28,\
"prompt_tokens_details":{"cached_tokens":25}},"timings":{"cache_n":25,"prompt_n":1}}

data: [DONE]

"""
# As vLLM documents continuous_usage_stats: a running usage in each chunk, one for all at the end.
VLLM = b"""\
data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,\
"finish_reason":null}],"usage":{"prompt_tokens":26,"total_tokens":26,"completion_tokens":0}}

data: {"choices":[{"index":0,"delta":{"content":"hello wor"},"logprobs":null,\
"finish_reason":null}],"usage":{"prompt_tokens":26,"total_tokens":28,"completion_tokens":2}}

data: {"choices":[{"index":0,"delta":{"content":"ld"},"logprobs":null,"finish_reason":"stop",\
"stop_reason":null}],"usage":{"prompt_tokens":26,"total_tokens":30,"completion_tokens":4}}

data: {"choices":[],"usage":{"prompt_tokens":26,"total_tokens":30,"completion_tokens":4}}

data: [DONE]

"""


def read(stream: bytes, max_tokens: int = 20) -> list[Token]:
    answer = UpstreamAnswer(max_tokens)
    tokens = [answer.take(event) for event in EventParser().feed(stream)]
    return [*(token for token in tokens if token is not None), answer.end()]


def test_llama_cpp() -> None:
    *said, last = read(LLAMA_CPP)
    assert [(token.text, token.count) for token in said] == [("h", 1), ("i", 1)]
    assert (last.finish_reason, last.total, last.count) == ("length", 2, 0)


def test_vllm() -> None:
    *said, last = read(VLLM)
    assert [(token.text, token.count) for token in said] == [("hello wor", 2), ("ld", 2)]
    assert (last.finish_reason, last.total) == ("stop", 4)


def event(**choice: Any) -> ServerEvent:
    return ServerEvent("message", json.dumps({"choices": [choice]}), "")


def test_a_reason_that_nobody_knows_is_a_stop() -> None:
    answer = UpstreamAnswer(5)
    answer.take(event(delta={}, finish_reason="eos_token"))
    assert answer.end().finish_reason == "stop"


def test_nothing_comes_after_the_reason() -> None:
    answer = UpstreamAnswer(5)
    answer.take(event(delta={}, finish_reason="stop"))
    assert answer.take(event(delta={"content": "more"})) is None


def test_an_answer_without_an_end() -> None:
    answer = UpstreamAnswer(5)
    answer.take(event(delta={"content": "a"}))
    with pytest.raises(RemoteProtocolError) as refused:
        answer.end()
    assert refused.value.reason == "upstream-broke-off"


def test_a_call_is_made_of_its_parts() -> None:
    parts: list[dict[str, object]] = [
        {"reasoning": "Wh"},
        {"reasoning": "y?", "tool_calls": [{"index": 0, "id": "a", "function": {"name": "f"}}]},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "1"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
    ]
    whole: dict[str, object] = {}
    for part in parts:
        whole = merged_objects(whole, part)
    assert whole == {
        "reasoning": "Why?",
        "tool_calls": [
            {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}},
            {"index": 1, "id": "b", "function": {"name": "g", "arguments": "1"}},
        ],
    }


TEXT = st.text(max_size=6)
PIECES = st.fixed_dictionaries(
    {},
    optional={
        "role": TEXT,
        "content": st.none() | TEXT,
        "reasoning": st.none() | TEXT,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(0, 2), "function": st.dictionaries(TEXT, TEXT)}
            )
        ),
    },
)
USAGES = st.none() | st.fixed_dictionaries(
    {"prompt_tokens": st.integers(-9, 10**12), "completion_tokens": st.integers(-9, 10**12)}
)


@given(
    chunks=st.lists(st.tuples(PIECES, USAGES), max_size=30),
    last=USAGES,
    max_tokens=st.integers(1, 20),
)
def test_whatever_is_said_the_count_is_bounded(
    chunks: list[tuple[dict[str, Any], dict[str, int] | None]],
    last: dict[str, int] | None,
    max_tokens: int,
) -> None:
    answer, tokens = UpstreamAnswer(max_tokens), []
    for delta, usage in chunks:
        document = {"choices": [{"delta": delta}], "usage": usage}
        token = answer.take(ServerEvent("message", json.dumps(document), ""))
        if token is not None:
            tokens.append(token)
    answer.take(ServerEvent("message", json.dumps({"choices": [], "usage": last}), ""))
    answer.take(ServerEvent("message", "[DONE]", ""))
    end = answer.end()
    delivered = sum(len(t.text.encode()) + len(json.dumps(t.delta or "").encode()) for t in tokens)
    counted = sum(token.count for token in tokens)
    assert all(token.count >= 0 and token.brings for token in tokens)
    assert counted <= min(max_tokens, delivered)
    if end.total is not None:
        assert 0 <= end.total <= min(max_tokens, delivered)
    if last is not None:
        assert end.total is not None
        assert end.total <= max(0, last["completion_tokens"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
NAMES = st.sampled_from(["choices", "delta", "usage", "error", "text", "finish_reason", "message"])


@given(
    st.lists(
        st.binary(max_size=40)
        | st.recursive(JSON, lambda inner: st.dictionaries(NAMES, inner | st.lists(inner))).map(
            lambda document: b"data: " + json.dumps(document).encode() + b"\n\n"
        ),
        max_size=5,
    )
)
def test_anything_else_is_refused_in_one_way(stream: list[bytes]) -> None:
    answer, parser = UpstreamAnswer(5), EventParser()
    try:
        for part in stream:
            for each in parser.feed(part):
                answer.take(each)
        answer.end()
    except RemoteProtocolError as error:
        assert error.reason.startswith("upstream-")


@given(st.binary(max_size=200))
def test_an_error_is_one_sentence(body: bytes) -> None:
    said = upstream_answer.error_message(body)
    assert said.endswith((".", "!", "?"))
    assert said.isprintable()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model."),
        (b'{"error": "no such model."}', "no such model."),
        (b'{"object": "error", "message": "too\\nlong"}', "too long."),
        (b'{"detail": "Not Found"}', "Not Found."),
        (b'{"error": {"message": 7}}', "it says nothing about it."),
        (b"<html>", "it says nothing about it."),
    ],
)
def test_errors_in_every_shape_that_is_in_use(body: bytes, said: str) -> None:
    assert upstream_answer.error_message(body) == said


def test_the_most_that_a_question_can_cost() -> None:
    message = {"role": "user", "content": "héllo"}
    assert most_prompt_tokens({"messages": [message]}) == 16 + 16 + 6
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    assert most_prompt_tokens({"messages": [{"role": "user", "content": parts}]}) == 32 + 3
    assert most_prompt_tokens({"messages": [message], "tools": [{"a": 1}]}) == 38 + 9
    assert most_prompt_tokens({"prompt": "abc"}) == 16 + 3
    assert most_prompt_tokens({"input": ["abc", "d"]}) == 2 * 16 + 4
