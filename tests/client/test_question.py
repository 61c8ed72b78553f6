"""A request as it is sent: untouched, and bounded by what the provider can count."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from client.question import CHAT, TEXT, Question
from provider.api import MAX_BODY, parse_chat, parse_completion
from sidechain.model.prompt import render_chat

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CONTENTS = TEXTS | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}))
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": CONTENTS}),
    min_size=1,
    max_size=5,
)


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "abc"}]} | more


@given(MESSAGES, st.dictionaries(st.sampled_from(["user", "top_p", "odd"]), TEXTS))
def test_nothing_is_changed_and_no_count_is_above_the_bound(
    messages: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    request = asked(messages=messages) | more
    question = Question.of(CHAT, request, None)
    assert msgspec.json.decode(question.body) == request
    read = parse_chat(question.body)
    assert question.texts == tuple(message.text for message in read.messages)
    # A byte is a token for the provider's own engine, and no tokenizer has smaller ones.
    assert len(render_chat(question.texts)) <= question.max_input


@given(TEXTS)
def test_a_plain_prompt(prompt: str) -> None:
    question = Question.of(TEXT, {"model": "m", "prompt": prompt}, None)
    assert question.texts == (parse_completion(question.body).text,) == (prompt,)
    assert len(prompt.encode()) <= question.max_input
    assert question.path == "/v1/completions"


def test_what_bounds_the_cost() -> None:
    question = Question.of(CHAT, asked(max_tokens=5, stop=["é", "abc"], seed=3), 10)
    assert (question.max_input, question.max_tokens, question.stop_bytes) == (10, 5, 3)
    assert Question.of(CHAT, asked(stop="é"), None).stop_bytes == 2
    both = asked(max_tokens=5, max_completion_tokens=7)
    assert Question.of(CHAT, both, None).max_tokens == 7
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    plain = Question.of(CHAT, asked(), None).max_input
    assert Question.of(CHAT, asked(tools=tools), None).max_input > plain + len(str(tools))
    for kind in ("json_object", "json_schema"):
        assert Question.of(CHAT, asked(response_format={"type": kind}), None).wants_json
    assert not Question.of(CHAT, asked(response_format={"type": "text"}), None).wants_json


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (CHAT, {"model": "m"}),
        (CHAT, {"model": "m", "prompt": "abc"}),
        (TEXT, asked()),
        (CHAT, asked(model=1)),
        (CHAT, asked(messages="abc")),
        (CHAT, asked(messages=["abc"])),
        (CHAT, asked(max_tokens="5")),
        (CHAT, asked(max_tokens=1.5)),
        (CHAT, asked(stop=[1])),
        (CHAT, asked(tools={})),
        (CHAT, asked(seed="x")),
        (CHAT, asked(response_format="json")),
    ],
    ids=str,
)
def test_what_nobody_could_bound(path: str, request_: dict[str, Any]) -> None:
    with pytest.raises(UserError) as refused:
        Question.of(path, request_, None)
    assert refused.value.reason == "bad-question"
    assert str(refused.value).count("\n") == 0


def test_one_that_is_too_large() -> None:
    with pytest.raises(UserError) as refused:
        Question.of(CHAT, asked(user="a" * MAX_BODY), None)
    assert refused.value.reason == "body-too-large"
