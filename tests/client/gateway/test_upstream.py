"""Tools, roles and formats: what a program asks of an engine behind a provider reaches it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from provider.upstream import UpstreamEngine
from tests.client.fakes import Shop
from tests.client.gateway.conftest import Desk
from tests.provider import upstream_server
from tests.provider.fakes import MODEL
from tests.provider.upstream_server import (
    DONE,
    OPENING,
    PROMPT_TOKENS,
    FakeUpstream,
    chunk,
    usage_chunk,
)

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
}
ASKED: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is it warm?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "17 °C"},
        {"role": "user", "content": "And in Bern?"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
    "top_p": 0.5,
    "stop": ["\n\n"],
    "seed": 7,
    "response_format": {"type": "json_object"},
}


@pytest.fixture
def fake() -> FakeUpstream:
    made = FakeUpstream()
    pieces = ('{"city"', ': "Bern"}')
    head = {"index": 0, "id": "call_1", "type": "function"}
    first = head | {"function": {"name": "weather", "arguments": ""}}
    calls = [first, *({"index": 0, "function": {"arguments": each}} for each in pieces)]
    called = [chunk(tool_calls=[call]) for call in calls]
    made.script = [OPENING, *called, chunk("tool_calls"), usage_chunk(14), DONE]
    return made


@pytest.fixture
async def desk(tmp_path: Path, fake: FakeUpstream, hasty: None) -> AsyncIterator[Desk]:
    (tmp_path / "shop").mkdir()
    async with upstream_server.upstream_of(fake) as upstream:
        shop = Shop(tmp_path / "shop")
        shop.serving = UpstreamEngine(upstream, MODEL, 4096)
        await shop.start()
        made = Desk(tmp_path, [shop])
        await made.start()
        yield made
        await made.stop()
        await shop.stop()


async def ask(desk: Desk, **given: Any) -> Any:
    create: Any = desk.client.chat.completions.create
    return await create(model=MODEL, max_tokens=50, **ASKED | given)


async def test_a_call_of_a_tool(desk: Desk, fake: FakeUpstream) -> None:
    answer = await ask(desk)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert call.model_dump(exclude_none=True) == CALL
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 14)
    [asked] = fake.answered
    assert {name: asked[name] for name in ASKED} == ASKED
    [record] = desk.records
    assert record.spent_msat == PROMPT_TOKENS * 50 + 14 * 250
    [row] = desk.rows()
    assert row.value.served == record.spent_msat


async def test_a_call_in_pieces(desk: Desk) -> None:
    arguments, names, reasons = "", [], []
    async for each in await ask(desk, stream=True):
        [choice] = each.choices
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            arguments += call.function.arguments or ""
            names += [call.function.name] if call.function.name else []
    assert (names, arguments) == (["weather"], '{"city": "Bern"}')
    assert reasons[-1] == "tool_calls"
    assert desk.gateway.figures.failed == 0
