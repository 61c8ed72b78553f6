"""An OpenAI-compatible server behind the provider: what is charged, passed on and given up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from provider.places import Places
from provider.upstream import Upstream, UpstreamEngine
from tests.nodes import until
from tests.provider import upstream_server
from tests.provider.buyers import CHAT, Buyer, Sse, all_events, charged, chat, events, plain, texts
from tests.provider.fakes import MODEL, World
from tests.provider.upstream_server import (
    DONE,
    OPENING,
    PROMPT_TOKENS,
    FakeUpstream,
    chunk,
    letters,
    usage,
    usage_chunk,
)

NOWHERE = "http://127.0.0.1:1/v1"
INPUT = PROMPT_TOKENS * 50


@pytest.fixture
def fake() -> FakeUpstream:
    return FakeUpstream()


@asynccontextmanager
async def selling(path: Path, fake: FakeUpstream, **settings: Any) -> AsyncIterator[World]:
    async with upstream_server.upstream_of(fake) as upstream:
        world = World(path, **settings)
        world.serving = UpstreamEngine(upstream, MODEL, 4096)
        await world.start()
        yield world
        await world.stop()


@pytest.fixture
async def world(tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[World]:
    async with selling(tmp_path / "before", fake) as made:
        yield made


async def bought(world: World, **more: Any) -> tuple[list[Sse], Buyer]:
    """A session that asks once and pays for it as it goes."""
    buyer = Buyer(world)
    await buyer.open()
    return await buyer.read(await buyer.ask(**more)), buyer


def spent(world: World) -> int:
    return world.ledger.totals()["spent"]


def error_of(found: list[Sse]) -> Any:
    return found[-1].document["error"]


# What is charged ---------------------------------------------------------------------------------


async def test_a_stream_is_paid_as_it_comes(world: World, fake: FakeUpstream) -> None:
    found, buyer = await bought(world, max_tokens=200, stream_options={"include_usage": True})
    assert texts(found) == "".join(chr(ord("a") + i % 26) for i in range(200))
    ends = [e.document for e in found if not e.name and e.data != "[DONE]"][-2:]
    assert ends[0]["choices"][0]["finish_reason"] == "length"
    assert ends[1]["usage"] == usage(200)
    assert spent(world) == buyer.session.served == INPUT + 200 * 250
    assert buyer.topups >= 5
    assert buyer.session.max_exposure <= 16_000
    # A connection each: one that is kept may be gone when it is used again.
    assert len(set(fake.peers)) == len(fake.peers) == 2
    # What it was asked is what the user asked, but for what is the provider's business.
    (asked,) = fake.answered
    assert (asked["messages"], asked["seed"]) == (chat()["messages"], 1)
    assert asked["stream_options"]["include_usage"] is True


async def test_chunks_of_many_tokens_are_settled_at_the_end(
    world: World, fake: FakeUpstream
) -> None:
    fake.script = [OPENING, *[chunk(content="x" * 50)] * 4, chunk("stop"), usage_chunk(150), DONE]
    found, buyer = await bought(world, max_tokens=160)
    assert texts(found) == "x" * 200
    assert spent(world) == buyer.session.served == INPUT + 150 * 250
    # 146 tokens at once would be more than the user lets anybody have.
    assert buyer.session.max_exposure <= 16_000
    charged_at = [int(e.id.split(".")[3]) for e in found if e.id]
    assert max(b - a for a, b in itertools.pairwise(charged_at)) <= 16


async def test_running_usage_is_charged_at_once(world: World, fake: FakeUpstream) -> None:
    fake.script = [
        chunk(role="assistant", content="", usage=usage(0)),
        chunk(content="Hello, ", usage=usage(3)),
        chunk(content="world", usage=usage(5)),
        chunk("stop", usage=usage(6)),
        usage_chunk(6),
        DONE,
    ]
    found, _ = await bought(world, max_tokens=20)
    said = [e for e in found if e.id and e.data != "[DONE]" and texts([e])]
    assert [e.id.split(".")[2:] for e in said] == [["7", "3"], ["7", "5"]]
    assert spent(world) == INPUT + 6 * 250


async def test_what_came_in_more_pieces_than_tokens_is_given_back(
    world: World, fake: FakeUpstream
) -> None:
    fake.script = [OPENING, *letters(10), chunk("stop"), usage_chunk(4), DONE]
    headers = await charged(world, chat(stream=True, max_tokens=20))
    body = chat(stream=True, max_tokens=20)
    response = await world.client.post(CHAT, json=body, headers=headers)
    found = await all_events(response)
    assert texts(found) == "abcdefghij"
    assert spent(world) == INPUT + 4 * 250
    assert found[-1].id.endswith(".7.4")
    again = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert again == found
    assert len(fake.answered) == 1


async def test_usage_of_nothing_costs_nothing(world: World, fake: FakeUpstream) -> None:
    fake.script = [OPENING, *letters(3), chunk("stop"), usage_chunk(0), DONE]
    headers = await charged(world, chat(stream=True))
    found = await all_events(await world.client.post(CHAT, json=chat(stream=True), headers=headers))
    assert (texts(found), spent(world)) == ("abc", 0)


@pytest.mark.parametrize(
    ("said", "tokens"),
    [(10**9, 5), (-3, 0), (6, 5), (5, 5)],
    ids=["millions", "negative", "more than asked for", "honest"],
)
async def test_no_more_is_charged_than_was_asked_for(
    world: World, fake: FakeUpstream, said: int, tokens: int
) -> None:
    fake.script = [OPENING, *[chunk(content="word ")] * 5, chunk("stop"), usage_chunk(said), DONE]
    for stream in (True, False):
        before = spent(world)
        body = chat(stream=stream, max_tokens=5)
        headers = await charged(world, body)
        response = await world.client.post(CHAT, json=body, headers=headers)
        assert response.status == 200
        await response.read()
        assert spent(world) - before == (INPUT + tokens * 250 if tokens else 0)


async def test_no_more_tokens_than_bytes(world: World, fake: FakeUpstream) -> None:
    """So a user can check it: thoughts that are not shown are not paid for."""
    fake.script = [OPENING, chunk(content="4"), chunk("stop"), usage_chunk(90), DONE]
    _, buyer = await bought(world, max_tokens=100)
    assert spent(world) == buyer.session.served == INPUT + 250


async def test_a_question_is_never_charged_beyond_its_bytes(
    tmp_path: Path, fake: FakeUpstream
) -> None:
    async def many(fake: FakeUpstream, request: web.Request, asked: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (chunk(content="a"), chunk("stop"), usage_chunk(1, 10**6), DONE):
            await response.write(part)
        return response

    fake.respond = many
    async with selling(tmp_path, fake) as world:
        body = chat(stream=True)
        headers = await charged(world, body)
        await (await world.client.post(CHAT, json=body, headers=headers)).read()
        assert spent(world) == (16 + 16 + len("hi")) * 50 + 250


async def test_plain_completions(world: World, fake: FakeUpstream) -> None:
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 5, "stream": False}
    asked = await world.client.post("/v1/completions", json=body)
    headers = await _pay(world, asked)
    response = await world.client.post("/v1/completions", json=body, headers=headers)
    document = await response.json()
    assert document["choices"][0]["text"] == "xxxxx"
    assert document["usage"] == usage(5)
    assert spent(world) == INPUT + 5 * 250


async def _pay(world: World, asked: Any) -> dict[str, str]:
    from tests.provider.buyers import offer, paying

    challenge = offer(asked, "charge")
    preimage = world.node.pay(challenge.request_object()["methodDetails"]["invoice"])
    return paying(challenge, preimage=preimage.hex())


# What is passed on -------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def calls() -> list[bytes]:
    def part(**function: str) -> dict[str, Any]:
        return {"index": 0, "function": function}

    first = {"index": 0, "id": "call_1", "type": "function"}
    return [
        chunk(role="assistant", content=None),
        chunk(reasoning_content="Where? "),
        chunk(tool_calls=[first | {"function": {"name": "weather", "arguments": ""}}]),
        chunk(tool_calls=[part(arguments='{"city"')]),
        chunk(tool_calls=[part(arguments=':"Bern"}')]),
        chunk("tool_calls"),
        usage_chunk(12),
        DONE,
    ]


async def test_tools_are_passed_through(world: World, fake: FakeUpstream) -> None:
    fake.script = calls()
    more: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "temperature": 0.5,
        "top_p": 0.9,
        "logit_bias": {"7": -1},
    }
    hostile = {"best_of": 20, "n_predict": 10**6, "use_beam_search": True, "id_slot": 1, "n": 1}
    found, _ = await bought(world, max_tokens=50, **more, **hostile)
    (asked,) = fake.answered
    assert {name: asked[name] for name in more} == more
    assert not set(hostile) & set(asked)
    deltas = [
        choice["delta"]
        for e in found
        if not e.name and e.data != "[DONE]"
        for choice in e.document["choices"]
    ]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning_content": "Where? "}
    called = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
    assert called[0]["id"] == "call_1"
    assert "".join(c["function"]["arguments"] for c in called) == '{"city":"Bern"}'
    assert spent(world) == INPUT + 12 * 250


@pytest.mark.parametrize(
    "tools", ["[" * 5000 + "]" * 5000, "[1" + "0" * 400 + "]", "[1e999]", '[{"\\ud800": 1}]']
)
async def test_what_cannot_be_sent_on(world: World, fake: FakeUpstream, tools: str) -> None:
    body = json.dumps(chat())[:-1] + f', "tools": {tools}}}'
    headers = {"Content-Type": "application/json"}
    asked = await world.client.post(CHAT, data=body, headers=headers)
    assert asked.status in (400, 402)
    if asked.status == 402:  # then it can be
        paid = await _pay(world, asked)
        done = await world.client.post(CHAT, data=body, headers=headers | paid)
        assert done.status == 200


async def test_logprobs_are_few(world: World, fake: FakeUpstream) -> None:
    beside = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]}
    piece = {"index": 0, "delta": {"content": "a"}, "logprobs": beside, "finish_reason": None}
    said = upstream_server.event({"choices": [piece]})
    fake.script = [OPENING, said, said, chunk("stop"), usage_chunk(2), DONE]
    found, _ = await bought(world, max_tokens=20, logprobs=True, top_logprobs=5)
    assert [e.document["choices"][0]["logprobs"] for e in found[1:3]] == [beside, beside]
    body = chat(logprobs=True)
    whole = await world.client.post(CHAT, json=body, headers=await charged(world, body))
    (choice,) = (await whole.json())["choices"]
    assert choice["logprobs"] == {"content": [*beside["content"], *beside["content"]]}
    asked = await world.client.post(CHAT, json=chat(logprobs=True, top_logprobs=6))
    assert (asked.status, (await asked.json())["error"]["param"]) == (400, "top_logprobs")


async def test_openai_as_a_user(world: World, fake: FakeUpstream) -> None:
    """Tools, whole and streamed, by a client that nobody here wrote."""
    fake.script = calls()
    url = str(world.client.make_url("/v1"))
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_0",
                        "type": "function",
                        "function": {"name": "weather", "arguments": "{}"},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_0", "content": "sun"},
        ],
        "tools": TOOLS,
        "max_tokens": 50,
    }
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-unused", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(**asked)
        headers = await _paid(world, refused.value)
        done = await client.chat.completions.create(**asked, extra_headers=headers)
        (call,) = done.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Bern"}')
        assert (done.choices[0].finish_reason, done.choices[0].message.content) == (
            "tool_calls",
            None,
        )
        assert done.usage.completion_tokens == 12
    assert fake.answered[0]["messages"] == asked["messages"]
    assert spent(world) == INPUT + 12 * 250


async def _paid(world: World, error: openai.APIStatusError) -> dict[str, str]:
    from tests.provider.test_openai_client import pay

    return await pay(world, error, "charge")


async def test_a_newer_limit_keeps_its_name(world: World, fake: FakeUpstream) -> None:
    body = chat(stream=True, max_completion_tokens=3)
    headers = await charged(world, body)
    await (await world.client.post(CHAT, json=body, headers=headers)).read()
    (asked,) = fake.answered
    assert asked["max_completion_tokens"] == 3
    assert "max_tokens" not in asked


async def test_a_server_that_wants_to_know_every_field(world: World, fake: FakeUpstream) -> None:
    async def strict(fake: FakeUpstream, request: web.Request, asked: Any) -> web.StreamResponse:
        if "continuous_usage_stats" in asked["stream_options"]:
            said = "Unknown parameter: 'stream_options.continuous_usage_stats'."
            return web.json_response({"error": {"message": said}}, status=400)
        return await fake._stream(request, asked)

    fake.respond = strict
    found, _ = await bought(world)
    assert texts(found) == "abcde"
    assert len(fake.asked) == 3  # it was refused once, and is remembered


# What goes wrong ---------------------------------------------------------------------------------


async def test_who_hangs_up_stops_the_engine(world: World, fake: FakeUpstream) -> None:
    fake.script = [OPENING, *letters(5), "pause", *letters(5), chunk("stop"), DONE]
    body = chat(stream=True, max_tokens=100)
    headers = await charged(world, body)
    response = await world.client.post(CHAT, json=body, headers=headers)
    async for found in events(response):
        if found.id.endswith(".5"):
            break
    response.close()
    await asyncio.wait_for(fake.aborted.wait(), 30)
    assert spent(world) == INPUT + 5 * 250


async def test_an_answer_that_broke_off_stays_so(
    world: World, fake: FakeUpstream, tmp_path: Path
) -> None:
    fake.script = [OPENING, *letters(5), "end"]
    body = chat(stream=True, max_tokens=100)
    headers = await charged(world, body)
    found = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert texts(found[:-1]) == "abcde"
    assert error_of(found)["type"] == "server_error"
    fake.script = None
    again = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert again[:-1] == found[:-1]
    assert error_of(again)["code"] == "interrupted"
    headers["Last-Event-ID"] = found[-2].id
    (rest,) = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert error_of([rest])["code"] == "interrupted"
    assert spent(world) == INPUT + 5 * 250
    assert len(fake.answered) == 1
    # A whole answer has nothing that could be half.
    fake.script = [OPENING, *letters(5), "end"]
    whole = chat(max_tokens=5)
    headers = await charged(world, whole)
    failed = await world.client.post(CHAT, json=whole, headers=headers)
    assert (failed.status, failed.headers["x-should-retry"]) == (503, "false")
    fake.script = None
    assert (await world.client.post(CHAT, json=whole, headers=headers)).status == 200


async def test_a_kill_in_the_middle(world: World, fake: FakeUpstream, tmp_path: Path) -> None:
    fake.script = [OPENING, *letters(5), "pause"]
    body = chat(stream=True, max_tokens=100)
    headers = await charged(world, body)
    response = await world.client.post(CHAT, json=body, headers=headers)
    found = []
    async for each in events(response):
        found.append(each)
        if each.id.endswith(".5"):
            break
    after = world.killed(tmp_path / "after")
    await after.start()
    again = await all_events(await after.client.post(CHAT, json=body, headers=headers))
    assert plain(again[:-1]) == plain(found)
    assert error_of(again)["code"] == "interrupted"
    assert spent(after) == INPUT + 5 * 250
    response.close()
    await after.stop()


def status(code: int, body: bytes = b"{}") -> Any:
    async def respond(fake: FakeUpstream, request: web.Request, asked: Any) -> web.StreamResponse:
        return web.Response(status=code, body=body, content_type="application/json")

    return respond


TOO_LONG = b'{"error": {"message": "The context is 8 tokens."}}'


@pytest.mark.parametrize(
    ("respond", "code", "said"),
    [
        (status(500), "engine_unavailable", "HTTP 500"),
        (status(401, b'{"error": "your key sk-secret is wrong"}'), "engine_unavailable", "401"),
        (status(429), "engine_unavailable", "try again"),
        (status(302), "engine_unavailable", "302"),
        (status(400, TOO_LONG), "engine_refused", "The context is 8 tokens."),
        (status(422, b"\xff" * 3_000_000), "engine_refused", "nothing about it"),
        (status(200, b'{"choices": []}'), "engine_unavailable", "did not stream"),
    ],
)
async def test_a_server_that_refuses(
    world: World, fake: FakeUpstream, respond: Any, code: str, said: str
) -> None:
    fake.respond = respond
    for stream in (True, False):
        headers = await charged(world, chat(stream=stream))
        response = await world.client.post(CHAT, json=chat(stream=stream), headers=headers)
        if stream:
            error = error_of(await all_events(response))
        else:
            assert response.status == (400 if code == "engine_refused" else 503)
            assert response.headers["x-should-retry"] == "false"
            error = (await response.json())["error"]
        assert error["code"] == code
        assert said in error["message"]
        assert "sk-secret" not in error["message"]
    assert spent(world) == 0


@pytest.mark.parametrize(
    "part",
    [
        b"data: {\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"error": {"message": "out of memory", "code": 500}}\n\n',
        b'data: {"object": "error", "message": "out of memory"}\n\n',
        b"data: " + b"x" * 3_000_000,
        b"\xff\xfe\x00",
        "end",
        "pause",
    ],
    ids=[
        "cut",
        "list",
        "number",
        "deep",
        "error",
        "plain error",
        "giant",
        "binary",
        "end",
        "stall",
    ],
)
async def test_a_stream_that_is_none_costs_what_came(
    tmp_path: Path, fake: FakeUpstream, part: bytes | str
) -> None:
    fake.script = [OPENING, *letters(3), part]
    async with selling(tmp_path, fake, engine_timeout=4 if part == "pause" else 60) as world:
        found, buyer = await bought(world, max_tokens=100)
        assert texts(found[:-1]) == "abc"
        assert error_of(found)["type"] == "server_error"
        assert spent(world) == buyer.session.served == INPUT + 3 * 250
        # A whole answer is delivered or it is not.
        whole = chat(max_tokens=20)
        headers = await charged(world, whole)
        assert (await world.client.post(CHAT, json=whole, headers=headers)).status >= 500
        assert spent(world) == INPUT + 3 * 250


async def test_a_connection_that_is_cut(world: World, fake: FakeUpstream) -> None:
    """What of it was on its way may be lost, and is not charged."""
    fake.script = [OPENING, *letters(20), "hang up"]
    found, buyer = await bought(world, max_tokens=100)
    assert error_of(found)["code"] == "engine_unavailable"
    came = len(texts(found[:-1]))
    assert spent(world) == buyer.session.served == (INPUT + came * 250 if came else 0)


async def test_a_server_that_never_ends_is_left(world: World, fake: FakeUpstream) -> None:
    fake.script = [OPENING, *letters(200), "pause"]
    found, _ = await bought(world, max_tokens=10)
    assert error_of(found)["code"] == "upstream_endless"
    assert spent(world) == INPUT + 10 * 250
    await asyncio.wait_for(fake.aborted.wait(), 30)


async def test_a_server_that_does_not_count_is_not_sold(world: World, fake: FakeUpstream) -> None:
    async def mute(fake: FakeUpstream, request: web.Request, asked: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in (*letters(1), chunk("stop"), DONE):
            await response.write(part)
        return response

    fake.respond = mute
    found, _ = await bought(world)
    assert error_of(found)["code"] == "upstream_no_usage"
    assert spent(world) == 0


async def test_nobody_is_there(world: World) -> None:
    async with aiohttp.ClientSession() as http:
        world.serving = UpstreamEngine(Upstream(NOWHERE, http, Places(1)), MODEL, 4096)
        await world.restart()
        found, _ = await bought(world)
    assert error_of(found)["code"] == "engine_unavailable"
    assert spent(world) == 0


# How many at a time ------------------------------------------------------------------------------


async def test_places_and_a_bounded_queue(tmp_path: Path, fake: FakeUpstream) -> None:
    fake.script = [OPENING, *letters(2), "pause", chunk("stop"), usage_chunk(2), DONE]
    async with selling(tmp_path, fake) as world:
        world.places = Places(1, queue=1)
        await world.restart()
        body = chat(stream=True)
        paid = [await charged(world, body) for _ in range(3)]
        unpaid = [asyncio.create_task(world.client.post(CHAT, json=body, headers=paid[0]))]
        first = await unpaid[0]
        async for each in events(first):
            if each.id.endswith(".2"):
                break
        second = await world.client.post(CHAT, json=body, headers=paid[1])

        async def is_queued() -> bool:
            assert world.places is not None
            return world.places.is_full

        await until(is_queued, "the second waits")
        third = await world.client.post(CHAT, json=body, headers=paid[2])
        assert (third.status, third.headers["Retry-After"]) == (503, "5")
        assert (await third.json())["error"]["code"] == "at_capacity"
        fourth = await world.client.post(CHAT, json=body)
        assert fourth.status == 503  # nobody is asked to pay for it
        fake.go_on.set()
        assert texts(await all_events(second)) == "ab"
        assert fake.most_running == 1
        # What was paid for is still there.
        again = await world.client.post(CHAT, json=body, headers=paid[2])
        assert texts(await all_events(again)) == "ab"
        first.close()


def test_the_examples_are_json() -> None:
    assert json.loads(OPENING.removeprefix(b"data: "))["choices"]
