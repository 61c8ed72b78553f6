"""Replacing a model while it answers, over HTTP and by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientResponse

from channels.units import UnixTime
from provider.serving import Models, Served
from tests.provider.buyers import CHAT, Sse, all_events, charged, chat, events, plain, texts
from tests.provider.fakes import MODEL, PACE, PRICE, FakeEngine, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "before")
    await made.start()
    yield made
    await made.stop()


def swap(world: World, weights_id: str) -> FakeEngine:
    engine = FakeEngine(weights_id)
    world.provider.models.swap(replace(world.provider.models.current[MODEL], engine=engine))
    return engine


async def whole(world: World, **more: object) -> str:
    """An answer from beginning to end."""
    body = chat(stream=True, **more)
    response = await world.client.post(CHAT, json=body, headers=await charged(world, body))
    return texts(await all_events(response))


async def begun(world: World, **more: object) -> tuple[ClientResponse, list[Sse], dict[str, str]]:
    """A stream that has given its first letter, and stands still at its second."""
    world.engine.stall_at = 1
    body = chat(stream=True, **more)
    headers = await charged(world, body)
    response = await world.client.post(CHAT, json=body, headers=headers)
    found: list[Sse] = []
    async for event in events(response):
        found.append(event)
        if texts(found):
            break
    return response, found, headers


async def test_a_running_stream_ends_with_the_weights_it_began_with(world: World) -> None:
    expected, old = await whole(world, seed=7), world.engine
    response, found, _ = await begun(world, seed=7)
    new = swap(world, "second")
    # Meanwhile others are answered by the new ones.
    other = await whole(world, seed=7)
    assert other != expected
    assert new.computed == 5
    swap(world, "third")
    swap(world, "fourth")
    assert (old.closed, new.closed) == (False, True)
    old.hold.set()
    assert texts([*found, *await all_events(response)]) == expected
    assert old.closed
    assert await whole(world, seed=7) not in (expected, other)


async def test_an_answer_that_was_cut_off_goes_on_with_its_weights(world: World) -> None:
    expected = await whole(world, seed=8)
    response, found, headers = await begun(world, seed=8)
    response.close()
    world.engine.stall_at = None
    swap(world, "second")
    body = chat(stream=True, seed=8)
    again = await world.client.post(CHAT, json=body, headers=headers)
    everything = await all_events(again)
    assert texts(everything) == expected
    assert plain(everything)[: len(found)] == plain(found)


async def test_weights_that_are_gone_are_said_so(world: World) -> None:
    response, found, headers = await begun(world, seed=9)
    response.close()
    swap(world, "second")
    swap(world, "third")
    body = chat(stream=True, seed=9)
    again = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert plain(again)[: len(found)] == plain(found)
    assert again[-1].document["error"]["code"] == "model_replaced"
    # Nothing was charged for what was not delivered.
    assert world.ledger.totals()["spent"] == 2 * 50 + 250


async def test_what_has_not_begun_begins_with_the_new_weights(world: World) -> None:
    body = chat(stream=True, seed=10)
    world.engine.stall_at = 0
    headers = await charged(world, body)
    response = await world.client.post(CHAT, json=body, headers=headers)
    async for _ in events(response):
        break
    response.close()
    swap(world, "second")
    again = await world.client.post(CHAT, json=body, headers=headers)
    answered = texts(await all_events(again))
    assert answered == await whole(world, seed=10)


def served(weights_id: str) -> Served:
    return Served(FakeEngine(weights_id), PRICE, PACE, UnixTime(0))


def closed(each: Served) -> bool:
    assert isinstance(each.engine, FakeEngine)
    return each.engine.closed


def test_the_one_before_stays_for_those_who_were_cut_off() -> None:
    one, two, three = served("1"), served("2"), served("3")
    models = Models([one])
    models.swap(one)
    models.swap(two)
    assert models.with_weights(MODEL, "1") is one
    with models.using(one):
        models.swap(three)
        assert models.with_weights(MODEL, "1") is one
        assert not closed(one)
    assert models.with_weights(MODEL, "1") is None
    assert [closed(each) for each in (one, two, three)] == [True, False, False]
    assert models.current[MODEL] is three
    assert models.with_weights("other", "1") is None
    models.close()
    assert closed(two)
    assert closed(three)
