"""Sessions over HTTP: streams, top-ups, closing, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from channels.http.scheme import Receipt, parse_challenges
from tests.provider.buyers import (
    CHAT,
    Buyer,
    all_events,
    challenges,
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


# Sessions ----------------------------------------------------------------------------------------


async def test_a_stream_with_topups_is_the_stream_without(world: World) -> None:
    """The main job: 200 tokens cost 50 sat, paid 8 sat at a time."""
    question = chat(stream=True, max_tokens=200, stream_options={"include_usage": True})
    headers = await charged(world, question)
    at_once = await all_events(await world.client.post(CHAT, json=question, headers=headers))
    buyer = Buyer(world)
    await buyer.open()
    found = await buyer.read(await buyer.ask(**question))

    def same(events_: list[Any]) -> list[str]:
        # Apart from the answer's own name.
        return [e.data.replace(e.id.split(".")[0], "") for e in events_ if not e.name]

    assert same(found) == same(at_once)
    assert texts(found) == texts(at_once)
    assert buyer.topups >= 3
    assert max(buyer.exposures) <= 16_000
    assert buyer.session.max_exposure <= 16_000
    spent = 2 * 50 + 200 * 250
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert (stored.spent, buyer.session.served) == (spent, spent)
    receipt = next(e for e in found if e.name == "payment-receipt").document
    assert (receipt["spentMsat"], receipt["units"]) == (spent, 200)
    assert found[-1].data == "[DONE]"


async def test_the_engine_is_held_while_nobody_pays(world: World) -> None:
    buyer = Buyer(world, pays=False)
    await buyer.open()
    response = await buyer.ask(max_tokens=200)
    found = await buyer.read(response, 33)
    assert found[-1].name == "payment-need-topup"
    # 8 sat are 2 tokens of input and 31 of output; one more was computed and not delivered.
    assert found[-1].document["balanceSpentMsat"] == 7_850
    assert world.engine.computed == 32
    await world.settled()
    assert world.engine.computed == 32
    response.close()


async def test_input_is_covered_before_the_engine_sees_it(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    long = [{"role": "user", "content": "x" * 500}]  # 25 sat
    found = await buyer.read(await buyer.ask(messages=long, max_tokens=2))
    assert [event.name for event in found[:2]] == ["", "payment-need-topup"]
    assert texts(found)
    assert buyer.topups >= 3
    assert buyer.session.max_exposure <= 16_000 + 25_000
    assert buyer.session.served == 25_500


async def test_leaving_keeps_the_credit_and_closing_returns_it(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    response = await buyer.ask(max_tokens=200)
    await buyer.read(response, 10)
    response.close()
    await world.settled()
    found = await buyer.read(await buyer.ask(max_tokens=3, seed=5))
    assert len(texts(found)) == 3
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    unspent = stored.rest
    assert 0 < unspent <= 16_000
    closed = await buyer.close()
    assert closed == {
        "status": "closed",
        "refundMsat": unspent,
        "refundSats": unspent // 1000,
        "refundStatus": "succeeded",
    }
    assert world.node.refunds == {world.return_invoice(): unspent} or len(world.node.refunds) == 1
    assert list(world.node.refunds.values()) == [unspent]
    receipt = Receipt.parse(buyer.responses[-1].headers["Payment-Receipt"])
    assert receipt.extensions["refundStatus"] == "succeeded"


async def test_a_closed_session(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    bearer = buyer.session.bearer()[1][1]
    close = buyer.session.close()[1][1]
    first = await buyer.close()
    # The same credential is told the same and refunds nothing again.
    headers = {"Authorization": close.credential.to_header()}  # type: ignore[union-attr]  # it is a SendCredential
    again = await world.client.get(CHAT, headers=headers)
    assert (again.status, await again.json()) == (200, first)
    assert world.node.attempts == 1
    headers = {"Authorization": bearer.credential.to_header()}  # type: ignore[union-attr]  # it is a SendCredential
    late = await world.client.post(CHAT, json=chat(), headers=headers)
    assert late.status == 402
    assert (await late.json())["type"].endswith("/lightning/session-closed")
    assert challenges(late)


async def test_an_outstanding_topup_is_deleted_before_the_refund(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    invoice = buyer.session.offer
    assert invoice is not None
    assert any(row.invoice.bolt11 == invoice.invoice for row in world.node.rows.values())
    assert (await buyer.close())["refundMsat"] == 8_000
    assert not any(row.invoice.bolt11 == invoice.invoice for row in world.node.rows.values())


async def test_a_topup_that_was_paid_is_credited_before_the_refund(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    assert buyer.session.offer is not None
    world.node.deaf = True
    world.node.pay(buyer.session.offer.invoice)
    assert (await buyer.close())["refundMsat"] == 16_000


async def test_a_topup_is_claimed_once(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    topup = buyer.session.offer
    assert topup is not None
    preimage = world.node.pay(topup.invoice)
    session_id = (buyer.session.id or b"").hex()
    headers = paying(
        topup.challenge, action="topUp", sessionId=session_id, topUpPreimage=preimage.hex()
    )
    for _ in range(3):
        response = await world.client.get(CHAT, headers=headers)
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert stored.credited == 16_000
    # Nor may it open a session of its own.
    headers = paying(
        topup.challenge,
        action="open",
        preimage=preimage.hex(),
        returnInvoice=world.return_invoice(9),
    )
    assert (await world.client.get(CHAT, headers=headers)).status == 402


async def test_a_settled_topup_counts_without_its_credential(world: World) -> None:
    buyer = Buyer(world, pays=False)
    await buyer.open()
    response = await buyer.ask(max_tokens=40)
    found = []
    async for event in events(response):
        found.append(event)
        if event.name == "payment-need-topup":
            (challenge,) = parse_challenges(event.document["challenge"])
            world.node.pay(challenge.request_object()["depositInvoice"])
    assert found[-1].data == "[DONE]"
    assert len(texts(found)) == 40


async def test_opening_again_with_the_same_credential(world: World) -> None:
    asked = await world.client.post(CHAT, json=chat(stream=True))
    challenge = offer(asked, "session")
    preimage = world.node.pay(challenge.request_object()["depositInvoice"])
    headers = paying(
        challenge,
        action="open",
        preimage=preimage.hex(),
        returnInvoice=world.return_invoice(),
    )
    first = await all_events(await world.client.post(CHAT, json=chat(stream=True), headers=headers))
    again = await all_events(await world.client.post(CHAT, json=chat(stream=True), headers=headers))
    assert plain(again) == plain(first)
    assert world.ledger.totals()["spent"] == 1_350
    assert world.engine.computed == 5


async def test_the_draft_alone_is_enough(world: World) -> None:
    """A client that knows nothing of ours: no bearerHash, the preimage as bearer."""
    asked = await world.client.get(CHAT)
    challenge = offer(asked, "session")
    preimage = world.node.pay(challenge.request_object()["depositInvoice"]).hex()
    mine = {"sessionId": challenge.request_object()["paymentHash"], "preimage": preimage}
    opened = await world.client.get(
        CHAT,
        headers=paying(
            challenge, action="open", preimage=preimage, returnInvoice=world.return_invoice()
        ),
    )
    assert (await opened.json())["status"] == "open"
    (following,) = challenges(opened)
    headers = paying(following, action="bearer", **mine)
    done = await world.client.post(CHAT, json=chat(), headers=headers)
    assert done.status == 200
    closed = await world.client.get(CHAT, headers=paying(following, action="close", **mine))
    assert (await closed.json())["refundSats"] == 6


async def test_a_whole_answer_is_covered_first(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    headers = {"Authorization": buyer.session.bearer()[1][1].credential.to_header()}  # type: ignore[union-attr]  # it is a SendCredential
    response = await world.client.post(CHAT, json=chat(max_tokens=100), headers=headers)
    assert response.status == 402
    assert (await response.json())["type"].endswith("/lightning/insufficient-balance")
    assert challenges(response)
    assert world.engine.computed == 0
    short = await world.client.post(CHAT, json=chat(max_tokens=10), headers=headers)
    assert short.status == 200
    stored = world.ledger.session(buyer.session.id or b"")
    assert stored is not None
    assert (stored.spent, stored.held) == (2_600, 0)


async def test_nobody_pays_for_the_rest(tmp_path: Path) -> None:
    world = World(tmp_path, topup_wait=1)
    await world.start()
    buyer = Buyer(world, pays=False)
    await buyer.open()
    found = await buyer.read(await buyer.ask(max_tokens=200))
    assert [event.name for event in found[-2:]] == ["payment-need-topup", "session-timeout"]
    await world.stop()


async def test_idle_sessions_are_closed_and_refunded(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    world.clock.ahead += 299
    await world.provider.cashier.tick()
    assert not world.node.refunds
    world.clock.ahead += 2
    await world.provider.cashier.tick()
    assert list(world.node.refunds.values()) == [8_000]
