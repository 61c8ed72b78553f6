"""Closing without the peer, as the RPC shows it: nodes as processes, kill -9 among the steps."""

from __future__ import annotations

from functools import partial
from typing import Any

from channels.units import Msat, Sat
from tests.nodes import LightningNode, Nodes, until

CHANNEL = Sat(500_000)
PUSH = Msat(200_000_000)
DELAY = 6
"""to_self_delay on regtest."""


async def until_sent(nodes: Nodes, txid: str) -> None:
    async with nodes.chain.rpc() as rpc:

        async def sent() -> bool:
            return txid in await rpc.call("getrawmempool")

        await until(sent, f"{txid} is broadcast")


async def output_of(node: LightningNode, kind: str) -> dict[str, Any]:
    [close] = (await node.rpc.call("oda-listcloses"))["closes"]
    [output] = [o for o in close["outputs"] if o["type"] == kind]
    return dict(output)


async def test_a_peer_that_is_gone_is_not_needed(nodes: Nodes) -> None:
    alice, bob = await nodes.start("alice", "bob")
    await nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
    await bob.kill()
    closed = await alice.rpc.close(bob.id, unilateraltimeout=1)
    assert closed.type == "unilateral"
    [txid] = closed.txids
    await until_sent(nodes, txid)
    [channel] = await alice.channels()
    assert channel["state"] == "AWAITING_UNILATERAL"
    [close] = await alice.rpc.listcloses(bob.id)
    assert (close.txid, close.closer, close.confirmed) == (txid, "ours", False)
    to_local = await output_of(alice, "DELAYED_OUTPUT_TO_US")
    assert to_local["status"] == "waiting"
    assert to_local["claimable_blockheight"] == close.blockheight + DELAY - 1

    await alice.kill()
    await alice.start()
    await until_sent(nodes, txid)
    await nodes.mine(1, alice)
    [channel] = await alice.channels()
    assert channel["state"] == "ONCHAIN"
    assert channel["status"][1] == "ONCHAIN:Tracking our own unilateral close"
    blocks = DELAY - 1
    assert f"1 outputs unresolved: in {blocks} blocks will spend" in channel["status"][2]
    assert (await output_of(alice, "DELAYED_OUTPUT_TO_US")) == to_local, "as it was foretold"

    await nodes.mine(blocks, alice)
    assert (await output_of(alice, "DELAYED_OUTPUT_TO_US"))["status"] == "claiming"
    await alice.kill()
    await alice.start()
    await bob.start()
    async with nodes.chain.rpc() as rpc:

        async def both_claim() -> bool:
            return len(await rpc.call("getrawmempool")) == 2

        await until(both_claim, "both sides claim what is theirs")
    await nodes.mine(1, alice, bob)
    gained = {}
    for node, before in ((alice, CHANNEL - PUSH // 1000), (bob, PUSH // 1000)):
        [output] = [
            o
            for o in (await output_list(node))
            if o["type"] in ("DELAYED_OUTPUT_TO_US", "OUTPUT_TO_US")
        ]
        assert output["status"] == "spent"
        funds = (await node.rpc.listfunds()).outputs
        gained[node.process.name] = sum(
            o.amount_msat // 1000 for o in funds if o.txid == output["spent_txid"]
        )
        assert before - 2_000 < gained[node.process.name] < before
    await nodes.mine(DELAY, alice, bob)
    for node in (alice, bob):
        closed = await until(partial(history, node), "the channel is history")
        local = node is alice
        assert closed["closer"] == ("local" if local else "remote")
        assert closed["close_cause"] == ("user" if local else "onchain")
        assert closed["final_to_us_msat"] == (1000 * CHANNEL - PUSH if local else PUSH)
        assert await node.rpc.listcloses() == []


async def history(node: LightningNode) -> dict[str, Any] | None:
    closed = (await node.rpc.call("listclosedchannels"))["closedchannels"]
    return closed[0] if closed else None


async def output_list(node: LightningNode) -> list[dict[str, Any]]:
    [close] = (await node.rpc.call("oda-listcloses"))["closes"]
    return list(close["outputs"])


async def test_a_live_peer_agrees_and_nothing_is_forced(nodes: Nodes) -> None:
    alice, bob = await nodes.start("alice", "bob")
    await nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
    assert (await alice.rpc.close(bob.id, unilateraltimeout=5)).type == "mutual"
    assert await alice.rpc.listcloses() == []
    await nodes.mine(1)
    [close] = await alice.rpc.listcloses()
    assert (close.closer, close.outputs) == ("mutual", [])
