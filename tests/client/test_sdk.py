"""Asking and paying, against the real provider in process, with money that is counted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest

from channels.errors import OdaError
from channels.http.payer import DepositStatus, Phase
from channels.lightning import PaymentFailed, PaymentUnknown
from channels.units import Sat
from client import session as paid_session
from client.sdk import Client, Cost, Done, Event, Interrupted, Text, TopUp, connect
from client.settings import ClientSettings
from client.store import Store
from tests.client.fakes import LOST, Shop, UserNode
from tests.provider.fakes import MODEL

PRICE = (50, 250)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "shop").mkdir()
    made = Shop(tmp_path / "shop")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def node(shop: Shop) -> UserNode:
    return UserNode(shop.node)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_session, "REFUND_SECONDS", 2.0)


def client_of(
    shop: Shop, node: UserNode, path: Path, **settings: Any
) -> AbstractAsyncContextManager[Client]:
    return connect(
        shop.url, node, settings=ClientSettings(**settings), store=path / "client.sqlite"
    )


async def read(client: Client, question: str = "abc", **given: Any) -> list[Event]:
    return [event async for event in client.chat(question, **given)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def done(events: list[Event]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


async def expected(shop: Shop, tokens: int, seed: int = 7, prompt: str = "abc") -> str:
    from provider.engine import GenerateRequest

    request = GenerateRequest(prompt.encode(), tokens, 1.0, seed, ())
    return "".join([token.text async for token in shop.engine.generate(request)])


async def test_an_answer_is_paid_while_it_comes_and_the_rest_comes_back(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    async with client_of(shop, node, tmp_path) as client:
        assert [m.id for m in (await client.models()).data] == [MODEL]
        events = await read(client, max_tokens=200, seed=7)
        assert text_of(events) == await expected(shop, 200)
        cost = done(events).cost
        assert done(events).reason == "length"
        assert (cost.input_tokens, cost.output_tokens) == (3, 200)
        assert cost.spent_msat == 3 * 50 + 200 * 250
        assert cost.topups >= 3
        assert cost.topups == sum(isinstance(e, TopUp) for e in events)
        assert cost.paid_msat == 8000 * (1 + cost.topups)
        assert cost.left_msat == cost.paid_msat - cost.spent_msat
        assert cost.max_exposure_msat <= cost.exposure_limit_msat
        [refund] = await client.close()
    assert refund.spent_msat == cost.spent_msat
    assert refund.received_msat == refund.promised_msat == refund.paid_msat - refund.spent_msat
    assert (refund.unaccounted_msat, refund.status) == (0, "succeeded")
    assert len(node.attempts) == len(set(node.attempts)) == 1 + cost.topups


async def test_figures_rise_with_every_piece_of_text(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    async with client_of(shop, node, tmp_path) as client:
        events = await read(client, max_tokens=100)
    for event, after in itertools.pairwise(events):
        if isinstance(event, Text):
            assert isinstance(after, Cost)
    spent = [event.spent_msat for event in events if isinstance(event, Cost)]
    assert spent == sorted(spent)


async def test_a_session_outlives_answers_and_processes(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    for _ in range(2):
        async with client_of(shop, node, tmp_path) as client:
            await read(client, max_tokens=10)
            await read(client, max_tokens=10)
    async with client_of(shop, node, tmp_path) as client:
        [refund] = await client.close()
        assert refund.spent_msat == 4 * (3 * 50 + 10 * 250)
        assert refund.received_msat == refund.paid_msat - refund.spent_msat
        # A closed session is not used again.
        await read(client, max_tokens=1)
        assert [refund.session for refund in await client.close()] == [2]


async def test_a_provider_that_is_killed_goes_on_where_it_stopped(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    events: list[Event] = []
    async with client_of(shop, node, tmp_path) as client:
        shops = [shop]
        async for event in client.chat("abc", max_tokens=120, seed=7):
            events.append(event)
            texts = sum(isinstance(e, Text) for e in events)
            if isinstance(event, Text) and texts in (20, 60):
                shops.append(await shops[-1].kill(tmp_path / f"again{texts}"))
            if isinstance(event, Interrupted):
                await shops[-1].start()
        assert sum(isinstance(event, Interrupted) for event in events) >= 2
        assert text_of(events) == await expected(shop, 120)
        assert done(events).cost.spent_msat == 3 * 50 + 120 * 250
        [refund] = await client.close()
        assert refund.spent_msat == done(events).cost.spent_msat
        assert refund.received_msat == refund.paid_msat - refund.spent_msat
    await shops[-1].stop()


async def test_leaving_stops_the_paying_and_keeps_the_rest(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    async with client_of(shop, node, tmp_path) as client:
        async with aclosing(client.chat("abc", max_tokens=2000)) as events:
            async for event in events:
                if isinstance(event, Cost) and event.output_tokens >= 30:
                    break
        attempts = len(node.attempts)
        await shop.settled()
        assert len(node.attempts) == attempts
        [refund] = await client.close()
        assert refund.spent_msat >= 3 * 50 + 30 * 250
        assert refund.received_msat == refund.paid_msat - refund.spent_msat
        assert refund.unaccounted_msat == 0


async def test_the_next_answer_after_one_that_was_left(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    # What the provider delivered and nobody read was charged: our count follows at a top-up.
    async with client_of(shop, node, tmp_path) as client:
        for _ in range(3):
            async with aclosing(client.chat("abc", max_tokens=2000)) as events:
                async for event in events:
                    if isinstance(event, Cost) and event.output_tokens >= 20:
                        break
        events_ = await read(client, max_tokens=200, seed=7)
        assert text_of(events_) == await expected(shop, 200)
        [refund] = await client.close()
        assert refund.received_msat == refund.paid_msat - refund.spent_msat


async def test_a_cancelled_task_leaves_a_payment_to_the_node(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    async with client_of(shop, node, tmp_path) as client:
        await read(client, max_tokens=2)
        node.hold = asyncio.Event()
        started = len(node.attempts)
        task = asyncio.create_task(read(client, max_tokens=2000))
        while len(node.attempts) == started:  # noqa: ASYNC110  # a fake has no event
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        value = Store(tmp_path / "client.sqlite").session(1).value
        assert [d.status for d in value.deposits].count(DepositStatus.PAYING) == 1
        # The node ends what it has begun; the next use finds out, and nothing is paid twice.
        node.hold = None
        node.finish(node.attempts[-1])
        [refund] = await client.close()
        assert refund.paid_msat == 8000 * len(set(node.attempts))
        assert refund.received_msat == refund.paid_msat - refund.spent_msat


async def test_an_unknown_payment_is_found_out_and_not_repeated(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    node.outcomes = [PaymentUnknown("the node went away")]
    async with client_of(shop, node, tmp_path) as client:
        events = await read(client, max_tokens=5)
        assert done(events).cost.output_tokens == 5
    assert len(node.attempts) == len(set(node.attempts))


async def test_a_payment_without_a_trace_is_made_with_the_same_invoice(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    node.outcomes = [LOST]
    async with client_of(shop, node, tmp_path) as client:
        await read(client, max_tokens=5)
    assert node.attempts[0] == node.attempts[1]


async def test_no_funds(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    node.outcomes = [PaymentFailed("no channel has enough", 205)]
    async with client_of(shop, node, tmp_path) as client:
        with pytest.raises(OdaError) as failed:
            await read(client)
        assert failed.value.reason == "payment-failed"
        assert [r.status for r in await client.close()] == ["skipped"]
        # With funds it works.
        await read(client, max_tokens=1)


async def test_a_topup_that_fails_lets_the_rest_be_used(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    async with client_of(shop, node, tmp_path) as client:
        await read(client, max_tokens=1)
        left = PaymentFailed("no channel has enough", 205)
        node.outcomes = [left, left, left]
        events: list[Event] = []
        with pytest.raises(OdaError) as failed:
            async for event in client.chat("abc", max_tokens=500):
                events.append(event)  # noqa: PERF401  # what came before the error is looked at
        assert failed.value.reason == "payment-failed"
        assert len(text_of(events)) > 20
        [refund] = await client.close()
        assert refund.received_msat == refund.paid_msat - refund.spent_msat


async def test_caps(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    async with client_of(shop, node, tmp_path, max_session_sat=Sat(20)) as client:
        with pytest.raises(OdaError) as capped:
            await read(client, max_tokens=500)
        assert capped.value.reason == "session-cap-reached"
        await client.close()
    assert sum(shop.node.refunds.values()) <= 16_000
    path = tmp_path / "day"
    path.mkdir()
    async with client_of(shop, node, path, max_day_sat=Sat(16)) as client:
        with pytest.raises(OdaError) as capped:
            await read(client, max_tokens=500)
        assert capped.value.reason == "day-cap-reached"
    async with client_of(shop, node, path, max_output_msat=249) as client:
        await client.close()
        with pytest.raises(OdaError) as refused:
            await read(client, max_tokens=5)
        assert refused.value.reason == "too-expensive"


async def test_wrong_network(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    node.network = "signet"
    with pytest.raises(OdaError) as wrong:
        async with client_of(shop, node, tmp_path):
            pass
    assert wrong.value.reason == "wrong-network"


async def test_a_dead_provider(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    for url, reason in [
        ("http://127.0.0.1:1", "provider-unreachable"),
        ("http://192.0.2.1:8402", "insecure-provider"),
        ("nonsense", "bad-provider-url"),
    ]:
        with pytest.raises(OdaError) as failed:
            async with connect(url, node, settings=ClientSettings(), store=tmp_path / "s"):
                pass
        assert failed.value.reason == reason


async def test_an_unknown_model(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    async with client_of(shop, node, tmp_path) as client:
        with pytest.raises(OdaError) as unknown:
            await read(client, model="gpt")
    assert unknown.value.reason == "model-not-found"
    assert not node.attempts


async def test_a_session_that_the_provider_closed_is_replaced(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    async with client_of(shop, node, tmp_path) as client:
        first = done(await read(client, max_tokens=5)).cost
        shop.clock.ahead += 301
        await shop.provider.cashier.tick()
        shop.clock.ahead = 0
        events = await read(client, max_tokens=5)
        assert done(events).cost.spent_msat == first.spent_msat
        store = Store(tmp_path / "client.sqlite")
        old = store.session(1).value
        assert (old.phase, old.refund) == (Phase.CLOSED, old.paid - first.spent_msat)
        assert store.session(2).value.phase is Phase.OPEN


async def test_two_processes_take_two_sessions(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    async with (
        client_of(shop, node, tmp_path) as one,
        client_of(shop, node, tmp_path) as two,
    ):
        await read(one, max_tokens=2)
        await read(two, max_tokens=2)
        with pytest.raises(OdaError) as used:
            await one.close(2)
        assert used.value.reason == "session-in-use"
    async with client_of(shop, node, tmp_path) as client:
        assert {refund.session for refund in await client.close()} == {1, 2}


async def test_one_answer_at_a_time(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    async with (
        client_of(shop, node, tmp_path) as client,
        aclosing(client.chat("abc", max_tokens=50)) as events,
    ):
        await anext(events)
        with pytest.raises(OdaError) as busy:
            await read(client)
        assert busy.value.reason == "answer-running"


async def test_an_engine_that_fails_costs_nothing_for_what_it_did_not_deliver(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    shop.engine.fail_at = 10
    async with client_of(shop, node, tmp_path) as client:
        with pytest.raises(OdaError) as failed:
            await read(client, max_tokens=50)
        assert failed.value.reason == "engine-failed"
        [refund] = await client.close()
        assert refund.spent_msat == 3 * 50 + 10 * 250
