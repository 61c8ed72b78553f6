"""What both nodes tell of a channel that one side closes alone, until its coins are back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from channels.units import Msat, Sat
from tests.conformance.conftest import CHANNEL, ask, code_of, new_node
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, nodes_on, until

PUSHED = Msat(300_000_000)
FEES = Sat(20_000)
DELAY = 6
"""Blocks: to_self_delay of both kinds on regtest."""

INVALID_PARAMS = -32602


@pytest.fixture(params=["embedded", "lightningd"])
def two(
    request: pytest.FixtureRequest, bitcoind: Chain
) -> Iterator[tuple[Nodes, LightningNode, LightningNode]]:
    with nodes_on(bitcoind) as nodes:

        async def build() -> tuple[Nodes, LightningNode, LightningNode]:
            alice, bob = (new_node(request.param, nodes, name) for name in ("alice", "bob"))
            await asyncio.gather(alice.start(), bob.start())
            await nodes.give(Sat(2_000_000), alice, bob)
            await nodes.open(alice, bob, CHANNEL, push_msat=PUSHED)
            return nodes, alice, bob

        yield asyncio.run(build())


async def the_channel(node: LightningNode) -> dict[str, Any]:
    (channel,) = (await ask(node, "listpeerchannels"))["channels"]
    found: dict[str, Any] = channel
    return found


async def until_told(node: LightningNode, state: str, status: str) -> dict[str, Any]:
    """Wait for a state and a status line."""

    async def told() -> dict[str, Any] | None:
        channel = await the_channel(node)
        lines = any(status in line for line in channel["status"])
        return channel if channel["state"] == state and lines else None

    channel: dict[str, Any] = await until(
        told, f"{node.process.name} tells of {state}: {status}", 60
    )
    return channel


async def has_back(node: LightningNode, balance: int) -> bool:
    """The wallet has a confirmed coin of what was the node's in the channel, less fees."""
    outputs = (await ask(node, "listfunds"))["outputs"]
    coins = [o["amount_msat"] // 1000 for o in outputs if o["status"] == "confirmed"]
    return any(balance - FEES < coin <= balance for coin in coins)


async def test_a_channel_that_one_side_closes_alone(
    two: tuple[Nodes, LightningNode, LightningNode],
) -> None:
    nodes, alice, bob = two
    channel = await the_channel(alice)
    name = {"id": channel["channel_id"]}
    await bob.stop()
    closed = await ask(alice, "close", **name, unilateraltimeout=1)
    assert (closed["type"], len(closed["txids"])) == ("unilateral", 1)
    channel = await the_channel(alice)
    assert (channel["state"], channel["closer"]) == ("AWAITING_UNILATERAL", "local")
    assert not channel["peer_connected"]
    (funds,) = (await ask(alice, "listfunds"))["channels"]
    assert (funds["state"], funds["connected"]) == ("AWAITING_UNILATERAL", False)
    # It is no channel any more that somebody could close or change.
    assert await code_of(alice, "close", **name) == INVALID_PARAMS
    assert await code_of(alice, "setchannel", **name, feebase=1) == INVALID_PARAMS

    await nodes.until_in_mempool(closed["txids"][0])
    await nodes.mine(1, alice)
    channel = await until_told(alice, "ONCHAIN", "using OUR_DELAYED_RETURN_TO_WALLET")
    assert channel["status"][-2] == "ONCHAIN:Tracking our own unilateral close"
    in_blocks = f"outputs unresolved: in {DELAY - 1} blocks will spend DELAYED_OUTPUT_TO_US"
    assert in_blocks in channel["status"][-1]
    (funds,) = (await ask(alice, "listfunds"))["channels"]
    assert (funds["state"], funds["our_amount_msat"]) == ("ONCHAIN", CHANNEL * 1000 - PUSHED)
    assert (await ask(alice, "listpeers"))["peers"][0]["num_channels"] == 1

    await bob.start()
    channel = await until_told(bob, "ONCHAIN", "Tracking their unilateral close")
    assert channel["closer"] == "remote"

    await nodes.mine(DELAY - 1)
    await until_told(alice, "ONCHAIN", "waiting confirmation that we spent DELAYED_OUTPUT_TO_US")
    await nodes.mine(1)
    await until_told(alice, "ONCHAIN", "All outputs resolved: waiting")
    balance = CHANNEL - PUSHED // 1000
    await until(partial(has_back, alice, balance), "alice has hers")
    await until(partial(has_back, bob, PUSHED // 1000), "bob has his")
