"""Two nodes with a channel: embedded ones always, Core Lightning's where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from channels.lightning import LightningError
from channels.units import Msat, Sat
from tests.conformance.schema import check
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, nodes_on

CHANNEL = Sat(1_000_000)
PUSH = Msat(300_000_000)


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
