import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types import Model as OpenAIModel
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from channels.units import Msat
from provider import api
from provider.pricing import Price

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def chat(**fields: Any) -> api.ChatRequest:
    return api.parse_chat(json.dumps({**ASK, **fields}).encode())


def refused(body: bytes, parse: Any = api.parse_chat) -> api.ApiError:
    with pytest.raises(api.ApiError) as caught:
        parse(body)
    return caught.value


# Requests


def test_a_plain_request() -> None:
    request = chat()
    assert (request.model, request.wanted_tokens, request.stops) == ("m", None, ())
    assert (request.messages[0].role, request.messages[0].text) == ("user", "Hi")
    assert not request.stream
    assert not request.include_usage


def test_every_field_we_know() -> None:
    request = chat(
        max_tokens=5,
        max_completion_tokens=7,
        temperature=0,
        seed=-3,
        stop=["a", "b"],
        n=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert request.wanted_tokens == 7
    assert (request.temperature, request.seed, request.stops) == (0, -3, ("a", "b"))
    assert request.stream
    assert request.include_usage


def test_null_is_not_given_and_unknown_fields_are_ignored() -> None:
    request = chat(max_tokens=None, stop=None, temperature=None, stream=None, user="x", tools=[])
    assert request.wanted_tokens is None
    assert request.stops == ()


def test_content_parts_are_joined_and_null_content_is_empty() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(
        messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    )
    assert [m.text for m in request.messages] == ["ab", ""]


def test_a_completion_request() -> None:
    assert api.parse_completion(b'{"model":"m","prompt":"x","stop":"q"}').text == "x"
    assert api.parse_completion(b'{"model":"m","prompt":["x"]}').text == "x"


@pytest.mark.parametrize("prompt", ["[]", '["a","b"]', "[1,2]", "[[1,2]]"])
def test_only_one_text_is_completed(prompt: str) -> None:
    error = refused(f'{{"model":"m","prompt":{prompt}}}'.encode(), api.parse_completion)
    assert error.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [ASK["messages"][0]] * 1025}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"messages": "Hi"}, "messages"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"model": 1}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"seed": 1 << 63}, "seed"),
        ({"n": 2}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_is_out_of_bounds_is_named(fields: dict[str, Any], param: str | None) -> None:
    error = refused(json.dumps({**ASK, **fields}).encode())
    assert (error.status, error.reason) == (400, "invalid-request")
    assert error.param == (param or "messages[0].content[0]")
    assert str(error).endswith(".")


@pytest.mark.parametrize(
    ("body", "reason", "status"),
    [
        (b"", "invalid-json", 400),
        (b'{"model":', "invalid-json", 400),
        (b'{"model":"\xff"}', "invalid-json", 400),
        (b'{"model":"m","x":' + b"[" * 500_000, "invalid-json", 400),
        (b'{"model":"\\ud800","messages":[{"role":"user","content":""}]}', "invalid-json", 400),
        (b"[]", "invalid-request", 400),
        (b"{}", "invalid-request", 400),
        (b" " * (api.MAX_BODY + 1), "body-too-large", 413),
    ],
)
def test_bodies_that_are_no_request(body: bytes, reason: str, status: int) -> None:
    error = refused(body)
    assert (error.reason, error.status) == (reason, status)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail_in_another_way(body: bytes) -> None:
    refused(body)
    refused(body, api.parse_completion)


@given(
    st.text(max_size=20).filter(lambda text: text.isascii() or text.isprintable()),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_what_is_within_bounds_is_read_back(content: str, stop: list[str]) -> None:
    request = chat(messages=[{"role": "user", "content": content}], stop=stop)
    assert request.messages[0].text == content
    assert request.stops == tuple(stop)


def test_the_error_body_is_what_openai_clients_expect() -> None:
    error = api.unknown_model("nope")
    assert error.status == 404
    assert json.loads(error.body()) == {
        "error": {
            "message": "There is no model 'nope' here; ask /v1/models for those there are.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


# Answers, judged by the types of the openai package


def strictly(kind: Any, data: bytes) -> Any:
    """Read as the client's own type; extra or ill-typed fields fail."""
    read = kind.model_validate_json(data, strict=True)
    assert not read.model_extra
    return read


def test_a_chat_stream() -> None:
    answer = api.ChatAnswer("chatcmpl-1", 7, "m", include_usage=True)
    data = [
        *answer.opening(),
        answer.text("é"),
        answer.finish("length"),
        answer.usage(api.Usage.of(3, 2)),
    ]
    first, middle, last, usage = (strictly(ChatCompletionChunk, line) for line in data)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert (middle.choices[0].delta.role, middle.choices[0].delta.content) == (None, "é")
    assert middle.choices[0].finish_reason is None
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("length", None)
    assert usage.choices == []
    assert usage.usage.total_tokens == 5
    assert {chunk.id for chunk in (first, middle, last, usage)} == {"chatcmpl-1"}
    assert all(json.loads(line)["usage"] is None for line in data[:-1])


def test_usage_is_absent_where_it_was_not_asked_for() -> None:
    assert "usage" not in json.loads(api.ChatAnswer("i", 1, "m").text("x"))
    assert "usage" not in json.loads(api.TextAnswer("i", 1, "m").text("x"))


def test_a_whole_chat_answer() -> None:
    data = api.ChatAnswer("i", 1, "m").whole("text", "stop", api.Usage.of(1, 2))
    read = strictly(ChatCompletion, data)
    assert read.choices[0].message.content == "text"
    assert read.choices[0].finish_reason == "stop"
    assert read.usage.completion_tokens == 2


def test_a_completion_stream_and_a_whole_one() -> None:
    answer = api.TextAnswer("i", 1, "m", include_usage=True)
    assert answer.opening() == ()
    # The client's type leaves finish_reason no null, though OpenAI streams it; not strict here.
    piece = Completion.construct(**json.loads(answer.text("x")))
    assert piece.choices[0].text == "x"
    assert strictly(Completion, answer.finish("stop")).choices[0].finish_reason == "stop"
    assert strictly(Completion, answer.usage(api.Usage.of(1, 2))).usage.prompt_tokens == 1
    whole = strictly(Completion, answer.whole("xy", "length", api.Usage.of(1, 2)))
    assert whole.choices[0].text == "xy"


def test_chunks_can_be_read_with_our_own_types() -> None:
    answer = api.ChatAnswer("i", 1, "m")
    chunk = msgspec.json.decode(answer.text("x"), type=api.ChatChunk)
    assert chunk.choices[0].delta["content"] == "x"
    assert msgspec.json.encode(chunk) == answer.text("x")


def test_the_list_of_models_carries_prices() -> None:
    entry = api.Model.of("m", Price(Msat(1), Msat(20)), context_length=128, created=5)
    listed = json.loads(api.models([entry]))
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "m",
        "object": "model",
        "created": 5,
        "owned_by": "oda",
        "context_length": 128,
        "input_msat_per_token": 1,
        "output_msat_per_token": 20,
    }
    assert OpenAIModel.model_validate(listed["data"][0]).id == "m"


def test_events() -> None:
    assert api.event(api.DONE) == b"data: [DONE]\n\n"
    assert api.event(b"{}", "3") == b"id: 3\ndata: {}\n\n"
