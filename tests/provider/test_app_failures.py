"""What goes wrong over HTTP, and that nobody pays for it: engines, refunds, crashes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.http.payer import SendCredential
from channels.lightning import PaymentFailed, PaymentUnknown
from provider.sessions import Phase, RefundStatus
from tests.provider.buyers import (
    CHAT,
    Buyer,
    all_events,
    charged,
    chat,
    events,
    offer,
    paying,
    plain,
    texts,
)
from tests.provider.fakes import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "before")
    await made.start()
    yield made
    await made.stop()


# Failures ----------------------------------------------------------------------------------------


async def test_an_engine_that_fails_before_the_first_event_costs_nothing(world: World) -> None:
    headers = await charged(world, chat())
    world.engine.fail_at = 0
    response = await world.client.post(CHAT, json=chat(), headers=headers)
    assert (response.status, response.headers["x-should-retry"]) == (500, "false")
    assert (await response.json())["error"]["code"] == "engine_failed"
    assert world.ledger.totals() == {"spent": 0, "refund": 0, "rest": 2_000}
    world.engine.fail_at = None
    assert (await world.client.post(CHAT, json=chat(), headers=headers)).status == 200


async def test_an_engine_that_fails_in_the_middle(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    world.engine.fail_at = 3
    bearer = buyer.session.bearer()[1][1]
    found = await buyer.read(await buyer.ask())
    assert found[-1].document["error"]["code"] == "engine_failed"
    assert world.ledger.totals()["spent"] == 2 * 50 + 3 * 250
    # The same request again goes on from there, and what was delivered is not charged again.
    world.engine.fail_at = None
    headers = {"Authorization": bearer.credential.to_header()}  # type: ignore[union-attr]  # it is a SendCredential
    whole = await all_events(await world.client.post(CHAT, json=buyer.body, headers=headers))
    assert plain(whole)[: len(found) - 1] == plain(found)[:-1]
    assert len(texts(whole)) == 5
    assert world.ledger.totals()["spent"] == 2 * 50 + 5 * 250


async def test_an_engine_that_stalls(tmp_path: Path) -> None:
    world = World(tmp_path, engine_timeout=1)
    await world.start()
    world.engine.stall_at = 0
    headers = await charged(world, chat())
    response = await world.client.post(CHAT, json=chat(), headers=headers)
    assert (response.status, world.ledger.totals()["spent"]) == (500, 0)
    await world.stop()


async def test_an_empty_answer_costs_nothing(world: World) -> None:
    world.engine.silent = True
    for body in (chat(), chat(stream=True)):
        headers = await charged(world, body)
        response = await world.client.post(CHAT, json=body, headers=headers)
        assert response.status == 200
        await response.read()
    assert world.ledger.totals() == {"spent": 0, "refund": 0, "rest": 4_000}


async def test_a_client_that_hangs_up_stops_its_answer(world: World) -> None:
    body = chat(stream=True, max_tokens=4000)
    headers = await charged(world, body)
    world.engine.stall_at = 50
    response = await world.client.post(CHAT, json=body, headers=headers)
    async for event in events(response):
        if event.id.endswith(".50"):
            break
    response.close()
    for _ in range(world.settings.capacity):
        await world.provider.answers._places.acquire()  # its place is free again
    assert world.ledger.totals()["spent"] == 2 * 50 + 50 * 250


async def test_a_second_connection_takes_over(world: World) -> None:
    body = chat(stream=True, max_tokens=100)
    headers = await charged(world, body)
    world.engine.stall_at = 50
    first = await world.client.post(CHAT, json=body, headers=headers)
    async for event in events(first):
        if event.id.endswith(".50"):
            break
    world.engine.stall_at = None
    second = await world.client.post(CHAT, json=body, headers=headers)
    assert len(texts(await all_events(second))) == 100
    assert world.engine.computed == 100
    assert world.ledger.totals()["spent"] == 2 * 50 + 100 * 250


# Refunds that go wrong ---------------------------------------------------------------------------


async def test_an_unknown_refund_is_pending_until_it_is_known(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    world.node.outcomes = [PaymentUnknown("paid, but nobody knows")]
    closed = await buyer.close()
    assert closed["refundStatus"] == "pending"
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.refund_status is RefundStatus.UNKNOWN
    await world.provider.cashier.tick()
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.refund_status is RefundStatus.COMPLETE
    assert list(world.node.refunds.values()) == [8_000]


async def test_a_failed_refund_is_tried_again(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    world.node.outcomes = [PaymentFailed("no route", 205)]
    assert (await buyer.close())["refundStatus"] == "failed"
    await world.provider.cashier.tick()
    assert not world.node.refunds
    world.clock.ahead += 31
    await world.provider.cashier.tick()
    assert list(world.node.refunds.values()) == [8_000]


async def test_a_failed_refund_can_be_spent(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    world.node.outcomes = [PaymentFailed("no route", 205)]
    await buyer.close()
    asked = await world.client.get(CHAT)
    challenge = offer(asked, "session")
    preimage = world.node.pay(challenge.request_object()["depositInvoice"])
    payload = {
        "action": "open",
        "preimage": preimage.hex(),
        "returnInvoice": world.return_invoice(7),
    }
    session_id = (buyer.session.id or b"").hex()
    wrong = payload | {"credit": {"sessionId": session_id, "secret": "00" * 32}}
    assert (await world.client.get(CHAT, headers=paying(challenge, **wrong))).status == 402
    right = {"sessionId": session_id, "secret": buyer.session.bearer_secret.hex()}
    headers = paying(challenge, **(payload | {"credit": right}))
    for _ in range(2):
        assert (await world.client.get(CHAT, headers=headers)).status == 200
    opened = world.ledger.session(bytes.fromhex(challenge.request_object()["paymentHash"]))
    assert opened is not None
    assert opened.credited == 16_000


# Crashes -----------------------------------------------------------------------------------------


async def test_a_stream_goes_on_after_a_kill(world: World, tmp_path: Path) -> None:
    body = chat(stream=True, max_tokens=30)
    headers = await charged(world, body)
    world.engine.stall_at = 20
    response = await world.client.post(CHAT, json=body, headers=headers)
    found = []
    async for event in events(response):
        found.append(event)
        if event.id.endswith(".20"):
            break
    after = world.killed(tmp_path / "after")
    await after.start()
    after.engine.stall_at = None
    headers["Last-Event-ID"] = found[-1].id
    rest = await all_events(await after.client.post(CHAT, json=body, headers=headers))
    assert len(texts(found) + texts(rest)) == 30
    assert after.ledger.totals()["spent"] == 2 * 50 + 30 * 250
    del headers["Last-Event-ID"]
    whole = await all_events(await after.client.post(CHAT, json=body, headers=headers))
    assert whole == found + rest
    assert after.ledger.totals()["spent"] == 2 * 50 + 30 * 250
    response.close()
    await after.stop()


@pytest.mark.parametrize("tokens", range(0, 13, 3))
async def test_killed_anywhere_nothing_is_charged_twice_or_changed(
    world: World, tmp_path: Path, tokens: int
) -> None:
    """A session with top-ups, killed after so many tokens and read again from the beginning."""
    question = chat(stream=True, max_tokens=40)
    buyer = Buyer(world)
    await buyer.open()
    bearer = buyer.session.bearer()[1][1]
    world.engine.stall_at = tokens
    response = await buyer.ask(**question)
    found = []
    async for event in events(response):
        found.append(event)
        if (texts(found) and len(texts(found)) == tokens) or not tokens:
            break
    after = world.killed(tmp_path / "after")
    await after.start()
    after.engine.stall_at = None
    assert isinstance(bearer, SendCredential)
    headers = {"Authorization": bearer.credential.to_header()}
    buyer.world = after
    again = await after.client.post(CHAT, json=question, headers=headers)
    whole = await buyer.read(again)
    assert plain(whole)[: len(found)] == plain(found)
    assert len(texts(whole)) == 40
    stored = after.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.spent == buyer.session.served == 2 * 50 + 40 * 250
    assert buyer.session.max_exposure <= 16_000
    assert stored.credited == stored.spent + stored.rest
    response.close()
    await after.stop()


async def test_a_payment_that_settles_while_the_provider_is_down(
    world: World, tmp_path: Path
) -> None:
    buyer = Buyer(world)
    await buyer.open()
    topup = buyer.session.offer
    assert topup is not None
    world.node.deaf = True
    world.node.pay(topup.invoice)
    after = world.killed(tmp_path / "after")
    await after.start()
    after.node.deaf = False
    after.node.wake()
    await after.settled()
    stored = after.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.credited == 16_000
    await after.stop()


async def test_a_refund_that_was_under_way_in_a_kill_is_not_paid_twice(
    world: World, tmp_path: Path
) -> None:
    buyer = Buyer(world)
    await buyer.open()
    world.node.outcomes = [PaymentUnknown("paid, but nobody knows")]
    await buyer.close()
    # As if the process had died before it heard the outcome.
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.phase is Phase.CLOSED
    after = world.killed(tmp_path / "after")
    await after.start()
    await after.settled()
    stored = after.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.refund_status is RefundStatus.COMPLETE
    assert list(after.node.refunds.values()) == [8_000]
    await after.stop()


async def test_offers_expire_and_are_forgotten(world: World) -> None:
    await world.client.post(CHAT, json=chat())
    assert len(world.node.rows) == 2
    world.clock.ahead += 700
    await world.provider.cashier.tick()
    assert not world.node.rows
    world.clock.ahead += 25 * 3600
    await world.provider.cashier.tick()
    assert world.ledger._one("SELECT count(*) FROM challenges")[0] == 0  # type: ignore[index]  # a count has a row


async def test_the_topup_offer_is_renewed_before_it_expires(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    first = buyer.session.offer
    world.clock.ahead += 280
    await buyer.ask(max_tokens=1)
    assert buyer.session.offer is not None
    assert first is not None
    assert buyer.session.offer.invoice == first.invoice
    world.clock.ahead += 280
    await buyer.ask(max_tokens=1, seed=3)
    assert buyer.session.offer.invoice != first.invoice
    assert json.dumps(buyer.session.offer.challenge.opaque_object())
