"""The real openai client against the provider: it pays with a header, and never pays twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from channels.http import l402, scheme
from channels.http.scheme import Credential
from tests.provider.fakes import MODEL, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(world: World) -> AsyncIterator[openai.AsyncOpenAI]:
    url = str(world.client.make_url("/v1"))
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-unused") as made:
        yield made


async def pay(world: World, error: openai.APIStatusError, way: str) -> dict[str, str]:
    """The header that pays what a 402 asked for."""
    lines = error.response.headers.get_list("www-authenticate")
    if way == "l402":
        offered = l402.parse_offer(lines)
        assert offered is not None
        return {"Authorization": offered.authorization(world.node.pay(offered.invoice))}
    challenge = next(c for c in scheme.parse_challenges(lines) if c.intent == "charge")
    preimage = world.node.pay(challenge.request_object()["methodDetails"]["invoice"])
    return {"Authorization": Credential(challenge, {"preimage": preimage.hex()}).to_header()}


@pytest.mark.parametrize("way", ["charge", "l402"])
async def test_a_paid_stream(world: World, client: openai.AsyncOpenAI, way: str) -> None:
    async def ask(headers: dict[str, str] | None) -> tuple[str, int]:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=20,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=headers,
        )
        text, tokens = "", 0
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        return text, tokens

    with pytest.raises(openai.APIStatusError) as refused:
        await ask(None)
    assert refused.value.status_code == 402
    assert "Pay one of the offers" in refused.value.message
    # One 402: the client did not take it for a passing error.
    assert len(world.node.rows) == 2
    text, tokens = await ask(await pay(world, refused.value, way))
    assert (len(text), tokens) == (20, 20)


async def test_a_whole_answer_with_a_default_header(
    world: World, client: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.completions.create(model=MODEL, prompt="hi", max_tokens=5)
    headers = await pay(world, refused.value, "l402")
    paying = client.with_options(default_headers=headers)
    done = await paying.completions.create(model=MODEL, prompt="hi", max_tokens=5)
    assert len(done.choices[0].text) == 5
    assert done.usage is not None
    assert done.usage.total_tokens == 7


async def test_a_failure_after_payment_is_final(world: World, client: openai.AsyncOpenAI) -> None:
    """Measured: on a 500 these clients try twice more, each time as if nothing had been paid."""
    with pytest.raises(openai.APIStatusError) as refused:
        await client.completions.create(model=MODEL, prompt="hi", max_tokens=5)
    headers = await pay(world, refused.value, "charge")
    world.engine.fail_at = 2
    with pytest.raises(openai.InternalServerError):
        await client.completions.create(
            model=MODEL, prompt="hi", max_tokens=5, extra_headers=headers
        )
    assert world.engine.computed == 2
    world.engine.fail_at = None
    done = await client.completions.create(
        model=MODEL, prompt="hi", max_tokens=5, extra_headers=headers
    )
    assert len(done.choices[0].text) == 5


async def test_errors_are_shown_as_sentences(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.completions.create(model="gpt", prompt="hi")
    assert "/v1/models" in missing.value.message
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model=MODEL, messages=[])


async def test_models(client: openai.AsyncOpenAI) -> None:
    models = await client.models.list()
    assert [model.id for model in models.data] == [MODEL]
