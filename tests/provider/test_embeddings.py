"""Embeddings of an upstream's model: paid one by one, for the tokens of their texts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web

from provider.upstream import UpstreamEngine
from tests.provider import upstream_server
from tests.provider.buyers import challenges, offer, paying
from tests.provider.fakes import MODEL, World
from tests.provider.test_openai_client import pay
from tests.provider.upstream_server import FakeUpstream

PATH = "/v1/embeddings"
BODY = {"model": MODEL, "input": ["one", "two"], "encoding_format": "float"}


@pytest.fixture
def fake() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
async def world(tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[World]:
    async with upstream_server.upstream_of(fake) as upstream:
        made = World(tmp_path)
        made.serving = UpstreamEngine(upstream, MODEL, 4096)
        await made.start()
        yield made
        await made.stop()


async def paid(world: World, body: dict[str, Any] = BODY) -> dict[str, str]:
    asked = await world.client.post(PATH, json=body)
    assert asked.status == 402
    # No session: a receipt would not say what such an answer cost.
    assert [each.intent for each in challenges(asked)] == ["charge"]
    challenge = offer(asked, "charge")
    preimage = world.node.pay(challenge.request_object()["methodDetails"]["invoice"])
    return paying(challenge, preimage=preimage.hex())


async def test_texts_are_charged_by_their_tokens(world: World, fake: FakeUpstream) -> None:
    headers = await paid(world)
    for _ in range(2):
        response = await world.client.post(PATH, json=BODY, headers=headers)
        document = await response.json()
        assert [each["embedding"] for each in document["data"]] == [[0.5, 0], [0.5, 1]]
        assert document["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
        assert document["model"] == MODEL
    assert fake.asked == [BODY]
    assert world.ledger.totals()["spent"] == 6 * 50


@pytest.mark.parametrize("way", ["charge", "l402"])
async def test_openai_as_a_user(world: World, way: str) -> None:
    url = str(world.client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-unused", max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.embeddings.create(model=MODEL, input="one", encoding_format="float")
        headers = await pay(world, refused.value, way)
        made = await client.embeddings.create(
            model=MODEL, input="one", encoding_format="float", extra_headers=headers
        )
        assert made.data[0].embedding == [0.5, 0]


def said(document: object) -> Any:
    async def respond(fake: FakeUpstream, request: web.Request, asked: Any) -> web.StreamResponse:
        return web.json_response(document)

    return respond


ONE = {"index": 0, "embedding": [1.0]}


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"data": []},
        {"data": [ONE]},
        {"data": [ONE, ONE]},
        {"data": [ONE, {"index": 1, "embedding": {}}]},
        {"data": "x" * 5_000_000},
    ],
    ids=["nothing", "none", "one", "twice", "object", "giant"],
)
async def test_a_server_that_lies(world: World, fake: FakeUpstream, document: object) -> None:
    headers = await paid(world)
    fake.respond = said(document)
    response = await world.client.post(PATH, json=BODY, headers=headers)
    assert (response.status, response.headers["x-should-retry"]) == (503, "false")
    assert world.ledger.totals()["spent"] == 0
    fake.respond = None
    assert (await world.client.post(PATH, json=BODY, headers=headers)).status == 200


async def test_usage_beyond_the_texts_is_not_charged(world: World, fake: FakeUpstream) -> None:
    headers = await paid(world)
    data = [ONE, {"index": 1, "embedding": "AAAA"}]
    fake.respond = said({"data": data, "usage": {"prompt_tokens": 10**9}})
    assert (await world.client.post(PATH, json=BODY, headers=headers)).status == 200
    assert world.ledger.totals()["spent"] == 2 * (16 + 3) * 50


@pytest.mark.parametrize("wrong", [[], [""], [[1, 2]], [1], "", ["x"] * 65])
async def test_what_is_no_text(world: World, wrong: Any) -> None:
    asked = await world.client.post(PATH, json=BODY | {"input": wrong})
    assert asked.status == 400
    assert (await asked.json())["error"]["param"].startswith("input")


async def test_models_without(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start()
    asked = await world.client.post(PATH, json=BODY)
    assert (asked.status, (await asked.json())["error"]["code"]) == (404, "no_embeddings")
    await world.stop()


async def test_a_session_is_not_taken(world: World) -> None:
    asked = await world.client.get("/v1/chat/completions")
    challenge = offer(asked, "session")
    preimage = world.node.pay(challenge.request_object()["depositInvoice"]).hex()
    headers = paying(
        challenge, action="open", preimage=preimage, returnInvoice=world.return_invoice()
    )
    refused = await world.client.post(PATH, json=BODY, headers=headers)
    assert (refused.status, (await refused.json())["error"]["code"]) == (400, "no_session")
    assert (await world.client.get("/v1/chat/completions", headers=headers)).status == 200
