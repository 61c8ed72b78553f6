"""OpenAI's client against the gateway, and the gateway against real providers in process."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from channels.http.payer import Phase
from channels.units import Msat, Sat
from client.gateway.settings import GatewaySettings
from client.settings import ClientSettings
from tests.client.fakes import LOST, Shop
from tests.client.gateway.conftest import Desk
from tests.client.test_sdk import expected
from tests.nodes import until
from tests.provider.fakes import MODEL


async def streamed(desk: Desk, **given: Any) -> list[Any]:
    stream = await desk.ask(stream=True, **given)
    return [chunk async for chunk in stream]


async def cut_off(desk: Desk, **given: Any) -> tuple[list[Any], openai.APIError]:
    """What came before the error that ends a stream."""
    stream, chunks = aiter(await desk.ask(stream=True, **given)), []
    with pytest.raises(openai.APIError) as cut:
        while True:
            chunks.append(await anext(stream))
    return chunks, cut.value


def text_of(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for c in chunks for choice in c.choices)


async def test_a_whole_answer(desk: Desk) -> None:
    await desk.start()
    answer = await desk.ask(max_tokens=200)
    [choice] = answer.choices
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant"
    assert choice.message.content == await expected(desk.shops[0], 200)
    assert choice.finish_reason == "length"
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3,
        "completion_tokens": 200,
        "total_tokens": 203,
    }
    [record] = desk.records
    assert (record.status, record.reason, record.stream) == (200, None, False)
    assert (record.input_tokens, record.output_tokens) == (3, 200)
    assert record.spent_msat == 3 * 50 + 200 * 250
    assert len(desk.node.attempts) > 3  # it was topped up, which nobody was told


async def test_a_stream(desk: Desk) -> None:
    await desk.start()
    chunks = await streamed(desk, max_tokens=200)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == await expected(desk.shops[0], 200)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None and "usage" not in chunk.model_fields_set for chunk in chunks)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


async def test_the_usage_of_a_stream_where_it_is_asked_for(desk: Desk) -> None:
    await desk.start()
    chunks = await streamed(desk, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 23
    assert all("usage" in chunk.model_fields_set for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_plain_completions(desk: Desk, stream: bool) -> None:
    await desk.start()
    given: dict[str, Any] = {"model": MODEL, "prompt": "abc", "max_tokens": 100, "seed": 7}
    create: Any = desk.client.completions.create
    answer = await create(stream=stream, **given)
    if stream:
        chunks = [chunk async for chunk in answer]
        assert {chunk.object for chunk in chunks} == {"text_completion"}
        text = "".join(chunk.choices[0].text for chunk in chunks)
    else:
        assert answer.object == "text_completion"
        assert answer.usage.completion_tokens == 100
        text = answer.choices[0].text
    assert text == await expected(desk.shops[0], 100)


async def test_models(desk: Desk, shops: list[Shop]) -> None:
    desk.serve(shops)
    await desk.start()
    [model] = (await desk.client.models.list()).data
    assert model.id == MODEL
    document = model.model_dump()
    assert document["output_msat_per_token"] == 250
    assert {each["url"] for each in document["providers"]} == {shop.url for shop in shops}
    assert (await desk.client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await desk.client.models.retrieve("gpt")


async def test_two_at_once_have_a_session_each_and_those_are_used_again(desk: Desk) -> None:
    await desk.start()
    for _ in range(2):
        answers = await asyncio.gather(*(desk.ask(max_tokens=100) for _ in range(2)))
        assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len(desk.rows()) == 2
    spent = sum(row.value.served for row in desk.rows())
    assert spent == desk.gateway.figures.spent == 4 * (3 * 50 + 100 * 250)


async def test_more_than_there_are_places_for_wait(desk: Desk) -> None:
    desk.gateway_settings = GatewaySettings(capacity=1)
    await desk.start()
    await asyncio.gather(*(desk.ask() for _ in range(3)))
    assert len(desk.rows()) == 1


async def test_at_the_end_the_rest_comes_back(desk: Desk) -> None:
    await desk.start()
    await asyncio.gather(*(desk.ask() for _ in range(2)))
    assert desk.gateway.pool.at_risk > 0
    await desk.stop()
    for row in desk.rows():
        assert row.value.phase is Phase.CLOSED
        assert row.value.refund == row.value.paid - row.value.served
        assert row.value.refund_status == "succeeded"


async def test_idle_sessions_are_closed(desk: Desk) -> None:
    desk.gateway_settings = GatewaySettings(idle_seconds=0)
    await desk.start()
    await desk.ask()

    async def closed() -> bool:
        return [row.value.phase for row in desk.rows()] == [Phase.CLOSED]

    await until(closed, "the session is closed")
    assert desk.gateway.pool.at_risk == 0
    await desk.ask()
    assert len(desk.rows()) == 2


async def test_a_session_is_left_before_its_cap_ends_an_answer(desk: Desk) -> None:
    desk.settings = ClientSettings(max_session_sat=Sat(64))
    await desk.start()
    for _ in range(6):
        await desk.ask(max_tokens=100)
    assert len(desk.rows()) > 2
    assert desk.gateway.figures.failed == 0


async def test_programs_hang_up_as_soon_as_they_have_read_the_end(desk: Desk) -> None:
    await desk.start()
    asked = {"model": MODEL, "prompt": "abc", "max_tokens": 20, "stream": True}
    async with aiohttp.ClientSession() as http:
        for _ in range(5):
            async with http.post(f"{desk.url}/completions", json=asked) as response:
                async for line in response.content:
                    if b"[DONE]" in line:
                        response.close()
                        break
    assert [record.status for record in await desk.recorded(5)] == [200] * 5
    assert desk.gateway.figures.failed == 0


async def test_where_a_provider_is_away_at_the_end_its_session_stays_on_record(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.gateway.pool.CLOSE_SECONDS", 0.3)
    await desk.start()
    await desk.ask()
    await desk.shops[0].client.close()
    await desk.stop()
    [row] = desk.rows()
    assert row.value.phase in (Phase.OPEN, Phase.CLOSING)
    assert f"oda close {row.number}" in caplog.text


async def test_the_end_in_the_middle_of_an_answer(desk: Desk) -> None:
    await desk.start()
    desk.shops[0].engine.stall_at = 20
    asking = asyncio.create_task(desk.ask(max_tokens=200))
    await until(lambda: said(desk, 20), "the answer has begun")
    await desk.stop()
    with pytest.raises(openai.APIConnectionError):
        await asking
    [row] = desk.rows()
    assert row.value.phase is Phase.CLOSED
    assert row.value.refund == row.value.paid - (3 * 50 + 20 * 250)


async def test_a_program_that_does_not_wait_for_a_whole_answer(desk: Desk) -> None:
    await desk.start()
    desk.shops[0].engine.stall_at = 20
    asking = asyncio.create_task(desk.ask(max_tokens=200))
    await until(lambda: said(desk, 20), "the answer has begun")
    asking.cancel()
    [record] = await desk.recorded(1)
    assert (record.status, record.output_tokens) == (499, 20)
    paid = len(desk.node.attempts)
    await desk.stop()
    assert len(desk.node.attempts) == paid


async def said(desk: Desk, tokens: int) -> bool:
    return desk.gateway.figures.output_tokens == tokens


async def test_a_program_that_hangs_up_pays_no_more(desk: Desk) -> None:
    await desk.start()
    stream = await desk.ask(stream=True, max_tokens=4000)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()

    [record] = await desk.recorded(1)
    assert (record.status, record.reason) == (499, "hung-up")
    assert record.output_tokens < 1000
    paid = len(desk.node.attempts)
    # The session goes on with the next question.
    await desk.ask()
    assert len(desk.rows()) == 1
    assert len(desk.node.attempts) <= paid + 2


# Failures ----------------------------------------------------------------------------------------


async def test_what_the_provider_says_of_a_request_is_passed_on(desk: Desk) -> None:
    await desk.start()
    with pytest.raises(openai.BadRequestError) as refused:
        await desk.ask(temperature=7)
    assert "temperature" in refused.value.message
    with pytest.raises(openai.NotFoundError):
        await desk.ask(model="gpt")
    with pytest.raises(openai.BadRequestError):
        create: Any = desk.client.chat.completions.create
        await create(model=MODEL, messages="abc")
    assert desk.node.attempts == []
    assert {record.reason for record in desk.records} == {
        "invalid-request",
        "model-not-found",
        "bad-question",
    }


@pytest.mark.parametrize(
    ("caps", "reason"),
    [
        ({"max_request_sat": 16}, "request-cap-reached"),
        ({"max_hour_sat": 16}, "hour-cap-reached"),
        ({"max_day_sat": 16}, "day-cap-reached"),
        ({"max_session_sat": 16}, "session-cap-reached"),
        ({"max_output_msat": 1}, "too-expensive"),
    ],
)
async def test_a_budget_that_is_used_up(desk: Desk, caps: dict[str, Any], reason: str) -> None:
    desk.settings = ClientSettings(**caps)
    await desk.start()
    client = desk.client.with_options(max_retries=2)
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "abc"}], max_tokens=500
        )
    assert refused.value.code == refused.value.type == "insufficient_quota"
    assert refused.value.response.headers["x-oda-reason"] == reason
    assert len(desk.records) == 1  # the client did not try again
    assert desk.records[0].reason == reason
    assert sum(row.value.paid for row in desk.rows()) <= 16_000
    assert desk.records[0].spent_msat <= 16_000


async def test_the_budget_of_a_gateway(desk: Desk) -> None:
    desk.max_total = Msat(24_000)
    await desk.start()
    chunks, cut = await cut_off(desk, max_tokens=500)
    assert cut.code == "insufficient_quota"
    assert 60 < len(text_of(chunks)) <= 96
    [record] = await desk.recorded(1)
    assert record.reason == "total-cap-reached"
    assert record.spent_msat <= 24_000


async def test_nobody_is_paid_while_a_payment_is_unknown(desk: Desk) -> None:
    await desk.start()
    desk.node.outcomes = [LOST] * 100
    with pytest.raises(openai.InternalServerError) as refused:
        await desk.ask()
    assert refused.value.status_code == 503
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(set(desk.node.attempts)) == 1


async def test_no_provider(desk: Desk) -> None:
    await desk.start()
    await desk.shops[0].client.close()
    with pytest.raises(openai.InternalServerError) as refused:
        await desk.ask()
    assert refused.value.status_code == 503
    assert refused.value.code == "no_provider"


@pytest.fixture
async def broken(desk: Desk, shops: list[Shop]) -> Shop:
    """The provider that is asked first: by the order of the catalogue."""
    desk.serve(shops)
    await desk.start()
    [model] = (await desk.client.models.list()).data
    first = model.model_dump()["providers"][0]["url"]
    return next(shop for shop in shops if shop.url == first)


async def test_the_next_provider_answers(desk: Desk, broken: Shop) -> None:
    broken.engine.fail_at = 5
    answer = await desk.ask(max_tokens=40)
    good = next(shop for shop in desk.shops if shop is not broken)
    assert answer.choices[0].message.content == await expected(good, 40)
    assert answer.usage.completion_tokens == 40
    [record] = desk.records
    assert (record.provider, record.switched) == (good.url, ["engine-failed"])
    # What the first one delivered was paid, and is counted.
    assert record.output_tokens == 45


async def test_a_provider_that_dies_in_the_middle_is_left_for_the_next(
    desk: Desk, broken: Shop
) -> None:
    broken.engine.stall_at = 20
    asking = asyncio.create_task(desk.ask(max_tokens=200))
    await until(lambda: said(desk, 20), "the answer has begun")
    paid = len(desk.nodes[broken.url].attempts)
    await broken.client.close()
    good = next(shop for shop in desk.shops if shop is not broken)
    assert (await asking).choices[0].message.content == await expected(good, 200)
    assert len(desk.nodes[broken.url].attempts) == paid
    [record] = await desk.recorded(1)
    assert (record.provider, record.switched) == (good.url, ["provider-unreachable"])
    # What the first one still has is on record, and at risk.
    left = {row.provider: row.value for row in desk.rows()}[broken.url]
    assert left.exposure == left.paid - (3 * 50 + 20 * 250) > 0
    assert desk.gateway.pool.at_risk >= left.exposure


async def test_what_was_shown_of_a_stream_can_not_be_taken_back(desk: Desk, broken: Shop) -> None:
    broken.engine.fail_at = 5
    chunks, cut = await cut_off(desk, max_tokens=40)
    assert len(text_of(chunks)) == 5
    assert cut.code == "answer_cut_off"
    assert (await desk.recorded(1))[0].provider == broken.url
    assert [url for url, node in desk.nodes.items() if node.attempts] == [broken.url]


async def test_a_stream_that_showed_nothing_yet_begins_anew(desk: Desk, broken: Shop) -> None:
    broken.engine.fail_at = 0
    chunks = await streamed(desk, max_tokens=40)
    assert len(text_of(chunks)) == 40
    assert len({chunk.id for chunk in chunks}) == 1
    assert (await desk.recorded(1))[0].provider != broken.url
