"""A node killed at every commit of an opening, a payment and a close loses and doubles nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from channels.errors import OdaError
from channels.units import Msat, Sat
from tests.faults.fragile_node import lose_power
from tests.faults.victims import FRAGILE, attempt
from tests.nodes import (
    COINS,
    LightningNode,
    Nodes,
    balances,
    check_conserved,
    received,
    until,
    until_settled,
)

CHANNEL = Sat(100_000)
PUSH = Msat(40_000_000)
ENDLESS = 40
"""More commits than any of these operations makes."""

VICTIMS = pytest.mark.parametrize("victim", ["alice", "bob"])
MOMENTS = pytest.mark.parametrize("when", ["before", "after"])


async def fragile_pair(nodes: Nodes) -> tuple[LightningNode, LightningNode]:
    alice, bob = nodes.make("alice", FRAGILE), nodes.make("bob", FRAGILE)
    await asyncio.gather(alice.start(), bob.start())
    await nodes.give(COINS, alice, bob)
    await alice.connect(bob)
    return alice, bob


@VICTIMS
@MOMENTS
async def test_a_payment(nodes: Nodes, victim: str, when: str) -> None:
    alice, bob = await fragile_pair(nodes)
    await nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
    before = await balances(alice, bob)
    for count in range(1, ENDLESS):
        text = await bob.new_invoice(1_000_000 + count, f"payment {count}")
        node = alice if victim == "alice" else bob
        died = await attempt(node, count, when, pay_and_settle(alice, bob, text))
        await alice.until_usable()
        await bob.until_usable()
        await check_conserved(alice, bob, before)
        pays = await alice.rpc.listpays(bolt11=text)
        if not any(pay.status == "complete" for pay in pays):
            # Nothing was promised: the same invoice can be paid now.
            await alice.pay(text)
            await check_conserved(alice, bob, before)
        if not died:
            assert count > 3, "a payment takes more commits than that"
            return
    raise AssertionError("no payment takes so many commits")


@VICTIMS
@MOMENTS
async def test_an_opening(nodes: Nodes, victim: str, when: str) -> None:
    alice, bob = await fragile_pair(nodes)
    for count in range(1, ENDLESS):
        worth = await wealth(alice)
        node = alice if victim == "alice" else bob
        call = alice.rpc.call("fundchannel", id=bob.id, amount=CHANNEL, push_msat=PUSH)
        died = await attempt(node, count, when, call)
        await alice.connect(bob)
        await until_same_channels(nodes, alice, bob)
        # All that alice may have lost is the fee of the funding transaction, and what she gave.
        opened = (await wealth(alice)) < worth - 1_000
        lost = worth - await wealth(alice) - (PUSH // 1000 if opened else 0)
        assert 0 <= lost < 1_000
        if not died:
            assert count > 1, "an opening takes more commits than that"
            return
    raise AssertionError("no opening takes so many commits")


@VICTIMS
@MOMENTS
async def test_a_close(nodes: Nodes, victim: str, when: str) -> None:
    alice, bob = await fragile_pair(nodes)
    for count in range(1, ENDLESS):
        opened = await nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
        channel_id = opened["channel_id"]
        worths = [await wealth(alice), await wealth(bob)]
        node = alice if victim == "alice" else bob
        died = await attempt(node, count, when, alice.rpc.close(channel_id))
        await alice.until_usable_or_closing(channel_id)
        await bob.until_usable_or_closing(channel_id)
        if "CHANNELD_NORMAL" in await states(channel_id, alice, bob):
            await alice.rpc.close(channel_id)
        await until_closed(nodes, channel_id, alice, bob)
        lost = [before - await wealth(n) for before, n in zip(worths, (alice, bob), strict=True)]
        assert lost[1] == 0, "the opener pays the fee of closing"
        assert 0 < lost[0] < 1_000
        if not died:
            assert count > 2, "a close takes more commits than that"
            return
    raise AssertionError("no close takes so many commits")


@pytest.mark.parametrize("victims", [["alice"], ["bob"], ["alice", "bob"]])
async def test_power_lost_in_a_burst_of_payments(nodes: Nodes, victims: list[str]) -> None:
    """Every write that no commit had synced is gone, and nobody ever relied on one."""
    alice, bob = await fragile_pair(nodes)
    await nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
    before = await balances(alice, bob)
    by_name = {"alice": alice, "bob": bob}
    total = 0
    for burst in range(3):
        texts = [await bob.new_invoice(100_000 + i, f"{burst} {i}") for i in range(20)]
        total += sum(100_000 + i for i in range(20))
        payments = [asyncio.create_task(alice.pay(text)) for text in texts]
        await asyncio.wait(payments, return_when=asyncio.FIRST_COMPLETED)
        for name in victims:
            await by_name[name].kill()
            lose_power(by_name[name].process.directory)
        await asyncio.gather(*(by_name[name].start() for name in victims))
        for outcome in await asyncio.gather(*payments, return_exceptions=True):
            assert isinstance(outcome, dict | OdaError)
        await alice.until_usable()
        await bob.until_usable()
        await check_conserved(alice, bob, before)
        complete = {p.bolt11 for p in await alice.rpc.listpays() if p.status == "complete"}
        await asyncio.gather(*(alice.pay(text) for text in texts if text not in complete))
        await check_conserved(alice, bob, before)
        assert await received(bob) == total


# --- helpers --------------------------------------------------------------------------------------


async def pay_and_settle(payer: LightningNode, payee: LightningNode, text: str) -> None:
    await payer.pay(text)
    await until_settled(payer, payee)


async def wealth(node: LightningNode) -> int:
    """Satoshis on chain and in channels that are not on chain yet, as the node sees them."""
    funds = await node.rpc.call("listfunds")
    coins = sum(o["amount_msat"] for o in funds["outputs"])
    live = ("CHANNELD_AWAITING_LOCKIN", "CHANNELD_NORMAL")
    owned = sum(c["our_amount_msat"] for c in funds["channels"] if c["state"] in live)
    return int((coins + owned) // 1000)


async def states(channel_id: str, *nodes: LightningNode) -> list[str]:
    return [
        c["state"] for node in nodes for c in await node.channels() if c["channel_id"] == channel_id
    ]


async def until_same_channels(nodes: Nodes, one: LightningNode, two: LightningNode) -> None:
    """Mine, and wait until a channel is open on both sides or on neither."""
    await nodes.mine(1, one, two)

    async def same() -> bool:
        alive = [
            {c["channel_id"]: c["state"] for c in await node.channels() if _alive(c)}
            for node in (one, two)
        ]
        return alive[0] == alive[1] and set(alive[0].values()) <= {"CHANNELD_NORMAL"}

    await until(same, "both sides have the same channels")


def _alive(channel: dict[str, Any]) -> bool:
    # A channel that failed before its funding was broadcast never held anything.
    return bool(channel["state"] != "AWAITING_UNILATERAL")


async def until_closed(
    nodes: Nodes, channel_id: str, one: LightningNode, two: LightningNode
) -> None:
    for node in (one, two):

        async def agreed(node: LightningNode = node) -> bool:
            (state,) = await states(channel_id, node)
            return state in ("CLOSINGD_COMPLETE", "ONCHAIN")

        await until(agreed, "both sides agree on the closing transaction")
    async with nodes.chain.rpc() as rpc:

        async def broadcast() -> bool:
            return bool(await rpc.call("getrawmempool"))

        await until(broadcast, "the closing transaction is broadcast")
    await nodes.mine(1, one, two)
    for node in (one, two):
        await node.until_state("ONCHAIN", channel_id)
