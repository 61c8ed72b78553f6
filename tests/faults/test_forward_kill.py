"""A hub killed at every commit of a forward passes each payment on once, and its fee is right."""

from __future__ import annotations

import pytest

from channels.lightning import LightningError
from channels.node.rpc_params import RpcErrorCode
from channels.units import Sat
from tests.faults.victims import FRAGILE, attempt
from tests.nodes import COINS, LightningNode, Nodes, received, sent, until, until_settled

CHANNEL = Sat(200_000)
PUSH = 80_000_000
AMOUNT = 1_000_000
FEE = 11
"""The hub's terms on regtest: 1 msat and 10 millionths."""

ENDLESS = 40
"""More commits than a forward makes."""


async def line(nodes: Nodes) -> tuple[LightningNode, LightningNode, LightningNode]:
    """user - hub - provider, public, with money on every side."""
    user, provider = await nodes.start("user", "provider")
    hub = nodes.make("hub", FRAGILE)
    await hub.start()
    await nodes.give(COINS, hub)
    for opener in (user, provider):
        await nodes.open(opener, hub, CHANNEL, push_msat=PUSH)
    await nodes.mine(6)
    for node in (user, provider):

        async def knows(node: LightningNode = node) -> bool:
            return len((await node.rpc.call("listchannels"))["channels"]) == 4

        await until(knows, f"{node.process.name} knows both channels")
    return user, hub, provider


async def has(node: LightningNode) -> int:
    return sum([channel["to_us_msat"] for channel in await node.channels()])


async def check(
    user: LightningNode, hub: LightningNode, provider: LightningNode, before: list[int]
) -> None:
    """No msat is lost or doubled: what left is what arrived and what the hub has earned."""
    await until_settled(user, hub, provider)
    forwards = (await hub.rpc.call("listforwards"))["forwards"]
    settled = [f for f in forwards if f["status"] == "settled"]
    arrived, left = await received(provider), await sent(user)
    assert all(f["status"] != "offered" for f in forwards)
    assert sum(f["out_msat"] for f in settled) == arrived
    assert sum(f["in_msat"] for f in settled) == left
    assert left == arrived + FEE * len(settled)
    gained = [await has(n) - b for n, b in zip((user, hub, provider), before, strict=True)]
    assert gained == [-left, left - arrived, arrived]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_forward(nodes: Nodes, when: str) -> None:
    user, hub, provider = await line(nodes)
    before = [await has(node) for node in (user, hub, provider)]
    total = 0
    for count in range(1, ENDLESS):
        text = await provider.new_invoice(AMOUNT + count, f"payment {count}")
        died = await attempt(hub, count, when, pay_and_settle(user, hub, provider, text))
        for node in (user, hub, provider):
            await node.until_usable()
        await check(user, hub, provider, before)
        pays = await user.rpc.listpays(bolt11=text)
        if not any(pay.status == "complete" for pay in pays):
            # Nothing was promised: the same invoice can be paid now.
            await pay(user, text)
            await check(user, hub, provider, before)
        total += AMOUNT + count
        assert await received(provider) == total
        if not died:
            assert count > 5, "a forward takes more commits than that"
            return
    raise AssertionError("no forward takes so many commits")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_forward_that_the_payee_refuses(nodes: Nodes, when: str) -> None:
    """The failure finds its way back, and nobody pays anything."""
    user, hub, provider = await line(nodes)
    before = [await has(node) for node in (user, hub, provider)]

    async def refused(text: str) -> None:
        async def spoken() -> bool:
            with pytest.raises(LightningError) as raised:
                await user.pay(text)
            return raised.value.code == RpcErrorCode.PAY_DESTINATION_PERM_FAIL

        await until(spoken, "the payee refuses")
        await until_settled(user, hub, provider)

    for count in range(1, ENDLESS):
        text = await provider.new_invoice(AMOUNT + count, f"payment {count}")
        await provider.rpc.call("delinvoice", label=f"payment {count}", status="unpaid")
        died = await attempt(hub, count, when, refused(text))
        for node in (user, hub, provider):
            await node.until_usable()
        await check(user, hub, provider, before)
        assert await sent(user) == 0
        if not died:
            assert count > 5, "a forward takes more commits than that"
            return
    raise AssertionError("no forward takes so many commits")


async def pay(user: LightningNode, text: str) -> None:
    """Pay, again if need be: a hub that has just started may not have its next peer back yet,
    and the payer then leaves that channel alone for a second."""

    async def paid() -> bool:
        try:
            await user.pay(text)
        except LightningError as refused:
            if refused.code == RpcErrorCode.PAY_ALREADY_PAID:
                return True
            assert refused.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND, refused
            return False
        return True

    await until(paid, "the payment finds its way")


async def pay_and_settle(
    user: LightningNode, hub: LightningNode, provider: LightningNode, text: str
) -> None:
    await pay(user, text)
    await until_settled(user, hub, provider)
