"""user - hub - provider as three processes on a real chain: paying through somebody, and back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels.errors import OdaError
from channels.lightning import LightningError
from channels.node.rpc_params import RpcErrorCode
from channels.units import Sat
from tests.conformance.schema import check
from tests.nodes import LightningNode, Nodes, received, sent, until, until_settled

CHANNEL = Sat(500_000)
PUSH = 200_000_000

# The hub's terms on regtest: 1 msat and 10 millionths.
FEE = 11
AMOUNT = 1_000_000


async def line(nodes: Nodes) -> tuple[LightningNode, LightningNode, LightningNode]:
    """Private channels user - hub - provider, with money on every side."""
    user, hub, provider = await nodes.start("user", "hub", "provider")
    for opener in (user, provider):
        await nodes.open(opener, hub, CHANNEL, push_msat=PUSH, announce=False)
    for node in (user, provider):
        await until_hinted(node)
    return user, hub, provider


async def until_hinted(node: LightningNode) -> None:
    """Wait until its peer's terms are known, so that invoices can hint at the way."""
    count = 0

    async def hinted() -> bool:
        nonlocal count
        count += 1
        text = await node.new_invoice(1, f"hint {count}")
        return bool((await node.rpc.call("decode", string=text)).get("routes"))

    await until(hinted, f"{node.process.name} hints at its peer")


async def forwards(hub: LightningNode, **options: Any) -> list[dict[str, Any]]:
    answer = await hub.rpc.call("listforwards", **options)
    check("listforwards", answer)
    found: list[dict[str, Any]] = answer["forwards"]
    return found


async def refusal(paying: Any) -> LightningError:
    with pytest.raises(LightningError) as raised:
        await paying
    return raised.value


async def check_hub(hub: LightningNode, before: int) -> None:
    """The hub has its fees more than before, and nothing is on its way."""
    rows = await forwards(hub)
    assert not [row for row in rows if row["status"] == "offered"]
    earned = sum(row["fee_msat"] for row in rows if row["status"] == "settled")
    assert sum(c["to_us_msat"] for c in await hub.channels()) == before + earned


async def test_through_a_hub_and_back(nodes: Nodes) -> None:
    user, hub, provider = await line(nodes)
    before = sum(c["to_us_msat"] for c in await hub.channels())
    paid = await user.pay(await provider.new_invoice(AMOUNT, "there"), maxfee=FEE)
    assert (paid["amount_sent_msat"], paid["amount_msat"]) == (AMOUNT + FEE, AMOUNT)
    back = await provider.pay(await user.new_invoice(AMOUNT, "back"), maxfee=FEE)
    assert back["amount_sent_msat"] == AMOUNT + FEE
    await until_settled(user, hub, provider)
    rows = await forwards(hub)
    assert [(r["status"], r["in_msat"], r["fee_msat"]) for r in rows] == [
        ("settled", AMOUNT + FEE, FEE)
    ] * 2
    await check_hub(hub, before)

    # A msat less than the fee: there is no way, and nothing has left.
    error = await refusal(user.pay(await provider.new_invoice(AMOUNT, "dear"), maxfee=FEE - 1))
    assert error.code == RpcErrorCode.PAY_ROUTE_TOO_EXPENSIVE
    assert len(await forwards(hub)) == 2

    # The payee refuses, and the payer learns that it was the payee.
    text = await provider.new_invoice(AMOUNT, "deleted")
    await provider.rpc.call("delinvoice", label="deleted", status="unpaid")
    error = await refusal(user.pay(text))
    assert error.code == RpcErrorCode.PAY_DESTINATION_PERM_FAIL
    assert "Destination said incorrect_or_unknown_payment_details" in str(error)
    assert [r["status"] for r in await forwards(hub, status="failed")] == ["failed"]


