"""Core Lightning and our node tell each other of their channels, and ask for what they missed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from channels.units import Sat
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, nodes_on, until

AMOUNT = Sat(500_000)


async def until_all_know(nodes: Sequence[LightningNode], directions: int, named: int) -> None:
    for node in nodes:

        async def known(node: LightningNode = node) -> bool:
            channels = (await node.rpc.call("listchannels"))["channels"]
            announced = (await node.rpc.call("listnodes"))["nodes"]
            return (
                len([c for c in channels if c["active"]]) == directions
                and len([n for n in announced if "alias" in n]) == named
            )

        await until(known, f"{node.process.name} knows {directions} directions", within=60)


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    with nodes_on(bitcoind) as nodes:
        yield nodes


async def test_a_line_with_lightningd_in_the_middle(nodes: Nodes) -> None:
    a, c, late = (nodes.make(name) for name in ("a", "c", "late"))
    cln, late_cln = nodes.make_lightningd("cln"), nodes.make_lightningd("late-cln")
    await asyncio.gather(a.start(), c.start(), cln.start())
    await nodes.give(Sat(2_000_000), a, cln)
    await nodes.open(a, cln, AMOUNT)
    await nodes.open(cln, c, AMOUNT)
    await nodes.mine(6)
    await until_all_know([a, cln, c], directions=4, named=3)
    request = {"source": a.id, "destination": c.id, "amount_msat": 1_000_000, "final_cltv": 9}
    for layers in ([], ["auto.sourcefree"]):
        ours, theirs = [
            await node.rpc.call("getroutes", layers=layers, maxfee_msat=100, **request)
            for node in (a, cln)
        ]
        # Probabilities are each node's own guess; the rest is arithmetic.
        assert ours["routes"][0]["path"] == theirs["routes"][0]["path"]

    # Who comes late asks: ours asks lightningd, and lightningd asks ours.
    await asyncio.gather(late.start(), late_cln.start())
    await late.connect(cln)
    await late_cln.connect(a)
    await until_all_know([late, late_cln], directions=4, named=3)
