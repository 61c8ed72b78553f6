"""Two nodes with a channel, and three in a line: embedded always, lightningd where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pyln.client import LightningRpc, RpcError

from channels.lightning import LightningError
from channels.units import Msat, Sat
from tests.conformance.schema import check
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, nodes_on, until

CHANNEL = Sat(1_000_000)
PUSH = Msat(300_000_000)
AMOUNT = Sat(500_000)
NOBODY = "02" + "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
"""The id of a node whose key is 1."""


@dataclass(frozen=True)
class Pair:
    """alice opened a channel to bob. `kind` is "embedded" or "lightningd"."""

    kind: str
    nodes: Nodes
    alice: LightningNode
    bob: LightningNode


async def ask(node: LightningNode, method: str, **params: Any) -> dict[str, Any]:
    """Call a method and check the answer against lightningd's schema."""
    answer = await node.rpc.call(method, **params)
    check(method, answer)
    return answer


async def code_of(node: LightningNode, method: str, **params: Any) -> int:
    """The code of a refusal."""
    with pytest.raises(LightningError) as refused:
        await node.rpc.call(method, **params)
    assert str(refused.value)
    return refused.value.code


async def refusal(node: LightningNode, method: str, **params: Any) -> dict[str, Any]:
    """The whole error of a refusal: code, message, and data if there is any."""
    rpc = LightningRpc(str(node.process.rpc_file))
    with pytest.raises(RpcError) as refused:
        await asyncio.to_thread(rpc.call, method, params)
    error: dict[str, Any] = refused.value.error
    return error


@pytest.fixture(scope="module", params=["embedded", "lightningd"])
def pair(request: pytest.FixtureRequest, bitcoind: Chain) -> Iterator[Pair]:
    with nodes_on(bitcoind) as nodes:
        yield asyncio.run(_pair(request.param, nodes))


async def _pair(kind: str, nodes: Nodes) -> Pair:
    alice, bob = new_node(kind, nodes, "alice"), new_node(kind, nodes, "bob")
    await asyncio.gather(alice.start(), bob.start())
    await nodes.give(Sat(5_000_000), alice, bob)
    await nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
    return Pair(kind, nodes, alice, bob)


def new_node(kind: str, nodes: Nodes, name: str, *options: str) -> LightningNode:
    """`options` are lightningd's."""
    return nodes.make(name) if kind == "embedded" else nodes.make_lightningd(name, *options)


@dataclass(frozen=True)
class Line:
    """alice - bob - carol, with public channels; `first` and `second` are their short ids."""

    nodes: Nodes
    alice: LightningNode
    bob: LightningNode
    carol: LightningNode
    first: str
    second: str


@pytest.fixture(scope="module", params=["embedded", "lightningd"])
def line(request: pytest.FixtureRequest, bitcoind: Chain) -> Iterator[Line]:
    with nodes_on(bitcoind) as nodes:

        async def build() -> Line:
            # getroute is deprecated, so that it is refused in developer mode.
            options = ("--allow-deprecated-apis=true",)
            names = ("alice", "bob", "carol")
            made = [new_node(request.param, nodes, name, *options) for name in names]
            alice, bob, carol = made
            await asyncio.gather(*(node.start() for node in made))
            await nodes.give(Sat(2_000_000), alice, bob)
            await nodes.open(alice, bob, AMOUNT)
            await nodes.open(bob, carol, AMOUNT)
            await nodes.mine(6)
            scids = []
            for node in (alice, carol):
                (channel,) = await node.channels()
                scids.append(channel["short_channel_id"])

                async def knows(node: LightningNode = node) -> bool:
                    answer = await node.rpc.call("listchannels")
                    active = [c for c in answer["channels"] if c["active"]]
                    nodes = (await node.rpc.call("listnodes"))["nodes"]
                    return len(active) == 4 and len([n for n in nodes if "alias" in n]) == 3

                await until(knows, f"{node.process.name} knows the line")
            return Line(nodes, alice, bob, carol, *scids)

        yield asyncio.run(build())