async def test_the_hubs_refusals_are_read_and_learned_from(nodes: Nodes) -> None:
    user, hub, provider = await line(nodes)
    # What was hinted at is not what the hub asks by now: its answer says what it is.
    text = await provider.new_invoice(AMOUNT, "old terms")
    (scid,) = [c["short_channel_id"] for c in await hub.channels() if c["peer_id"] == provider.id]
    answer = await hub.rpc.call(
        "setchannel", id=scid, feebase=500, feeppm=0, htlcmin=1000, enforcedelay=0
    )
    check("setchannel", answer)
    paid = await user.pay(text)
    assert paid["amount_sent_msat"] == AMOUNT + 500
    failed = await forwards(hub, status="local_failed")
    assert [row["failreason"] for row in failed] == ["WIRE_FEE_INSUFFICIENT"]
    assert (paid["failed_parts"], paid["successful_parts"]) == (1, 1)

    # More than the hub has toward the provider, so than it could learn of.
    big = await provider.new_invoice(PUSH + 50_000_000, "too big")
    error = await refusal(user.pay(big, retry_for=1))
    assert error.code == RpcErrorCode.PAY_TRY_OTHER_ROUTE
    assert "said temporary_channel_failure" in str(error)
    assert hub.id in str(error)

    # The next peer is away.
    text = await provider.new_invoice(AMOUNT, "away")
    await provider.stop()
    error = await refusal(user.pay(text, retry_for=1))
    assert "said temporary_channel_failure" in str(error)
    # The terms are kept over a restart.
    await hub.kill()
    await hub.start()
    of_hub = [c for c in await hub.channels() if c["peer_id"] == provider.id]
    assert [c["fee_base_msat"] for c in of_hub] == [500]


async def test_a_payer_waits_for_a_payee_that_is_started_again(nodes: Nodes) -> None:
    """kill -9 of the next peer, twice: before a payment, and while others are on their way."""
    user, hub, provider = await line(nodes)
    before = sum(c["to_us_msat"] for c in await hub.channels())
    texts = [await provider.new_invoice(AMOUNT + n, f"{n}") for n in range(6)]

    async def refused() -> bool:
        rows = await forwards(hub, status="local_failed")
        return any(row["failreason"] == "WIRE_TEMPORARY_CHANNEL_FAILURE" for row in rows)

    async def away() -> bool:
        return not all(c["peer_connected"] for c in await hub.channels())

    await provider.kill()
    # An HTLC that was signed for the provider a moment before would only wait for its return.
    await until(away, "the hub has noticed")
    first = asyncio.create_task(user.pay(texts[0], maxfee=FEE))
    await until(refused, "the hub has said that the provider is away")
    assert [p.status for p in await user.rpc.listpays()] == ["pending"]
    await provider.start()
    paid = await first
    assert (paid["amount_sent_msat"], paid["successful_parts"]) == (AMOUNT + FEE, 1)
    assert paid["failed_parts"] >= 1

    # A fee of 10 millionths, rounded down: it is the same for all of them.
    rest = [asyncio.create_task(user.pay(text, maxfee=FEE)) for text in texts[1:]]
    await provider.kill()
    await provider.start()
    await asyncio.gather(*rest)
    await until_settled(user, hub, provider)
    assert await received(provider) == sum(AMOUNT + n for n in range(6))
    assert await sent(user) == await received(provider) + 6 * FEE
    await check_hub(hub, before)


@pytest.mark.parametrize("victims", [["hub"], ["hub", "provider"], ["user", "hub"]])
async def test_killed_in_the_middle(nodes: Nodes, victims: list[str]) -> None:
    """Nothing is lost, doubled or stuck, whoever dies while payments cross in both directions."""
    user, hub, provider = await line(nodes)
    by_name = {"user": user, "hub": hub, "provider": provider}
    before = sum(c["to_us_msat"] for c in await hub.channels())
    paid: set[str] = set()
    for burst in range(3):
        there = [await provider.new_invoice(AMOUNT + i, f"{burst} {i}") for i in range(8)]
        back = [await user.new_invoice(AMOUNT + i, f"{burst} {i}") for i in range(8)]
        tasks = [asyncio.create_task(user.pay(text)) for text in there]
        tasks += [asyncio.create_task(provider.pay(text)) for text in back]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for name in victims:
            await by_name[name].kill()
        await asyncio.gather(*(by_name[name].start() for name in victims))
        for node in (user, hub, provider):
            await node.until_usable()
        await until_settled(user, hub, provider)
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, dict | OdaError)
        for node in (user, provider):
            complete = [p for p in await node.rpc.listpays() if p.status == "complete"]
            paid |= {p.bolt11 or "" for p in complete}
        for payer, texts in ((user, there), (provider, back)):
            await asyncio.gather(*(payer.pay(text) for text in texts if text not in paid))
        await until_settled(user, hub, provider)
        await check_hub(hub, before)
    total = 3 * sum(AMOUNT + i for i in range(8))
    for one, two in ((user, provider), (provider, user)):
        assert await received(two) == total
        assert await sent(one) == total + 24 * FEE
