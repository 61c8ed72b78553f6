"""Clients that want more of the provider than they pay for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from provider.gate import MAX_UNPAID_ANSWERS
from tests.provider.buyers import CHAT, all_events, chat, events, offer, paying, texts
from tests.provider.fakes import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "ledger.sqlite", capacity=1)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def opening(world: World, body: Mapping[str, Any], number: int) -> dict[str, str]:
    """The header of a paid `open`, which was not sent yet."""
    unpaid = await world.client.post(CHAT, json=body)
    challenge = offer(unpaid, "session")
    preimage = world.node.pay(challenge.request_object()["depositInvoice"])
    invoice = world.return_invoice(number)
    return paying(challenge, action="open", preimage=preimage.hex(), returnInvoice=invoice)


async def test_who_waits_for_a_topup_holds_no_place(world: World) -> None:
    """One deposit must not keep others, who have paid, from being served."""
    long = chat(stream=True, max_tokens=4000)
    greedy = await world.client.post(CHAT, json=long, headers=await opening(world, long, 1))
    async for event in events(greedy):
        if event.name == "payment-need-topup":
            break
    short = chat(stream=True, max_tokens=20)
    async with asyncio.timeout(10):
        served = await world.client.post(CHAT, json=short, headers=await opening(world, short, 2))
        assert len(texts(await all_events(served))) == 20
    greedy.close()


async def test_requests_that_nothing_is_paid_for_are_bounded(world: World) -> None:
    """Each is stored before it is charged; one credential can't fill the disk with them."""
    body = chat(stream=True, max_tokens=4000)
    headers = await opening(world, body, 1)
    statuses = []
    for number in range(MAX_UNPAID_ANSWERS + 5):
        other = chat(
            stream=True, messages=[{"role": "user", "content": f"{number} {'x' * 20_000}"}]
        )
        response = await world.client.post(CHAT, json=other, headers=headers)
        statuses.append(response.status)
        response.close()
    assert statuses[-1] == 429
    assert statuses.count(200) <= MAX_UNPAID_ANSWERS
